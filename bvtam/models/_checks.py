"""Whether the config and the weights of a zoo folder, which came from somebody, fit the model they describe.

Everything is checked before it is used, and the weights by their file's header before they are read.
"""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg
from torch import Tensor

from ..errors import BvtamError
from ..files import open_regular
from ..weights import zoo
from ._zoo_model import ZooModel

_logger = logging.getLogger('bvtam')

# Types of number that a weight file may hold, as safetensors names them; the model's own numbers are F32 and I64.
_NUMBERS = {
    **dict.fromkeys(('F64', 'F32', 'F16', 'BF16'), torch.float32),
    **dict.fromkeys(('I64', 'I32', 'I16', 'I8', 'U8', 'U16', 'U32', 'U64'), torch.int64),
}

Filter = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def pretrained_cfg(variant: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
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
    elsewhere = {'url', 'hf_hub_id', 'state_dict', 'custom_load'}
    return {
        **{k: v for k, v in cfg.items() if k not in elsewhere},
        'architecture': variant,
        'num_classes': config['num_classes'],
        'label_names': config.get('label_names'),
        'source': 'local-dir',
        'file': str(zoo.weights_file(folder).parent),
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


def check_folder(
    cls: type[ZooModel],
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
    found = options | {'num_features': model.num_features}
    found |= {'classifier': model.get_classifier(name_only=True)}
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


def strict_filter(state_dict: Mapping[str, Tensor], model: ZooModel) -> dict[str, Tensor]:
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
