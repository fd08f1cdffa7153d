"""TSN, TSM and TAM on image models of timm: every residual branch begins with a temporal operator.

TSN is the image model alone (Wang et al., ECCV 2016), TSM adds a shift (Lin et al., ICCV 2019,
arXiv 1811.08383), TAM a weighted sum over time (bLVNet-TAM, NeurIPS 2019, arXiv 1912.00869). On
ResNets they must equal the releases mit-han-lab/temporal-shift-module (MIT) and
IBM/action-recognition-pytorch (Apache-2.0), whose checkpoints they load.

The model itself, on any image model of timm that has a place for operators, is in `_temporal_net.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..clip import INTERPOLATIONS, ClipConfig
from ..layers.tam import stack_tam_weights
from ._build import build, default_cfg
from ._temporal_net import TemporalNet, backbone_cfg

__all__ = ['TemporalNet', 'temporal_model']

# Names of mit-han-lab/temporal-shift-module and IBM/action-recognition-pytorch, each with ours.
_NAMES = (
    (r'^base_model\.', ''),
    (r'^new_fc\.', 'fc.'),
    (r'\.conv1\.net\.', '.conv1.layer.'),
    (r'\.temporal\.', '.conv1.temporal.'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of either release to ours; one of ours passes unchanged."""
    if any(name.startswith('backbone.') for name in state_dict):
        return dict(state_dict)
    stacked = stack_tam_weights(state_dict)
    tams = {n.removesuffix('temporal.weight') for n in stacked if n.endswith('temporal.weight')}
    out = {}
    for name, tensor in stacked.items():
        if name.removesuffix('conv1.weight') in tams:
            name = name.replace('.conv1.', '.conv1.layer.')
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        out[f'backbone.{name}'] = tensor
    return out


_TEMPORAL = {'tsn': 'none', 'tsm': 'tsm', 'tam': 'tam'}


def _temporal_resnet(variant: str, pretrained: bool, **kwargs: Any) -> TemporalNet:
    """`tsm_resnet50_f8` -> the shift in a ResNet-50, clips of 8 frames."""
    kind, backbone, frames = variant.split('_')
    defaults: dict[str, Any] = {'backbone': backbone, 'temporal': _TEMPORAL[kind]}
    if variant.startswith('tsm_resnet101'):
        defaults['temporal_every'] = 2  # as released
    if pretrained:  # its weights are about to be replaced
        kwargs['backbone_pretrained'] = False
    if 'backbone' in kwargs and 'pretrained_cfg_overlay' not in kwargs:
        kwargs['pretrained_cfg_overlay'] = _ends(backbone_cfg(kwargs['backbone']))
    clip = ClipConfig(num_frames=int(frames[1:]), resize=256)
    return build(TemporalNet, variant, pretrained, checkpoint_filter_fn, clip, defaults, **kwargs)


def _ends(cfg: Any) -> dict[str, str]:
    """The names of a backbone's first and last layer in the model around it."""
    return {key: f'backbone.{getattr(cfg, key)}' for key in ('first_conv', 'classifier')}


def temporal_model(
    backbone: str = 'resnet50', temporal: str = 'tam', pretrained: bool = False, **options: Any
) -> TemporalNet:
    """Any supported image model of timm as a video model.

    Args:
        backbone: timm's name, `arch` or `arch.tag`.
        temporal: 'tam', 'tsm' or 'none'.
        pretrained: timm's ImageNet weights in the backbone; the rest starts anew.
        options: the others of `TemporalNet`, and timm's `features_only` and `out_indices`.

    Returns:
        The model; its `clip_config` has 8 frames and the crop, mean and std of the backbone. Saved, it
        is `<tsn, tsm or tam>_resnet50_f8` with the option `backbone`.

    Raises:
        BvtamError: an unknown option or backbone, or one that has no place for operators.
    """
    cfg = backbone_cfg(backbone)
    kind = next((k for k, t in _TEMPORAL.items() if t == temporal), 'tam')
    crop_size = cfg.input_size[-1]
    clip = ClipConfig(
        num_frames=8,
        resize=max(crop_size, round(crop_size / cfg.crop_pct)),
        crop_size=crop_size,
        interpolation=cfg.interpolation if cfg.interpolation in INTERPOLATIONS else 'bilinear',
        mean=cfg.mean,
        std=cfg.std,
    )
    overlay = {k: getattr(cfg, k) for k in ('input_size', 'pool_size', 'mean', 'std')}
    overlay |= _ends(cfg)
    options = {'backbone': backbone, 'temporal': temporal, **options}
    model = build(
        TemporalNet,
        f'{kind}_resnet50_f8',
        False,
        checkpoint_filter_fn,
        clip,
        pretrained_cfg_overlay=overlay,
        backbone_pretrained=pretrained,
        **options,
    )
    model.model_name = f'{kind}_{backbone.partition(".")[0]}'
    model._model_args = options
    return model


_VARIANTS = ['tsn_resnet50_f8', *(f'tsm_resnet{d}_f{t}' for d in (50, 101) for t in (8, 16))]
_VARIANTS += [f'tam_resnet{d}_f{t}' for d in (18, 50, 101) for t in (8, 32)]
default_cfgs = generate_default_cfgs(
    {name: default_cfg('backbone.conv1', 'backbone.fc', 400) for name in _VARIANTS}
)


@register_model
def tsn_resnet50_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """ResNet-50 on 8 frames, each alone: 24.3 M parameters, 33 GMACs at 224."""
    return _temporal_resnet('tsn_resnet50_f8', pretrained, **kwargs)


@register_model
def tsm_resnet50_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TSM in every block of a ResNet-50, 8 frames: 24.3 M parameters, 33 GMACs at 224."""
    return _temporal_resnet('tsm_resnet50_f8', pretrained, **kwargs)


@register_model
def tsm_resnet50_f16(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TSM in every block of a ResNet-50, 16 frames: 65 GMACs at 224."""
    return _temporal_resnet('tsm_resnet50_f16', pretrained, **kwargs)


@register_model
def tsm_resnet101_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TSM in every second block of a ResNet-101, 8 frames."""
    return _temporal_resnet('tsm_resnet101_f8', pretrained, **kwargs)


@register_model
def tsm_resnet101_f16(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TSM in every second block of a ResNet-101, 16 frames."""
    return _temporal_resnet('tsm_resnet101_f16', pretrained, **kwargs)


@register_model
def tam_resnet18_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-18, 8 frames."""
    return _temporal_resnet('tam_resnet18_f8', pretrained, **kwargs)


@register_model
def tam_resnet18_f32(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-18, 32 frames."""
    return _temporal_resnet('tam_resnet18_f32', pretrained, **kwargs)


@register_model
def tam_resnet50_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-50, 8 frames: 24.4 M parameters, 32.8 GMACs at 224."""
    return _temporal_resnet('tam_resnet50_f8', pretrained, **kwargs)


@register_model
def tam_resnet50_f32(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-50, 32 frames: 131.3 GMACs at 224."""
    return _temporal_resnet('tam_resnet50_f32', pretrained, **kwargs)


@register_model
def tam_resnet101_f8(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-101, 8 frames."""
    return _temporal_resnet('tam_resnet101_f8', pretrained, **kwargs)


@register_model
def tam_resnet101_f32(pretrained: bool = False, **kwargs: Any) -> TemporalNet:
    """TAM in every block of a ResNet-101, 32 frames."""
    return _temporal_resnet('tam_resnet101_f32', pretrained, **kwargs)
