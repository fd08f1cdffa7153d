"""bLVNet-TAM: bL-ResNet over pairs of frames, with temporal aggregation before every module.

Fan et al., "More Is Less: Learning Efficient Video Representations by Big-Little Network and
Depthwise Temporal Aggregation", NeurIPS 2019, arXiv 1912.00869. Must equal the release
IBM/bLVNet-TAM (Apache-2.0), whose checkpoints it loads.

The pair form, all that it adds to `bl_resnet.py` and its blocks (`_bl_blocks.py`):

    frames    0 1 | 2 3 | 4 5 | ...     a pair is two frames, K = T/2 pairs
    Little    0     2     4             sees the even frame of each pair, at full resolution
    Big         1     3     5           sees the odd one, at half
    sum       (01)  (23)  (45)          after the branches a pair is one tensor: T frames cost T/2

Before the branches of the stem (`split`) and of each module (`pair`) a temporal operator lets frames see
their neighbours, as it does in every bottleneck of layer 4; from the stem on it reads one tensor as both
frames of a pair (`layers/pairs.py`). No step depends on T, so one set of weights serves 8x2, 16x2, 24x2
and 32x2 frames; the names differ by the ClipConfig alone.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..clip import ClipConfig
from ..layers.folding import fold_time, unfold_time
from ..layers.pairs import TemporalOp
from ..layers.streaming import StreamStage
from ..layers.temporal import temporal_op
from ._build import build, default_cfg
from ._zoo_model import head_of_clips
from .bl_resnet import DEPTHS, BLResNet, checkpoint_filter_fn

__all__ = ['BLVNet']


class BLVNet(BLResNet):
    """bLVNet on clips: (B, C, T, H, W), T even -> (B, num_classes).

    Args:
        temporal: 'tam', 'tsm' or 'none'.
        temporal_range: frames that a TAM sees, odd.
        causal: a TAM sees the frame and those before it, none after it.
        drop_rate: dropout before the classifier, 0.5 in the paper.
        Others: as `BLResNet`. `drop_path_rate` drops a block for a whole clip.

    Raises:
        BvtamError: an unknown operator, an even range, a width that alpha does not divide.
        ValueError (on call): a tensor of another rank or channel count, or an odd T.
    """

    input_kind = 'clip'
    frames_per_step = 2  # of the features' time axis

    def __init__(
        self,
        layers: tuple[int, int, int, int] = DEPTHS[50],
        num_classes: int = 174,
        in_chans: int = 3,
        global_pool: str = 'avg',
        temporal: str = 'tam',
        temporal_range: int = 3,
        alpha: int = 2,
        beta: int = 4,
        width: int = 64,
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
        causal: bool = False,
    ) -> None:
        self.temporal, self.temporal_range = temporal, temporal_range  # what _temporal reads
        self.causal = causal
        rates = drop_rate, drop_path_rate
        super().__init__(layers, num_classes, in_chans, global_pool, alpha, beta, width, *rates)

    def _temporal(self, channels: int) -> TemporalOp:
        return temporal_op(self.temporal, channels, self.temporal_range, self.causal)

    def _fold(self, x: Tensor) -> tuple[Tensor, int]:
        """(B, C, T, H, W) -> frames (B*T, C, H, W), channels last, and T/2."""
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise ValueError(
                f'expected a clip (B, C={self.in_chans}, T, H, W), got a tensor of shape '
                f'{tuple(x.shape)}'
            )
        if x.shape[2] % 2 or x.shape[2] == 0:
            raise ValueError(f'expected an even number of frames T, got T={x.shape[2]}')
        num_pairs = x.shape[2] // 2
        return fold_time(x, num_pairs, 2), num_pairs

    def _unfold(self, x: Tensor, num_pairs: int) -> Tensor:
        """(B*K, C, h, w) -> (B, C, K, h, w)."""
        return unfold_time(x, num_pairs).transpose(1, 2)

    def stream_stages(self) -> list[StreamStage]:
        """The model up to its head, for streams of pairs (see `layers.streaming`)."""
        stem: Any = self.stem
        layer4: Any = self.layer4
        stages = [
            StreamStage(
                stem.temporal,
                'split',
                lambda x, little, big: stem.branches(little, big),
                before=lambda frame: F.relu(stem.bn1(stem.conv1(frame))),
            )
        ]
        for module in (self.layer1, self.layer2, self.layer3):
            stages.append(
                StreamStage(module.temporal, 'pair', lambda x, *mixed, m=module: m.branches(*mixed))
            )
        stages += [StreamStage(block.temporal, 'plain', block.residual) for block in layer4]
        return stages

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, T/2, h, w) -> (B, num_classes), averaged over the pairs."""
        return head_of_clips(self, self.global_pool, x, pre_logits)


def _bvtam(variant: str, pretrained: bool, **kwargs: Any) -> BLVNet:
    """`bvtam_r50_8x2` -> depth 50, clips of 16 frames."""
    _, depth, pairs = variant.split('_')
    if depth == 'tiny':
        defaults: dict[str, Any] = {'layers': (2, 2, 2, 2), 'width': 16}
    else:
        defaults = {'layers': DEPTHS[int(depth[1:])]}
    clip = ClipConfig(num_frames=2 * int(pairs.removesuffix('x2')))
    return build(BLVNet, variant, pretrained, checkpoint_filter_fn, clip, defaults, **kwargs)


_VARIANTS = [f'bvtam_r{d}_{k}x2' for d in (50, 101) for k in (8, 16, 24, 32)]
_VARIANTS += ['bvtam_r152_8x2', 'bvtam_tiny_8x2']
default_cfgs = generate_default_cfgs(
    {name: default_cfg('stem.conv1', 'fc', 174) for name in _VARIANTS}
)


@register_model
def bvtam_r50_8x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-50 on 16 frames: 25.0 M parameters, 23.8 GMACs at 224."""
    return _bvtam('bvtam_r50_8x2', pretrained, **kwargs)


@register_model
def bvtam_r50_16x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-50 on 32 frames: 47.7 GMACs at 224."""
    return _bvtam('bvtam_r50_16x2', pretrained, **kwargs)


@register_model
def bvtam_r50_24x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-50 on 48 frames."""
    return _bvtam('bvtam_r50_24x2', pretrained, **kwargs)


@register_model
def bvtam_r50_32x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-50 on 64 frames."""
    return _bvtam('bvtam_r50_32x2', pretrained, **kwargs)


@register_model
def bvtam_r101_8x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-101 on 16 frames: 40.2 M parameters, 32.1 GMACs at 224."""
    return _bvtam('bvtam_r101_8x2', pretrained, **kwargs)


@register_model
def bvtam_r101_16x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-101 on 32 frames: 64.3 GMACs at 224."""
    return _bvtam('bvtam_r101_16x2', pretrained, **kwargs)


@register_model
def bvtam_r101_24x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-101 on 48 frames: 96.4 GMACs at 224."""
    return _bvtam('bvtam_r101_24x2', pretrained, **kwargs)


@register_model
def bvtam_r101_32x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-101 on 64 frames: 128.6 GMACs at 224."""
    return _bvtam('bvtam_r101_32x2', pretrained, **kwargs)


@register_model
def bvtam_r152_8x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """bLVNet-TAM-152 on 16 frames: 55.7 M parameters."""
    return _bvtam('bvtam_r152_8x2', pretrained, **kwargs)


@register_model
def bvtam_tiny_8x2(pretrained: bool = False, **kwargs: Any) -> BLVNet:
    """A quarter of the width and two blocks a stage, about 1 M parameters: for tests and demos."""
    return _bvtam('bvtam_tiny_8x2', pretrained, **kwargs)
