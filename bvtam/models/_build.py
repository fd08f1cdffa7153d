"""From an entry point to a net: options checked, weights found and loaded strictly, ClipConfig set.

timm's builder does the rest (default configs, features_only, adapting classifier and first conv).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from timm.models._builder import build_model_with_cfg
from timm.models._hub import hf_split
from torch import Tensor, nn

from ..clip import IMAGENET_MEAN, IMAGENET_STD, ClipConfig
from ..errors import BvtamError, nearest
from ..hub import store

_logger = logging.getLogger('bvtam')

# What timm's factory and builder take besides the class's own options.
_TIMM_OPTIONS = {
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_model_args',
    'cache_dir',
    'features_only',
    'out_indices',
}

Filter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def default_cfg(first_conv: str, classifier: str, num_classes: int, **kwargs: Any) -> dict:
    """timm's config of an architecture: 224 px RGB, ImageNet mean and std."""
    return {
        'num_classes': num_classes,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': IMAGENET_MEAN,
        'std': IMAGENET_STD,
        'first_conv': first_conv,
        'classifier': classifier,
        'license': 'apache-2.0',
        **kwargs,
    }


def build(
    cls: type[nn.Module],
    variant: str,
    pretrained: bool,
    filter_fn: Filter,
    clip: ClipConfig | None = None,
    defaults: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds `variant`, an instance of `cls`, with timm's builder.

    Args:
        filter_fn: authors' names to ours; a state dict that has ours already passes through.
        clip: the variant's ClipConfig, replaced by that of the weights; None for an image net.
        defaults: the variant's options, replaced by those saved with weights and by the caller's.
        kwargs: the caller's options, and what timm's factory passes.

    Raises:
        BvtamError: an unknown option, no weights, or weights that do not fit.
    """
    own = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    for key in kwargs:
        if key not in own and key not in _TIMM_OPTIONS:
            raise BvtamError(
                f'{variant} has no option {key!r}{nearest(key, own)}; options: {", ".join(own)}'
            )
    cfg = kwargs.get('pretrained_cfg')
    config: dict[str, Any] = {}
    if isinstance(cfg, str) or (pretrained and not cfg):  # by name: a zoo folder on this machine
        folder = store.find(variant, cfg or '')
        config = store.read_config(folder)
        kwargs['pretrained_cfg'] = {
            **config['pretrained_cfg'],
            'num_classes': config['num_classes'],
            'label_names': config.get('label_names'),
            'source': 'local-dir',
            'file': str(folder),
        }
        kwargs['pretrained_model_args'] = dict(config['model_args'])
        kwargs = {**config['model_args'], **kwargs}
    elif cfg:  # timm's factory has read the config of `local-dir:` or `hf-hub:`, less the clip
        source = cfg if isinstance(cfg, dict) else cfg.to_dict()
        if source.get('source') == 'local-dir':
            config = store.read_config(source['file'])
        elif source.get('source') == 'hf-hub':
            repo_id, revision = hf_split(source['hf_hub_id'])
            path = hf_hub_download(
                repo_id, store.CONFIG, revision=revision, cache_dir=kwargs.get('cache_dir')
            )
            config = store.parse_config(Path(path))
    if pretrained and (cfg := kwargs.get('pretrained_cfg') or {}):
        folder = cfg.get('file') if cfg.get('source') == 'local-dir' else None
        if folder and not (Path(folder) / store.WEIGHTS).is_file():
            raise FileNotFoundError(f'{Path(folder) / store.WEIGHTS} is missing')
    if 'clip' in config:
        clip = ClipConfig.from_dict(config['clip'])

    options = {**(defaults or {}), **kwargs}
    try:
        model = build_model_with_cfg(
            cls,
            variant,
            pretrained,
            pretrained_filter_fn=lambda state, model: strict_filter(filter_fn(state), model),
            feature_cfg={'feature_cls': 'getter', 'out_indices': (0, 1, 2, 3, 4)},
            **options,
        )
    except SafetensorError as error:
        raise BvtamError(f'{kwargs["pretrained_cfg"].get("file", variant)}: {error}') from None
    model.model_name = variant
    model.model_options = {name: options.get(name, own[name]) for name in own}
    model.clip_config = clip
    labels = model.pretrained_cfg.get('label_names')
    same_classes = getattr(model, 'num_classes', None) == model.pretrained_cfg.get('num_classes')
    model.label_names = list(labels) if labels and same_classes else None
    return model


def strict_filter(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict itself, if all of it fits `model`: names, shapes, kinds of number, finite values.

    Only a classifier of another class count and a first convolution of another channel count may
    differ; both are reported, and timm's loader drops the one and adapts the other.

    Raises:
        BvtamError: what does not fit, with the first few names.
    """
    target = model.state_dict()
    classifier = model.get_classifier(name_only=True)
    cfg = model.pretrained_cfg
    head = {f'{classifier}.weight', f'{classifier}.bias'}
    if cfg.get('num_classes') != model.num_classes:
        _logger.warning(
            '%s: the weights have %s classes and the net %s: the classifier %s',
            cfg.get('architecture', 'model'),
            cfg.get('num_classes'),
            model.num_classes,
            'starts anew' if model.num_classes else 'is left out',
        )
    else:
        head = set()
    missing = [n for n in target if n not in state_dict and n not in head]
    unexpected = [n for n in state_dict if n not in target and n not in head]
    if missing or unexpected:
        raise BvtamError(
            'the weights are not those of this net: '
            + '; '.join(
                f'{len(names)} {what}, such as {", ".join(names[:3])}'
                for what, names in (('missing', missing), ('unexpected', unexpected))
                if names
            )
        )
    first_conv = f'{cfg.get("first_conv")}.weight'
    wrong = []
    for name, tensor in state_dict.items():
        if name in head:
            continue
        want = target[name]
        if name == first_conv and tensor.shape[1:2] != want.shape[1:2]:
            _logger.warning(
                '%s: adapted from %d to %d channels', name, tensor.shape[1], want.shape[1]
            )
            shape_fits = tensor.shape[:1] + tensor.shape[2:] == want.shape[:1] + want.shape[2:]
        else:
            shape_fits = tensor.shape == want.shape
        if not shape_fits:
            wrong.append(f'{name} has shape {tuple(tensor.shape)}, not {tuple(want.shape)}')
        elif tensor.is_floating_point() != want.is_floating_point():
            wrong.append(f'{name} has type {tensor.dtype}, not {want.dtype}')
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            wrong.append(f'{name} has values that are not finite')
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise BvtamError(f'the weights do not fit this net: {"; ".join(wrong[:3])}{more}')
    return dict(state_dict)
