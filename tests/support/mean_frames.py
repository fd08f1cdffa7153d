"""A family of models that the zoo lacks: `tests/models/test_new_family.py` adds it to a copy of the package.

Made here. The features of single frames by a small image model of timm, averaged over time.
"""

from __future__ import annotations

from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..clip import ClipConfig
from ..errors import BvtamError
from ..layers.folding import fold_time, unfold_time
from ..layers.recompute import checkpoint
from ._build import build, default_cfg
from ._zoo_model import ZooModel

__all__ = ['MeanFrames']


class MeanFrames(ZooModel):
    """Clips (B, C, T, H, W) -> (B, num_classes), any T.

    Args:
        temporal: how frames become a clip, 'mean' or 'max'.
        Others: as `BLResNet`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        temporal: str = 'mean',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if temporal not in ('mean', 'max'):
            raise BvtamError(f'temporal must be mean or max, not {temporal!r}')
        self.in_chans, self.temporal = in_chans, temporal
        self.grad_checkpointing = False
        self.backbone = timm.create_model(
            'test_resnet',
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.feature_info = [
            {**info, 'module': f'backbone.{info["module"]}'} for info in self.backbone.feature_info
        ]

    num_classes = property(lambda self: self.backbone.num_classes)
    num_features = head_hidden_size = property(lambda self: self.backbone.num_features)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        patterns = {'stem': r'^backbone\.(?:conv1|bn1)', 'blocks': r'^backbone\.layer(\d+)'}
        return patterns if coarse else patterns | {'blocks': [(patterns['blocks'], None)]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        return 'backbone.fc' if name_only else self.backbone.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.backbone.reset_classifier(num_classes, global_pool)
        self.label_names = None

    def _frames(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.in_chans or not x.shape[2]:
            wanted = f'a clip (B, C={self.in_chans}, T, H, W)'
            raise ValueError(f'expected {wanted}, got a tensor of shape {tuple(x.shape)}')
        return fold_time(x, x.shape[2])

    def forward_features(self, x: Tensor) -> Tensor:
        run = type(self.backbone).forward_features
        again = self.grad_checkpointing and torch.is_grad_enabled()
        frames = (partial(checkpoint, run=run) if again else run)(self.backbone, self._frames(x))
        return unfold_time(frames, x.shape[2]).transpose(1, 2)

    def forward_intermediates(
        self, x: Tensor, indices=None, intermediates_only: bool = False, **options
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        last, found = self.backbone.forward_intermediates(self._frames(x), indices, **options)
        last, *found = (unfold_time(f, x.shape[2]).transpose(1, 2) for f in (last, *found))
        return found if intermediates_only else (last, found)

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True) -> list[int]:
        if prune_head:
            self.backbone.reset_classifier(0, '')
        return feature_take_indices(len(self.feature_info), indices)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        steps = x.shape[2]
        x = unfold_time(self.backbone.global_pool(x.transpose(1, 2).flatten(0, 1)), steps)
        if x.ndim == 5:
            return x.transpose(1, 2)
        x = F.dropout(x, self.backbone.drop_rate, self.training)
        x = x.mean(1) if self.temporal == 'mean' else x.amax(1)
        return x if pre_logits else self.backbone.fc(x)


default_cfgs = generate_default_cfgs(
    {'mean_frames_f4': default_cfg('backbone.conv1.0', 'backbone.fc', 10)}
)


@register_model
def mean_frames_f4(pretrained: bool = False, **kwargs) -> MeanFrames:
    """A small ResNet on 4 frames."""
    clip = ClipConfig(num_frames=4, resize=72, crop_size=64)
    return build(MeanFrames, 'mean_frames_f4', pretrained, dict, clip, **kwargs)
