"""Temporal operators inside the residual blocks of timm's image models.

timm's residual blocks begin `shortcut = x; x = self.<first layer>(x)`, some with a norm before. An
operator takes the place of that first layer and holds it, so timm's own code runs, and the shortcut
gets the frames before they are aggregated. Time is folded into the batch, (B*T, C, H, W). T comes from
the input; an operator learns it from `run_clips`, through a thread-local that is set only during that call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from timm.layers import DropPath
from timm.models import _efficientnet_blocks, convnext, regnet, res2net, resnest, resnet
from torch import Tensor, nn

from ..errors import BvtamError
from .folding import unfold_time
from .pairs import TemporalOp
from .temporal import temporal_op

# Residual blocks, each with the layer that its residual branch begins with.
FIRST_LAYER = {
    resnet.BasicBlock: 'conv1',
    resnet.Bottleneck: 'conv1',
    res2net.Bottle2neck: 'conv1',
    resnest.ResNestBottleneck: 'conv1',
    regnet.Bottleneck: 'conv1',
    regnet.PreBottleneck: 'conv1',
    convnext.ConvNeXtBlock: 'conv_dw',
    _efficientnet_blocks.ConvBnAct: 'conv',
    _efficientnet_blocks.DepthwiseSeparableConv: 'conv_dw',
    _efficientnet_blocks.InvertedResidual: 'conv_pw',
    _efficientnet_blocks.EdgeResidual: 'conv_exp',
    _efficientnet_blocks.UniversalInvertedResidual: 'dw_start',
    _efficientnet_blocks.MobileAttention: 'norm',
}

# .steps: time steps per clip of the `run_clips` that this thread is in; .mixed: see `run_step`
_call = threading.local()
_call.steps = None  # as after a call, or a compiled model would be compiled anew at its second


def run_clips(module: nn.Module, x: Tensor, steps: int) -> Tensor:
    """module(x), where the temporal layers in `module` see clips of `steps`."""
    before = getattr(_call, 'steps', None)
    _call.steps = steps
    try:
        return module(x)
    finally:
        _call.steps = before


def run_step(module: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """module(x) of one step, where `mixed` is what the one temporal operator in it gives."""
    _call.mixed = mixed
    try:
        return run_clips(module, x, 1)
    finally:
        del _call.mixed


def _steps() -> int:
    steps = getattr(_call, 'steps', None)
    if steps is None:
        raise BvtamError(
            'the backbone of a TemporalNet does not run alone: call the model on clips'
        )
    return steps


class TemporalLayer(nn.Module):
    """A temporal operator, then the layer whose place it takes."""

    def __init__(self, temporal: TemporalOp, layer: nn.Module) -> None:
        super().__init__()
        self.temporal = temporal
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        mixed = getattr(_call, 'mixed', None)
        return self.layer(self.temporal(x, _steps()) if mixed is None else mixed)


class ClipDropPath(DropPath):
    """Stochastic depth that drops a branch for all frames of a clip or for none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(unfold_time(x, _steps())).flatten(0, 1)


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks of a known kind with a shortcut; RegNet tells by `downsample`, others by `has_skip`."""
    regnets = (regnet.Bottleneck, regnet.PreBottleneck)
    blocks = [m for m in model.modules() if type(m) in FIRST_LAYER]
    return [b for b in blocks if getattr(b, 'has_skip', True)
            and not (isinstance(b, regnets) and b.downsample is None)]  # fmt: skip


def insert_operators(
    part: nn.Module, temporal: str, temporal_range: int = 3, every: int = 1, causal: bool = False
) -> None:
    """Opens every `every`-th residual branch in `part`, from the first on, with an operator."""
    for block in residual_blocks(part)[::every]:
        # of the outer one first: a MixedConv2d is no Conv2d and gives its own ones parts of the channels
        channels = next(c for m in block.modules() if (c := getattr(m, 'in_channels', 0)))
        operator = temporal_op(temporal, channels, temporal_range, causal)
        first = FIRST_LAYER[type(block)]
        setattr(block, first, TemporalLayer(operator, getattr(block, first)))


def units(part: nn.Module) -> Iterator[nn.Module]:
    """Modules that run one after the other, of which each has at most one operator."""
    mixes = any(isinstance(m, TemporalLayer) for m in part.modules())
    if not mixes or type(part) in FIRST_LAYER:
        yield part
        return
    for child in part.children():
        yield from units(child)


def before_branch(unit: nn.Module) -> nn.Module | None:
    """What a unit does before it comes to its operator, if anything."""
    return unit.norm1 if type(unit) is regnet.PreBottleneck else None


def drop_clips_whole(model: nn.Module) -> None:
    """Makes stochastic depth drop a branch for all frames of a clip or for none."""
    for block in model.modules():
        if isinstance(drop := getattr(block, 'drop_path', None), DropPath):
            block.drop_path = ClipDropPath(drop.drop_prob, drop.scale_by_keep)
