"""From an entry point to a model: options checked, weights found and loaded strictly, ClipConfig set.

timm's builder does the rest (default configs, features_only, adapting classifier and first conv).
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg
from timm.models._builder import build_model_with_cfg
from torch import Tensor, nn

from ..clip import IMAGENET_MEAN, IMAGENET_STD, ClipConfig
from ..errors import BvtamError, nearest, one_line
from ..files import open_regular
from ..weights import resolve, zoo
from ..weights.table import Entry, entries

_logger = logging.getLogger('bvtam')

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

# Types of number that a weight file may hold, as safetensors names them; the model's own numbers are F32 and I64.
_NUMBERS = {
    **dict.fromkeys(('F64', 'F32', 'F16', 'BF16'), torch.float32),
    **dict.fromkeys(('I64', 'I32', 'I16', 'I8', 'U8', 'U16', 'U32', 'U64'), torch.int64),
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
        clip: the variant's ClipConfig, replaced by that of the weights; None for an image model.
        defaults: the variant's options, replaced by those saved with weights and by the caller's.
        kwargs: the caller's options, and what timm's factory passes.

    Raises:
        BvtamError: an unknown option, no weights, or weights that do not fit.
    """
    own = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    allow_pickle = kwargs.pop('allow_pickle', False)
    if entry := _config_only_entry(variant, pretrained, kwargs):
        kwargs |= {
            'pretrained_cfg': None,
            'pretrained_cfg_overlay': {'num_classes': entry.num_classes},
        }
        clip = ClipConfig.from_dict(clip.to_dict() | (entry.clip or {})) if clip else None
    folder = _folder(variant, pretrained, allow_pickle, kwargs)
    config = zoo.read_config(folder) if folder else {}
    if config.get('architecture', variant) != variant:
        raise BvtamError(f'{folder} is of {config["architecture"]}, not of {variant}')
    make: Callable[..., nn.Module] = cls
    saved = {**(defaults or {}), **config.get('model_args', {})}
    _check_options(variant, own, saved)
    options = {**saved, **kwargs}
    _check_options(variant, own, {k: v for k, v in options.items() if k not in _TIMM_OPTIONS})
    if folder:
        options['pretrained_cfg'] = _pretrained_cfg(variant, config, folder, allow_pickle)
        clip = ClipConfig.from_dict(config['clip']) if 'clip' in config else clip
        if pretrained and 'backbone_pretrained' in own:  # its weights are among those of the folder
            options['backbone_pretrained'] = saved['backbone_pretrained'] = False
        if pretrained and zoo.weights_file(folder).is_file():
            cfg = options['pretrained_cfg']
            _check_folder(cls, saved, config, cfg, folder, filter_fn)
            whole = {'num_classes': cfg['num_classes'], 'in_chans': cfg.get('input_size', [3])[0]}
            if all(options.get(key, value) == value for key, value in whole.items()):
                make = partial(_unfilled, cls)
    try:
        model = build_model_with_cfg(
            make,
            variant,
            pretrained,
            pretrained_filter_fn=lambda state, model: strict_filter(filter_fn(state), model),
            feature_cfg={'feature_cls': 'getter', 'out_indices': (0, 1, 2, 3, 4)},
            **options,
        )
    except (SafetensorError, AssertionError, AttributeError, RuntimeError, TypeError) as error:
        if not folder:
            raise
        raise BvtamError(f'{folder} is damaged: {error}') from None
    model.model_name = variant
    model.model_options = {name: options.get(name, own[name]) for name in own}
    model._model_args = {
        name: v for name, v in options.items() if name in own and name != 'backbone_pretrained'
    }
    model.clip_config = clip and clip.with_channels(getattr(model, 'in_chans', len(clip.mean)))
    labels = config.get('label_names')
    same_classes = getattr(model, 'num_classes', None) == config.get('num_classes')
    # names are those of the classes that the weights were trained on: random ones have none
    model.label_names = list(labels) if pretrained and labels and same_classes else None
    return model


def _config_only_entry(variant: str, pretrained: bool, kwargs: dict) -> Entry | None:
    """The published weights that the call names but does not want, where they are not here: their
    classes and clip are known without a download."""
    tag = kwargs.get('pretrained_cfg')
    if pretrained or not isinstance(tag, str) or resolve.folders(variant, tag):
        return None
    return entries().get(f'{variant}.{tag}')


def _folder(variant: str, pretrained: bool, allow_pickle: bool, kwargs: dict) -> Path | None:
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


def _unfilled(cls: type[nn.Module], **options: Any) -> nn.Module:
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


def _pretrained_cfg(variant: str, config: dict, folder: Path, allow_pickle: bool) -> dict[str, Any]:
    """timm's config of the weights in `folder`."""
    cfg, path = config['pretrained_cfg'], folder / zoo.CONFIG
    kinds = get_type_hints(PretrainedCfg)
    for key, value in cfg.items():
        if key not in kinds:
            raise BvtamError(f'{path}: unknown key {key!r} in "pretrained_cfg"')
        if not _fits(value, kinds[key]):
            raise BvtamError(f'{path}: "{key}" in "pretrained_cfg" cannot be {value!r}')
    size = cfg.get('input_size', [3, 224, 224])
    if not 0 < size[0] < 1000:
        raise BvtamError(f'{path}: "input_size" must be [C, H, W], not {size!r}')
    if cfg.get('label_offset'):
        raise BvtamError(
            f'{path}: "label_offset" is {cfg["label_offset"]}, which no model here has'
        )
    cfg = {
        k: v for k, v in cfg.items() if k not in ('url', 'hf_hub_id', 'state_dict', 'custom_load')
    }
    weights = zoo.weights_file(folder)
    return {
        **cfg,
        'architecture': variant,
        'num_classes': config['num_classes'],
        'label_names': config.get('label_names'),
        'source': 'local-dir',
        'file': str(weights.parent),
    }


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the type that an annotation of `PretrainedCfg` names."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, k) for k in inner)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        if inner[1:] in ((), (...,)):  # timm's Tuple[str] too is of any length
            return all(_fits(v, inner[0]) for v in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and 0 <= value <= 1_000_000
    return type(value) is (origin or kind)


def _check_folder(
    cls: type[nn.Module],
    options: dict[str, Any],
    config: dict[str, Any],
    cfg: dict[str, Any],
    folder: Path,
    filter_fn: Filter,
) -> None:
    """The weight file fits the model that the folder's config describes, before the caller changes it.

    Costs no memory for the weights: only the file's header is read.

    Raises:
        BvtamError: it does not, or the config contradicts itself.
    """
    path = folder / zoo.CONFIG
    told = {'num_classes': cfg['num_classes'], 'in_chans': cfg.get('input_size', [3])[0]}
    try:
        with torch.device('meta'):
            model = cls(**{**told, **options})
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        raise BvtamError(f'{path} describes no model: {error}') from None
    found = {
        **options,
        'num_features': model.num_features,
        'classifier': model.get_classifier(True),
    }
    said = {'classifier': cfg.get('classifier'), **told}
    said |= {k: config[k] for k in ('num_features', 'global_pool') if k in config}
    for key, value in said.items():
        if value is not None and found.get(key, value) != value:
            raise BvtamError(f'{path} contradicts itself: {key} is {value!r} and {found[key]!r}')
    first_conv = cfg.get('first_conv')
    if first_conv is not None and f'{first_conv}.weight' not in model.state_dict():
        raise BvtamError(f'{path}: "first_conv" names no convolution of the model: {first_conv!r}')
    model.pretrained_cfg = cfg
    strict_filter(filter_fn(_header(zoo.weights_file(folder))), model)


def _header(path: Path) -> dict[str, Tensor]:
    """Names, shapes and kinds of number in a weight file, as tensors without data."""
    try:
        open_regular(path).close()
    except PermissionError:
        raise BvtamError(f'{path} cannot be read: its owner has not permitted it') from None
    except OSError as error:
        raise BvtamError(f'{path} cannot be read: {error.strerror}') from None
    try:
        with safe_open(path, 'pt') as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            for name, s in slices.items():
                if s.get_dtype() not in _NUMBERS:
                    raise BvtamError(f'{path}: {name} is of type {s.get_dtype()}')
            return {
                name: torch.empty(s.get_shape(), device='meta', dtype=_NUMBERS[s.get_dtype()])
                for name, s in slices.items()
            }
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BvtamError(f'{path} is damaged ({error}): convert or download it again') from None


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
    # a model without data is the one that the weights were saved from: nothing is adapted, or said
    real = not any(tensor.is_meta for tensor in target.values())
    if cfg.get('num_classes') == model.num_classes:
        head = set()
    elif real:
        _logger.warning(
            '%s: the weights have %s classes and the model %s: the classifier %s',
            cfg.get('architecture', 'model'),
            cfg.get('num_classes'),
            model.num_classes,
            'starts anew' if model.num_classes else 'is left out',
        )
    missing = [n for n in target if n not in state_dict and n not in head]
    unexpected = [n for n in state_dict if n not in target and n not in head]
    if missing or unexpected:
        raise BvtamError(
            'the weights are not those of this model: '
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
        if real and name == first_conv and tensor.shape[1:2] != want.shape[1:2]:
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
        elif not tensor.is_meta and not _finite(tensor.to(want.dtype)):
            wrong.append(f'{name} has values that are not finite')
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise BvtamError(f'the weights do not fit this model: {"; ".join(wrong[:3])}{more}')
    return dict(state_dict)


def _finite(tensor: Tensor) -> bool:
    """Whether all values are; a finite sum, which is one fast pass, shows it for almost all."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
