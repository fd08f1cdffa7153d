"""Convolution, batch norm and ReLU as one operation, on CPUs by private operators of torch.

The operators call oneDNN as torch's own compiler does, with weights in the order that oneDNN wants;
they have no documented interface. So they are tried once, and where one is gone, takes other arguments
or gives something else, the folded convolutions run as they are. No other module calls them.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import BvtamError, one_line

log = logging.getLogger('bvtam')
_mkldnn = torch.ops.mkldnn
_AVX512 = 'AVX512' in torch.backends.cpu.get_cpu_capability()
ARGUMENTS = {  # of the operators, as they are called here
    '_reorder_linear_weight': ('self',),
    '_reorder_convolution_weight': ('self', 'padding', 'stride', 'dilation', 'groups'),
    '_linear_pointwise': ('X', 'W', 'B', 'attr', 'scalars', 'algorithm'),
    '_convolution_pointwise': (
        'X', 'W', 'B', 'padding', 'stride', 'dilation', 'groups', 'attr', 'scalars', 'algorithm',
    ),
}  # fmt: skip


class FusedConv(nn.Module):
    """Convolution and batch norm, and the ReLU that may follow.

    Args:
        conv: one whose padding is zeros and given in pixels.
        norm: in eval mode, with running statistics; folded into the weights, in float64.
        relu: whether ReLU follows.
        dtype: of the weights.
        pack: whether oneDNN may have the weights in its own order, where it can run them.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module, relu: bool, dtype: torch.dtype, pack: bool
    ) -> None:
        super().__init__()
        weight, bias = _folded(conv, norm)
        device = conv.weight.device
        weight = weight.to(dtype).to(device, memory_format=torch.channels_last)
        self.bias = nn.Parameter(bias.to(dtype).to(device), requires_grad=False)
        self.relu, self.packed = relu, None
        self.geometry = [list(p) for p in (conv.padding, conv.stride, conv.dilation)]
        self.groups = conv.groups
        # A matrix product to oneDNN: as a convolution it has slow kernels for some sizes, in bfloat16
        # a fifth of the speed.
        self.dense = weight.shape[2:] == (1, 1) and self.groups == 1
        self.dense &= self.geometry[:2] == [[0, 0], [1, 1]]
        self._hold(weight, pack)

    def _hold(self, weight: Tensor, pack: bool) -> None:
        if not (pack and _onednn(weight)):
            self.weight = nn.Parameter(weight, requires_grad=False)
        elif self.dense:
            self.packed = _mkldnn._reorder_linear_weight(weight[:, :, 0, 0].contiguous())
        elif not _AVX512:
            # Here the best order depends on the size of the clip, and in another's some convolutions run
            # at a tenth of the speed. To put the weights in order at every call costs less.
            self.packed = weight
        else:
            self.packed = _mkldnn._reorder_convolution_weight(weight, *self.geometry, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        after = 'relu' if self.relu else 'none'
        if self.packed is None or (x.requires_grad and torch.is_grad_enabled()):  # or no gradient
            padding, stride, dilation = self.geometry
            x = F.conv2d(x, self._plain(), self.bias, stride, padding, dilation, self.groups)
            # A model may have one more ReLU in place behind it, which would spoil what `relu` saves.
            return x.clamp_min(0) if self.relu else x
        if self.dense:
            x = x.permute(0, 2, 3, 1)
            x = _mkldnn._linear_pointwise(x, self.packed, self.bias, after, [], '')
            return x.permute(0, 3, 1, 2)
        return _mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self.geometry, self.groups, after, [], ''
        )

    def _plain(self) -> Tensor:
        """The weight (out, in, height, width) in the usual order."""
        if self.packed is None:
            return self.weight
        plain = self.packed.to_dense()
        return plain[:, :, None, None] if plain.ndim == 2 else plain

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[f'{prefix}weight'] = self.packed.to_dense()

    def __getstate__(self):
        state = super().__getstate__()
        if self.packed is None:
            return state
        return state | {'packed': None, 'plain': self._plain()}

    def __setstate__(self, state):
        plain = state.pop('plain', None)
        super().__setstate__(state)
        if plain is not None:  # in the order of this machine
            plain = plain.contiguous(memory_format=torch.channels_last)
            self._hold(plain, operators_work(plain.dtype))

    def _apply(self, fn, recurse=True):
        if self.packed is not None:
            moved = fn(self.bias)
            if (moved.device, moved.dtype) != (self.bias.device, self.bias.dtype):
                raise BvtamError(
                    'an optimised model stays where it is, in its precision: optimise the model that '
                    'it was made of, there or in another'
                )
        return super()._apply(fn, recurse)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """float64 weight and bias of both, on the CPU: Apple's GPUs know no float64."""
    given = conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    weight, bias, mean, var, scale, shift = (
        None if tensor is None else tensor.detach().cpu().double() for tensor in given
    )
    return fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift)


# ---- whether oneDNN can be used ----


def has_bf16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    try:
        return _mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(weight: Tensor) -> bool:
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bf16())


@cache
def operators_work(dtype: torch.dtype) -> bool:
    """Whether the operators are there and give what plain convolutions give; tried once."""
    reason = '; '.join(changed_operators())
    try:
        worst = 0.0 if reason else max(_difference(dtype, *case) for case in _CASES)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = one_line(error, 200)
    else:
        if worst > 8 * torch.finfo(dtype).eps:
            reason = f'they differ from plain convolutions by {worst:.2g} of the largest value'
    if reason:
        log.warning(
            'optimize runs plain convolutions, which is slower: the oneDNN operators of torch %s '
            'cannot be used (%s)',
            torch.__version__,
            reason,
        )
    return not reason


_CASES = (1, 1, 1), (3, 2, 1), (3, 1, 8)  # kernel, stride, groups


def changed_operators() -> list[str]:
    """A line for each operator that this torch lacks, or that takes other arguments than are given."""
    lines = []
    for name, ours in ARGUMENTS.items():
        try:
            taken = getattr(_mkldnn, name).default._schema.arguments
        except AttributeError:
            lines.append(f'{name} is missing')
            continue
        names = tuple(argument.name for argument in taken)
        more = [argument for argument in taken[len(ours) :] if not argument.has_default_value()]
        if names[: len(ours)] != ours or more:
            lines.append(f'{name} takes ({", ".join(names)}), not ({", ".join(ours)})')
    return lines


@torch.inference_mode(False)
@torch.no_grad()
def _difference(dtype: torch.dtype, kernel: int, stride: int, groups: int) -> float:
    """Of a fused convolution and a plain one; 1 is the largest value."""

    def values(*shape: int) -> Tensor:  # no random ones, which are the caller's
        return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).sin_().view(shape)

    conv = nn.utils.skip_init(
        nn.Conv2d, 32, 32, kernel, stride, kernel // 2, groups=groups, dtype=torch.float64
    )
    conv.weight.copy_(values(*conv.weight.shape))
    conv.bias.copy_(values(32))
    norm = nn.BatchNorm2d(32).eval()
    x = values(2, 32, 6, 6).to(dtype, memory_format=torch.channels_last)
    fused, plain = (FusedConv(conv, norm, True, dtype, pack)(x).double() for pack in (True, False))
    return float((fused - plain).abs().max() / plain.abs().max())
