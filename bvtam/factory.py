"""A name to a net with its weights and its ClipConfig."""

from __future__ import annotations

import fnmatch
from typing import Any

import timm
from timm.models import parse_model_name
from torch import nn

from . import models  # noqa: F401  (registers the names)
from .errors import BvtamError, nearest
from .hub import store

_MODULES = ('bl_resnet', 'blvnet', 'temporal_resnet')


def list_models(pattern: str = '*') -> list[str]:
    """Registered names that match `pattern` (wildcards as in a shell), family by family."""
    names = [n for module in _MODULES for n in timm.list_models(module=module)]
    return [n for n in names if fnmatch.fnmatch(n, pattern)]


def list_pretrained(pattern: str = '*') -> list[str]:
    """`arch.tag` of all weights on this machine that match `pattern`, by whole name or arch."""
    names = (folder.name for folder in store.folders())
    return sorted(
        n for n in names
        if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n.partition('.')[0], pattern)
    )  # fmt: skip


def create_model(
    model_name: str = 'bvtam_r50_8x2', pretrained: bool = False, **options: Any
) -> nn.Module:
    """A net by name, as `timm.create_model` gives it, with bad input said in one line.

    Args:
        model_name: `arch`, `arch.tag`, `hf-hub:owner/repo[@revision]` or `local-dir:path`.
        pretrained: load the weights (see `bvtam.hub.store` for where a name finds them).
        options: of the net (`bvtam info NAME` lists them), and timm's `features_only`, ...

    Returns:
        The net, with `clip_config` (ClipConfig, None for image nets) and `label_names`.

    Raises:
        BvtamError: an unknown name or option, weights that are missing or do not fit.
        FileNotFoundError: a folder that is not there.
    """
    try:
        source, identifier = parse_model_name(model_name)
    except ValueError as error:
        raise BvtamError(str(error)) from None
    arch = identifier.partition('.')[0]
    if source == 'local-dir':
        arch = store.read_config(identifier)['architecture']
    if source != 'hf-hub' and arch not in list_models():
        raise BvtamError(
            f'unknown model {arch!r}{nearest(arch, list_models())}; `bvtam list` shows all'
        )
    return timm.create_model(model_name, pretrained=pretrained, **options)


def describe(model_name: str) -> dict[str, Any]:
    """What `bvtam info` shows of a net; no weights are loaded.

    Returns:
        `{name, architecture, params, num_classes, num_features, input, pretrained, options, clip}`;
        `options` are the class's own with their values here, `pretrained` where weights lie or None.

    Raises:
        BvtamError, FileNotFoundError: as `create_model`.
    """
    model = create_model(model_name)
    arch = model.model_name
    if model.pretrained_cfg.get('source') == 'local-dir':
        weights = str(model.pretrained_cfg['file'])
    else:
        weights = ', '.join(f.name for f in store.folders(arch)) or None
    options = model.model_options | {'num_classes': model.num_classes, 'in_chans': model.in_chans}
    shape = ('B', model.in_chans, 'H', 'W')
    if model.input_kind == 'clip':
        shape = (*shape[:2], 'T', *shape[2:])
    return {
        'name': model_name,
        'architecture': arch,
        'params': sum(p.numel() for p in model.parameters()),
        'num_classes': model.num_classes,
        'num_features': model.num_features,
        'input': f'({", ".join(map(str, shape))})',
        'pretrained': weights,
        'options': options,
        'clip': model.clip_config.to_dict() if model.clip_config else None,
    }
