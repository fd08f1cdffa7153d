"""From an entry point to a model: options checked, weights found and loaded strictly, ClipConfig set.

timm's builder does the rest (default configs, features_only, adapting classifier and first conv).
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from timm.models._builder import build_model_with_cfg

from ..clip import IMAGENET_MEAN, IMAGENET_STD, ClipConfig
from ..errors import BvtamError, nearest, one_line
from ..weights import resolve, zoo
from ..weights.table import Entry, entries
from ._checks import Filter, check_folder, pretrained_cfg, strict_filter
from ._zoo_model import ZooModel

_logger = logging.getLogger('bvtam')

Model = TypeVar('Model', bound=ZooModel)

# The options of timm's factory and builder, besides the class's own.
_TIMM_OPTIONS = {
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_model_args',
    'cache_dir',
    'features_only',
    'out_indices',
}

# Beyond these an option is a mistake, or a config.json made to exhaust the machine.
_LARGEST = {
    'layers': 64,
    'in_chans': 1000,
    'alpha': 64,
    'beta': 200,
    'width': 4096,
    'temporal_range': 199,
    'temporal_every': 200,
    'drop_rate': 1,
    'drop_path_rate': 1,
}


def default_cfg(first_conv: str, classifier: str, num_classes: int) -> dict[str, Any]:
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
    }


def check_pool(num_classes: int, global_pool: str) -> None:
    if num_classes and not global_pool:
        raise BvtamError("global_pool='' needs num_classes=0: there is nothing to classify")


def build(
    cls: type[Model],
    variant: str,
    pretrained: bool,
    filter_fn: Filter,
    clip: ClipConfig | None = None,
    defaults: Mapping[str, Any] | None = None,
    stages: int = 5,
    **kwargs: Any,
) -> Model:
    """Builds `variant`, an instance of `cls`, with timm's builder.

    Args:
        filter_fn: authors' names to ours; a state dict that has ours already passes through.
        clip: the variant's ClipConfig, replaced by that of the weights; None for an image model.
        defaults: the variant's options, replaced by those saved with weights and by the caller's.
        stages: entries of the model's `feature_info`; `features_only=True` gives all of them.
        kwargs: the caller's options, and what timm's factory passes.

    Raises:
        BvtamError: an unknown option, no weights, or weights that do not fit.
    """
    own = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    allow_pickle = kwargs.pop('allow_pickle', False)
    if entry := _config_only_entry(variant, pretrained, kwargs):
        overlay = {'num_classes': entry.num_classes}
        kwargs |= {'pretrained_cfg': None, 'pretrained_cfg_overlay': overlay}
        clip = ClipConfig.from_dict(clip.to_dict() | (entry.clip or {})) if clip else None
    folder = _folder(variant, pretrained, allow_pickle, kwargs)
    config = zoo.read_config(folder) if folder else {}
    if config.get('architecture', variant) != variant:
        raise BvtamError(f'{folder} is of {config["architecture"]}, not of {variant}')
    make: Callable[..., Model] = cls
    saved = {**(defaults or {}), **config.get('model_args', {})}
    _check_options(variant, own, saved)
    options = {**saved, **kwargs}
    _check_options(variant, own, {k: v for k, v in options.items() if k not in _TIMM_OPTIONS})
    if folder:
        options['pretrained_cfg'] = pretrained_cfg(variant, config, folder)
        clip = ClipConfig.from_dict(config['clip']) if 'clip' in config else clip
        if pretrained and 'backbone_pretrained' in own:  # its weights are among those of the folder
            options['backbone_pretrained'] = saved['backbone_pretrained'] = False
        if pretrained and zoo.weights_file(folder).is_file():
            cfg = options['pretrained_cfg']
            check_folder(cls, saved, config, cfg, folder, filter_fn)
            whole = {'num_classes': cfg['num_classes'], 'in_chans': cfg.get('input_size', [3])[0]}
            if all(options.get(key, value) == value for key, value in whole.items()):
                make = partial(_unfilled, cls)
    try:
        model: Model = build_model_with_cfg(
            make,
            variant,
            pretrained,
            pretrained_filter_fn=lambda state, model: strict_filter(filter_fn(state), model),
            feature_cfg={'feature_cls': 'getter', 'out_indices': tuple(range(stages))},
            **options,
        )
    except (SafetensorError, AssertionError, AttributeError, RuntimeError, TypeError) as error:
        if not folder:
            raise
        raise BvtamError(f'{folder} is damaged: {error}') from None
    if isinstance(model, cls):  # and not a wrapper around its features
        for name, usual in (('input_kind', 'clip' if clip else 'image'), ('frames_per_step', 1)):
            if not hasattr(model, name):
                setattr(model, name, usual)
    model.model_name = variant
    model.model_options = {name: options.get(name, own[name]) for name in own}
    kept = own.keys() - {'backbone_pretrained'}
    model._model_args = {name: value for name, value in options.items() if name in kept}
    model.clip_config = clip and clip.with_channels(getattr(model, 'in_chans', len(clip.mean)))
    labels = config.get('label_names')
    same_classes = getattr(model, 'num_classes', None) == config.get('num_classes')
    # names are those of the classes that the weights were trained on: random ones have none
    model.label_names = list(labels) if pretrained and labels and same_classes else None
    return model


def _config_only_entry(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry | None:
    """The published weights that the call names but does not want, where they are not here: their
    classes and clip are known without a download."""
    tag = kwargs.get('pretrained_cfg')
    if pretrained or not isinstance(tag, str) or resolve.folders(variant, tag):
        return None
    return entries().get(f'{variant}.{tag}')


def _folder(
    variant: str, pretrained: bool, allow_pickle: bool, kwargs: dict[str, Any]
) -> Path | None:
    """The zoo folder that the call names, if any: by `arch.tag`, `local-dir:` or `hf-hub:`.

    Raises:
        BvtamError, FileNotFoundError: it cannot be had, or has no safetensors.
    """
    cfg = kwargs.get('pretrained_cfg')
    if isinstance(cfg, str) or (pretrained and not cfg):
        return resolve.find(variant, cfg or '')
    source = (cfg if isinstance(cfg, dict) else cfg.to_dict()) if cfg else {}
    if source.get('source') == 'hf-hub':
        cache = kwargs.get('cache_dir')
        return resolve.from_hub(source['hf_hub_id'], pretrained and not allow_pickle, cache)
    if source.get('source') != 'local-dir':
        return None
    folder = Path(source['file'])
    weights = zoo.weights_file(folder)
    if pretrained and not allow_pickle and not os.path.isfile(weights):
        raise FileNotFoundError(one_line(f'{weights} is missing'))
    return folder


def _unfilled(cls: type[Model], **options: Any) -> Model:
    """A model with memory but without values, for weights that fill all of it: no time for an init."""
    with torch.device('meta'):
        model = cls(**options)
    if len(list(model.buffers())) + len(list(model.parameters())) != len(model.state_dict()):
        return cls(**options)  # it has tensors that no weight file holds
    return model.to_empty(device='cpu')


def _check_options(variant: str, own: dict[str, Any], options: dict[str, Any]) -> None:
    """Every option is one, and of the type and size that its default stands for."""
    for key, value in options.items():
        if key not in own:
            raise BvtamError(
                f'{variant} has no option {key!r}{nearest(key, own)}; options: {", ".join(own)}'
            )
        kind = type(own[key])
        values = list(value) if kind is tuple and isinstance(value, (list, tuple)) else [value]
        plain = {float: (int, float), tuple: (int,)}.get(kind, (kind,))
        if any(type(v) not in plain for v in values) or (kind is tuple and len(values) != 4):
            wanted = 'four integers' if kind is tuple else f'{kind.__name__}'
            raise BvtamError(f'{variant}: {key} must be {wanted}, not {value!r}')
        largest = _LARGEST.get(key, 1_000_000)
        if any(type(v) is not str and not 0 <= v <= largest for v in values):
            raise BvtamError(f'{variant}: {key} must be from 0 to {largest}, not {value!r}')
