"""The same model for inference alone: batch norms folded, what can be fused is one operation.

What can be fused is found by running a clip through the model, so that a family needs to say nothing
of it. On CPUs a convolution is one call of oneDNN with its bias and the ReLU that follows; elsewhere
the folded convolutions run as they are.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import BvtamError, one_line
from ..inference.runner import blank, model_name
from ..layers.recompute import FoldedNormRelu
from .fused_conv import FusedConv, has_bf16, operators_work

log = logging.getLogger('bvtam')
_PROBE = (2, 64)  # frames and pixels of the clip that shows which module follows which


def optimize(
    model: nn.Module, dtype: torch.dtype | None = None, compile: bool = False
) -> nn.Module:
    """A copy of a model that gives the same answers in less time, and cannot be trained or saved.

    Batch norms are folded into the convolutions before them; memory is channels last. In float32 the
    answers are those of the model to rounding. A model that no clip can be run through is copied
    unfused, with a warning.

    Args:
        model: a model of any family in eval mode, on the device that it is to run on.
        dtype: of weights and activations; `torch.bfloat16` where the CPU or GPU has instructions for
            it. Clips are to be given in it as well. By default that of the model.
        compile: `torch.compile` the copy in place of fusing by hand; needs a C++ compiler, and runs
            slowly at the first clip of every shape.

    Returns:
        a model of the same class; `bvtam.stream`, `predict` and the rest take it. It can be pickled
        and sent to another process; there it runs without `torch.compile`.

    Raises:
        BvtamError: a model in training mode, or already optimised.
    """
    if model.training:
        raise BvtamError('optimize needs a model in eval mode: call model.eval() first')
    if getattr(model, 'optimized', False):
        raise BvtamError('the model is optimised already; optimise the one that it was made of')
    fast = copy.deepcopy(model).requires_grad_(False)
    weight = next(fast.parameters(), torch.empty(0))
    dtype = dtype or weight.dtype
    if dtype == torch.bfloat16:
        warn_slow_bf16(weight.device)
    with torch.inference_mode(False), torch.no_grad():
        _fuse(fast, dtype, pack=not compile and operators_work(dtype))
        to_channels_last(fast.to(dtype))
    fast.eval()  # the fused modules too
    fast.optimized = True
    if compile:
        fast.compile()
    return fast


def to_channels_last(model: nn.Module) -> nn.Module:
    """The model with its two-dimensional weights in channels-last order; those of 3-D convolutions stay."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def warn_slow_bf16(device: torch.device) -> None:
    """Warns where a model in bfloat16 runs without instructions for it: several times slower than float32."""
    if device.type == 'cpu' and not has_bf16():
        log.warning(
            'bf16 is slow on this processor, which has no instructions for it: use precision fp32'
        )


def _fuse(model: nn.Module, dtype: torch.dtype, pack: bool) -> None:
    """Convolution, batch norm and ReLU that are called in this order, each once, become one."""
    names = {module: name for name, module in model.named_modules()}
    try:
        chains = list(_chains(_calls(model)))
    except Exception as error:  # whatever a foreign forward raises
        reason = one_line(error, 200) or type(error).__name__
        log.warning(
            '%s runs unfused, since no clip of %d frames and %d pixels can be run through it (%s)',
            model_name(model), *_PROBE, reason,
        )  # fmt: skip
        return
    for conv, norm, relu in chains:
        inner = getattr(norm, 'act', None)  # of timm's norms with an activation
        with_relu = relu is not None or type(inner) is nn.ReLU
        after = FoldedNormRelu() if with_relu else inner or nn.Identity()
        model.set_submodule(names[conv], FusedConv(conv, norm, with_relu, dtype, pack))
        model.set_submodule(names[norm], after)
        if relu in names:
            model.set_submodule(names[relu], nn.Identity())


class _Written(NamedTuple):
    """A tensor, and how often it had been written to. Kept, so that its id stays its own."""

    tensor: Tensor
    times: int

    def key(self) -> tuple[int, int]:
        return id(self.tensor), self.times


Call = tuple[nn.Module, _Written, _Written]


class _ReluCalls(TorchFunctionMode):
    """Records in-place calls of `F.relu`, each as a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = args[0] if func is F.relu and (kwargs or {}).get('inplace') else None
        before = None if x is None else _Written(x, x._version)
        output = func(*args, **kwargs or {})
        if before is not None:
            self.calls.append((nn.ReLU(), before, _Written(output, output._version)))
        return output


def _calls(model: nn.Module) -> list[Call]:
    """The convolutions, batch norms and ReLUs that a clip goes through, with input and output."""
    calls: list[Call] = []
    inputs: dict[nn.Module, _Written] = {}

    def before(module: nn.Module, args: tuple) -> None:
        inputs[module] = _Written(args[0], args[0]._version)

    def after(module: nn.Module, args: tuple, output: Tensor) -> None:
        calls.append((module, inputs[module], _Written(output, output._version)))

    hooks = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)):
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))
    frames, size = _PROBE
    try:
        with _ReluCalls() as relus:
            model(blank(model, 1, frames, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return calls + relus.calls  # behind those of modules, which may be taken away


def _chains(calls: list[Call]) -> Iterator[tuple[nn.Module, nn.Module, nn.Module | None]]:
    """(convolution, batch norm, ReLU or None) of those that can be fused."""
    count = Counter(module for module, *_ in calls)
    # The first module that takes a tensor as it is.
    following = {x.key(): (module, y) for module, x, y in reversed(calls)}
    for conv, _, y in calls:
        norm, z = following.get(y.key(), (None, None))
        if not _can_fuse(conv, norm) or count[conv] > 1 or count[norm] > 1:
            continue
        relu, _ = following.get(z.key(), (None, None))
        alone = type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU and count[relu] == 1
        yield conv, norm, relu if alone else None


def _can_fuse(conv: nn.Module, norm: nn.Module | None) -> bool:
    if type(conv) is not nn.Conv2d or conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return False
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
