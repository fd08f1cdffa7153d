"""The same net for inference alone: batch norms folded, what can be fused is one operation.

On CPUs a convolution is one call of oneDNN with its bias and the ReLU or the residual sum that follow,
and with weights in the order that oneDNN wants. Elsewhere the folded convolutions run as they are.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BvtamError, one_line
from ..models.bl_resnet import BLModule, BLResNet, Bottleneck, Stem
from ..models.temporal_resnet import TemporalNet

log = logging.getLogger('bvtam')
_mkldnn = torch.ops.mkldnn  # oneDNN, as torch's own compiler calls it; no documented interface
_AVX512 = 'AVX512' in torch.backends.cpu.get_cpu_capability()
_PROBE = (2, 64)  # frames and pixels of the clip that shows which module follows which


def optimize(
    model: nn.Module, dtype: torch.dtype | None = None, compile: bool = False
) -> nn.Module:
    """A copy of a net that gives the same answers in less time, and cannot be trained or saved.

    Batch norms are folded into the convolutions before them; memory is channels last. In float32 the
    answers are those of the net to rounding.

    Args:
        model: a net of this package in eval mode, on the device that it is to run on.
        dtype: of weights and activations; `torch.bfloat16` where the CPU or GPU has instructions for
            it. Clips are to be given in it as well. By default that of the net.
        compile: `torch.compile` the copy in place of fusing by hand; needs a C++ compiler, and runs
            slowly at the first clip of every shape.

    Returns:
        a net of the same class; `bvtam.stream`, `predict` and the rest take it. It can be pickled and
        sent to another process; there it runs without `torch.compile`.

    Raises:
        BvtamError: a net in training mode, or none of this package, or already optimised.
    """
    if not isinstance(model, (BLResNet, TemporalNet)):
        raise BvtamError(f'optimize takes a net of bvtam, not {type(model).__name__}')
    if model.training:
        raise BvtamError('optimize needs a net in eval mode: call model.eval() first')
    if getattr(model, 'optimized', False):
        raise BvtamError('the net is optimised already; optimise the one that it was made of')
    net = copy.deepcopy(model).requires_grad_(False)
    dtype = dtype or next(net.parameters()).dtype
    if dtype == torch.bfloat16:
        warn_slow_bf16(next(net.parameters()).device)
    fuse = _fuse_bl_net if isinstance(net, BLResNet) else _fuse_chains
    with torch.inference_mode(False), torch.no_grad():
        fuse(net, dtype, pack=not compile and _operators_work(dtype))
        net.to(dtype=dtype, memory_format=torch.channels_last)
    net.eval()  # the fused modules too
    net.optimized = True
    if compile:
        net.compile()
    return net


def warn_slow_bf16(device: torch.device) -> None:
    """Warns where a net in bfloat16 runs without instructions for it: several times slower than float32."""
    if device.type == 'cpu' and not _has_bf16():
        log.warning(
            'bf16 is slow on this processor, which has no instructions for it: use precision fp32'
        )


class FusedConv(nn.Module):
    """Convolution, batch norm, sum with a shortcut and ReLU, as far as they are there.

    Args:
        conv: one whose padding is zeros and given in pixels.
        norm: in eval mode; folded into the weights, in float64.
        relu: whether ReLU follows.
        dtype: of the weights.
        pack: whether oneDNN may have the weights in its own order, where it can run them.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module | None, relu: bool, dtype: torch.dtype, pack: bool
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

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        after = 'relu' if self.relu and shortcut is None else 'none'
        if self.packed is None or (x.requires_grad and torch.is_grad_enabled()):  # or no gradient
            padding, stride, dilation = self.geometry
            x = F.conv2d(x, self._plain(), self.bias, stride, padding, dilation, self.groups)
            after = 'none'
        elif self.dense:
            x = x.permute(0, 2, 3, 1)
            if shortcut is not None and _AVX512:  # elsewhere the sum by itself is faster
                other = shortcut.permute(0, 2, 3, 1)
                x = _mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, 'add')
                shortcut = None
            else:
                x = _mkldnn._linear_pointwise(x, self.packed, self.bias, after, [], '')
            x = x.permute(0, 3, 1, 2)
        else:
            x = _mkldnn._convolution_pointwise(
                x, self.packed, self.bias, *self.geometry, self.groups, after, [], ''
            )
        if shortcut is not None:
            x += shortcut
        return x.relu_() if self.relu and after == 'none' else x

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
            self._hold(plain, _operators_work(plain.dtype))

    def __deepcopy__(self, memo):
        memo[id(self.packed)] = self.packed  # nothing in it ever changes, and torch cannot copy it
        new = memo[id(self)] = self.__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def _apply(self, fn, recurse=True):
        if self.packed is not None:
            moved = fn(self.bias)
            if (moved.device, moved.dtype) != (self.bias.device, self.bias.dtype):
                raise BvtamError(
                    'an optimised net stays where it is, in its precision: optimise the net that it '
                    'was made of, there or in another'
                )
        return super()._apply(fn, recurse)


def _onednn(weight: Tensor) -> bool:
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _has_bf16())


@cache
def _operators_work(dtype: torch.dtype) -> bool:
    """Whether the operators of oneDNN are there and give what plain convolutions give; tried once."""
    try:
        worst = max(_difference(dtype, *case) for case in ((1, 1, 1), (3, 2, 1), (3, 1, 8)))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = one_line(error, 200)
    else:
        if worst <= 8 * torch.finfo(dtype).eps:
            return True
        reason = f'they differ from plain convolutions by {worst:.2g} of the largest value'
    log.warning(
        'optimize runs plain convolutions, which is slower: the oneDNN operators of torch %s '
        'cannot be used (%s)',
        torch.__version__,
        reason,
    )
    return False


@torch.inference_mode(False)
@torch.no_grad()
def _difference(dtype: torch.dtype, kernel: int, stride: int, groups: int) -> float:
    """Of a fused convolution and a plain one, with and without a shortcut; 1 is the largest value."""

    def values(*shape: int) -> Tensor:  # no random ones, which are the caller's
        return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).sin_().view(shape)

    conv = nn.utils.skip_init(
        nn.Conv2d, 32, 32, kernel, stride, kernel // 2, groups=groups, dtype=torch.float64
    )
    conv.weight.copy_(values(*conv.weight.shape))
    conv.bias.copy_(values(32))
    x = values(2, 32, 6, 6).to(dtype, memory_format=torch.channels_last)
    fused, plain = (FusedConv(conv, None, True, dtype, pack) for pack in (True, False))
    worst = 0.0
    for shortcut in (None, torch.ones_like(plain(x))):
        y, right = fused(x, shortcut).double(), plain(x, shortcut).double()
        worst = max(worst, float((y - right).abs().max() / right.abs().max()))
    return worst


def _has_bf16() -> bool:
    try:
        return _mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError, TypeError):
        return False


def _folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """float64 weights and bias of both, on the CPU: Apple's GPUs know no float64."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().double()

    weight = wide(conv.weight)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else wide(conv.bias)
    if norm is None:
        return weight, bias
    scale = (wide(norm.running_var) + norm.eps).rsqrt()
    shift = -wide(norm.running_mean) * scale
    if norm.affine:
        scale = scale * wide(norm.weight)
        shift = shift * wide(norm.weight) + wide(norm.bias)
    return weight * scale[:, None, None, None], bias * scale + shift


# ---- bLNet and bLVNet: their modules with fused convolutions ----


class _FusedBottleneck(Bottleneck):
    def residual(self, x: Tensor, mixed: Tensor, num_pairs: int = 1) -> Tensor:
        shortcut = self.pool(x if self.shortcut is None else mixed)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        return self.conv3(self.conv2(self.conv1(mixed)), shortcut)


class _FusedStem(Stem):
    def forward(self, x: Tensor, num_pairs: int = 1) -> Tensor:
        x = self.conv1(x)
        both = (x, x) if self.temporal is None else self.temporal.split(x, num_pairs)
        return self.branches(*both)

    def branches(self, little: Tensor, big: Tensor) -> Tensor:
        little = self.little_conv2(self.little_conv1(little))
        return self.fuse_conv(self.little_conv3(little, self.big_conv(big)))


class _FusedBLModule(BLModule):
    def branches(self, little: Tensor, big: Tensor, num_pairs: int = 1) -> Tensor:
        little, big = self.little(little, num_pairs), self.big(big, num_pairs)
        big = F.interpolate(big, size=little.shape[-2:], mode='nearest')
        return self.fusion(self.little_out(little, big), num_pairs)


def _fuse_bl_net(net: BLResNet, dtype: torch.dtype, pack: bool) -> None:
    def fuse(owner: nn.Module, conv: str, norm: str, relu: bool) -> None:
        fused = FusedConv(getattr(owner, conv), getattr(owner, norm), relu, dtype, pack)
        setattr(owner, conv, fused)
        setattr(owner, norm, nn.Identity())

    for module in list(net.modules()):
        if type(module) is Bottleneck:
            fuse(module, 'conv1', 'bn1', True)
            fuse(module, 'conv2', 'bn2', True)
            fuse(module, 'conv3', 'bn3', module.last_act)
            if module.shortcut is not None:
                module.shortcut = FusedConv(*module.shortcut, False, dtype, pack)
            module.__class__ = _FusedBottleneck
        elif type(module) is Stem:
            fuse(module, 'conv1', 'bn1', True)
            fuse(module, 'big_conv', 'big_bn', False)
            fuse(module, 'little_conv1', 'little_bn1', True)
            fuse(module, 'little_conv2', 'little_bn2', True)
            fuse(module, 'little_conv3', 'little_bn3', True)
            fuse(module, 'fuse_conv', 'fuse_bn', True)
            module.__class__ = _FusedStem
        elif type(module) is BLModule:
            module.little_out = FusedConv(*module.little_out, True, dtype, pack)
            module.__class__ = _FusedBLModule


# ---- networks of timm: whatever is called one after the other ----


class _Written(NamedTuple):
    tensor: Tensor
    times: int

    def key(self) -> tuple[int, int]:
        return id(self.tensor), self.times


def _fuse_chains(net: TemporalNet, dtype: torch.dtype, pack: bool) -> None:
    """Convolution, batch norm and ReLU that are called in this order, each once, are one."""
    names = {module: name for name, module in net.named_modules()}
    for conv, norm, relu in _chains(net):
        inner = getattr(norm, 'act', None)  # of timm's norms with an activation
        after = inner if inner is not None and type(inner) is not nn.ReLU else nn.Identity()
        fused = FusedConv(conv, norm, relu is not None or type(inner) is nn.ReLU, dtype, pack)
        net.set_submodule(names[conv], fused)
        net.set_submodule(names[norm], after)
        if relu is not None:
            net.set_submodule(names[relu], nn.Identity())


def _chains(net: TemporalNet) -> Iterator[tuple[nn.Module, nn.Module, nn.Module | None]]:
    """(convolution, batch norm, ReLU or None), found by running a clip through the net."""
    # Tensors with how often they had been written to, before and after; kept, so that an id stays one.
    calls: list[tuple[nn.Module, _Written, _Written]] = []
    inputs: dict[nn.Module, _Written] = {}

    def before(module: nn.Module, args: tuple) -> None:
        inputs[module] = _Written(args[0], args[0]._version)

    def after(module: nn.Module, args: tuple, output: Tensor) -> None:
        calls.append((module, inputs[module], _Written(output, output._version)))

    hooks = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)):
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))
    frames, size = _PROBE
    net(next(net.parameters()).new_zeros(1, net.in_chans, frames, size, size))
    for hook in hooks:
        hook.remove()
    count = Counter(module for module, *_ in calls)
    # The first module that takes a tensor as it is.
    following = {x.key(): (module, y) for module, x, y in reversed(calls)}
    for conv, _, y in calls:
        norm, z = following.get(y.key(), (None, None))
        usual = type(conv) is nn.Conv2d and conv.padding_mode == 'zeros'
        if not usual or isinstance(conv.padding, str) or count[conv] > 1:
            continue
        if not isinstance(norm, nn.BatchNorm2d) or count[norm] > 1 or norm.running_mean is None:
            continue
        relu, _ = following.get(z.key(), (None, None))
        alone = type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU and count[relu] == 1
        yield conv, norm, relu if alone else None
