"""An image model of timm on clips: residual branches begin with a temporal operator, the rest sees single frames.

How an operator comes into timm's blocks is in `layers/residual.py`. Frames are folded, (B*T, C, H, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg, convnext, efficientnet, mobilenetv3, regnet, resnet
from torch import Tensor, nn

from ..errors import BvtamError, nearest
from ..layers.folding import fold_time, unfold_time
from ..layers.recompute import checkpoint
from ..layers.residual import (
    FIRST_LAYER,
    TemporalLayer,
    before_branch,
    drop_clips_whole,
    insert_operators,
    residual_blocks,
    run_clips,
    run_step,
    units,
)
from ..layers.streaming import MaxPool, StreamStage
from ..layers.temporal import NoTemporal
from ._build import check_pool
from ._zoo_model import ZooModel, head_of_clips

# Models whose forward_features is: every child before this one, in the order of definition.
HEAD = {
    resnet.ResNet: 'global_pool',
    regnet.RegNet: 'head',
    convnext.ConvNeXt: 'head',
    efficientnet.EfficientNet: 'global_pool',
    mobilenetv3.MobileNetV3: 'global_pool',
}


def backbone_cfg(name: str) -> PretrainedCfg:
    """timm's config of `arch` or `arch.tag`."""
    if not timm.is_model(name):
        raise BvtamError(f'timm has no backbone {name!r}{nearest(name, timm.list_models())}')
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise BvtamError(f'backbone {name!r}: {error}') from None
    assert cfg is not None  # what is not registered raises
    return cfg


def _check_backbone(name: str, backbone: nn.Module) -> None:
    """Refuses a model that has no place for operators, or whose parts are not simply in a row."""
    known = f'a backbone can be a {", ".join(k.__name__ for k in HEAD)}'
    if not residual_blocks(backbone):
        raise BvtamError(f'{name} has no residual block of a known kind; {known}')
    for kind in {type(m) for m in backbone.modules()} - FIRST_LAYER.keys():
        if issubclass(kind, tuple(FIRST_LAYER)):  # such as a CondConvResidual
            raise BvtamError(f'{name} has residual blocks of an unknown kind, {kind.__name__}')
    if type(backbone) not in HEAD:
        raise BvtamError(f'{name} is a {type(backbone).__name__}; {known}')


def _pool_time(x: Tensor, steps: int) -> tuple[Tensor, int]:
    """Maximum of 3 steps at every second: (B*T, C, H, W) -> (B*T', C, H, W), T' = (T + 1) // 2."""
    x = unfold_time(x, steps).transpose(1, 2)
    x = F.max_pool3d(x, (3, 1, 1), (2, 1, 1), (1, 0, 0))
    return x.transpose(1, 2).flatten(0, 1), x.shape[2]


def _prefixed(pattern: Any) -> Any:
    """A pattern of `group_matcher`, or a list of (pattern, ordinal), for names in `backbone.`"""
    if isinstance(pattern, str):
        return rf'^backbone\.(?:{pattern.replace("^", "")})'
    return [(_prefixed(p), ordinal) for p, ordinal in pattern]


class TemporalNet(ZooModel):
    """An image model of timm on clips: (B, C, T, H, W) -> (B, num_classes), any T.

    Args:
        backbone: timm's name, `arch` or `arch.tag`, of a ResNet, RegNet, ConvNeXt, EfficientNet or
            MobileNet.
        temporal_every: operators in every n-th residual branch of a stage, beginning with the first.
        temporal_pool: max-pool over time (3, stride 2) after layers 1, 2 and 3 of a ResNet.
        backbone_pretrained: timm's ImageNet weights in the backbone.
        causal: TAMs see the frame and those before it alone; no `temporal_pool` then.
        Others: as `BLVNet`. `temporal_range` counts frames.

    Raises:
        BvtamError: a backbone that is unknown or has no place for operators, other bad options.
        ValueError (on call): a tensor of another rank or channel count, or no frames.
    """

    input_kind = 'clip'
    frames_per_step = 1  # of the features' time axis
    backbone: Any  # one of timm's models

    def __init__(
        self,
        backbone: str = 'resnet50',
        num_classes: int = 400,
        in_chans: int = 3,
        global_pool: str = 'avg',
        temporal: str = 'tam',
        temporal_range: int = 3,
        temporal_every: int = 1,
        temporal_pool: bool = False,
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
        backbone_pretrained: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if temporal_every < 1:
            raise BvtamError(f'temporal_every must be 1 or more, not {temporal_every}')
        check_pool(num_classes, global_pool)
        backbone_cfg(backbone)
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        options: dict[str, Any] = {'num_classes': num_classes, 'in_chans': in_chans}
        if global_pool != 'avg':  # what not every model of timm takes is passed only where needed
            options['global_pool'] = global_pool
        if drop_path_rate:
            options['drop_path_rate'] = drop_path_rate
        self.backbone = timm.create_model(backbone, pretrained=backbone_pretrained, **options)
        _check_backbone(backbone, self.backbone)
        if temporal_pool and causal:
            raise BvtamError('temporal_pool reads the next frame: leave out causal=True')
        if temporal_pool and type(self.backbone) is not resnet.ResNet:
            raise BvtamError(f'temporal_pool is for ResNets, and {backbone} is none')
        self._pooled = ('layer1', 'layer2', 'layer3') if temporal_pool else ()
        self._stages = [name for name, part in self._trunk() if residual_blocks(part)]
        for name in self._stages if temporal != 'none' else ():
            stage = self.backbone.get_submodule(name)
            insert_operators(stage, temporal, temporal_range, temporal_every, causal)
        drop_clips_whole(self.backbone)
        self.feature_info = [
            {**info, 'module': f'backbone.{info["module"]}'} for info in self.backbone.feature_info
        ]

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    @property
    def num_features(self) -> int:
        return self.backbone.num_features

    @property
    def head_hidden_size(self) -> int:
        return self.backbone.head_hidden_size

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {k: _prefixed(v) for k, v in self.backbone.group_matcher(coarse).items()}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The names that the backbone wants undecayed; the papers decay every parameter."""
        return {f'backbone.{name}' for name in getattr(self.backbone, 'no_weight_decay', set)()}

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        fc = self.backbone.get_classifier()
        return next(n for n, m in self.named_modules() if m is fc) if name_only else fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes leave pooled features."""
        pool = getattr(self.backbone, 'global_pool', None)  # of some it is in the head
        kept = getattr(pool, 'pool_type', 'avg')
        check_pool(num_classes, kept if global_pool is None else global_pool)
        self.backbone.reset_classifier(num_classes, global_pool)
        self.label_names = None

    def _trunk(self) -> Iterator[tuple[str, nn.Module]]:
        """The backbone's parts before its head, with their names; a Sequential of stages one by one."""
        for name, child in self.backbone.named_children():
            if name == HEAD[type(self.backbone)]:
                return
            if name in ('blocks', 'stages'):
                yield from ((f'{name}.{i}', stage) for i, stage in child.named_children())
            else:
                yield name, child

    def stream_stages(self) -> list[StreamStage | MaxPool]:
        """The model up to its head, for streams of frames (see `layers.streaming`)."""
        stages: list[StreamStage | MaxPool] = []
        for name, part in self._trunk():
            for unit in units(part):
                layers = [m for m in unit.modules() if isinstance(m, TemporalLayer)]
                operator = layers[0].temporal if layers else NoTemporal()
                after = partial(run_step, unit)
                stages.append(StreamStage(operator, 'plain', after, reads=before_branch(unit)))
            if name in self._pooled:
                stages.append(MaxPool())
        return stages

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name and the output, (B, C, T', h, w), of each part in turn, before any pooling over time.

        T' = T, less only with `temporal_pool`.
        """
        if x.ndim != 5 or x.shape[1] != self.in_chans or x.shape[2] == 0:
            raise ValueError(
                f'expected a clip (B, C={self.in_chans}, T, H, W), got a tensor of shape '
                f'{tuple(x.shape)}'
            )
        steps = x.shape[2]
        x = fold_time(x, steps)
        for name, part in self._trunk():
            if name in self._stages and self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(part, x, steps, run=run_clips)  # sets the steps in the backward too
            else:
                x = run_clips(part, x, steps)
            yield f'backbone.{name}', unfold_time(x, steps).transpose(1, 2)
            if name in self._pooled:
                x, steps = _pool_time(x, steps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, T', h, w) -> (B, num_classes), averaged over time."""
        pool = partial(self.backbone.forward_head, pre_logits=True)
        return head_of_clips(self, pool, x, pre_logits)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last index, and the classifier; returns the indices kept."""
        return self.backbone.prune_intermediate_layers(indices, prune_norm, prune_head)
