"""A name to a model with its weights and its ClipConfig."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import model_entrypoint, parse_model_name
from torch import nn

from . import models
from .errors import BvtamError, nearest
from .hub import download
from .hub.cards import published_model
from .weights import resolve, zoo
from .weights.table import Entry, entries

log = logging.getLogger('bvtam')

if hasattr(os, 'register_at_fork'):
    # The threads that torch has started, at the latest for a model's first weights, are not in a
    # forked process, which would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

resolve.downloader = download.fetch


def list_models(pattern: str = '*') -> list[str]:
    """Registered names that match `pattern` (wildcards as in a shell), family by family."""
    names = [n for family in models.FAMILIES for n in timm.list_models(module=family)]
    ours = f'{models.__name__}.'  # timm may have a module of the same name
    names = [n for n in names if model_entrypoint(n).__module__.startswith(ours)]
    return [n for n in names if fnmatch.fnmatch(n, pattern)]


def list_pretrained(pattern: str = '*') -> list[str]:
    """`arch.tag` of all weights that match `pattern`, by whole name or by arch.

    They are those on this machine and all published ones; `bvtam.weights.resolve.where(name)` tells how
    each comes to a model here.
    """
    names = dict.fromkeys([*entries(), *(folder.name for folder in resolve.folders())])
    order = {arch: i for i, arch in enumerate(list_models())}
    found = [
        n
        for n in names
        if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n.partition('.')[0], pattern)
    ]
    return sorted(found, key=lambda n: order.get(n.partition('.')[0], len(order)))


def create_model(
    model_name: str | os.PathLike[str] = 'bvtam_r50_8x2',
    pretrained: bool | None = None,
    **options: Any,
) -> nn.Module:
    """A model by name, as `timm.create_model` gives it, with bad input said in one line.

    Args:
        model_name: `arch`, `arch.tag`, `hf-hub:owner/repo[@revision]`, `local-dir:path`, or the path
            of a zoo folder or of a training run.
        pretrained: load the weights (see `bvtam.weights.resolve` for where a name finds them). Left out,
            those of a folder or a repo are loaded, since nothing else is meant by naming one, and of
            an `arch` or `arch.tag` none, as by timm.
        options: of the model (`bvtam info NAME` lists them); timm's `features_only`, `out_indices`,
            `cache_dir`; `allow_pickle=True` for a Hub repo that has other formats than safetensors.

    Returns:
        The model, with `clip_config` (ClipConfig, None for image models) and `label_names`.

    Raises:
        BvtamError: an unknown name or option, weights that are missing or do not fit.
        FileNotFoundError: a folder that is not there.
    """
    model_name = model_source(model_name)
    unsaid = pretrained is None
    if unsaid:
        pretrained = ':' in model_name
    weights = pretrained and not options.get('allow_pickle')
    arch, cfg = _locate(model_name, weights, options.get('cache_dir'))
    make = _entry_point(arch)
    if unsaid and not pretrained and names_weights(model_name):
        log.warning('%s: random weights, since pretrained=True is not given', model_name)
    options = {k: v for k, v in options.items() if v is not None}  # as timm's factory does
    return make(pretrained=pretrained, pretrained_cfg=cfg or None, **options)


def _entry_point(arch: str) -> Callable[..., nn.Module]:
    if arch not in list_models():
        raise BvtamError(
            f'unknown model {arch!r}{nearest(arch, list_models())}; `bvtam list` shows all'
        )
    return model_entrypoint(arch)


def model_source(source: str | os.PathLike[str]) -> str:
    """A name as timm has it (`arch`, `arch.tag`, `local-dir:`, `hf-hub:`), also for the path of a zoo
    folder or of a training run, whose best model it is then.

    Raises:
        FileNotFoundError: a path where no model is.
    """
    text = os.fspath(source)
    if not isinstance(source, str):
        return f'local-dir:{zoo.model_folder(source)}'
    if text.startswith('local-dir:'):
        folder = text.removeprefix('local-dir:')
        return f'local-dir:{zoo.model_folder(folder)}' if os.path.isdir(folder) else text
    known = text.partition('.')[0] in list_models()
    if known and ('.' not in text or resolve.where(text)):
        return text
    if os.path.isdir(text) or (os.sep in text and ':' not in text):
        return f'local-dir:{zoo.model_folder(text)}'
    return text


def names_weights(model_name: str | os.PathLike[str]) -> bool:
    """Whether it names weights, and not an architecture alone."""
    return model_source(model_name) not in list_models()


def input_kind(model_name: str) -> str:
    """'image' or 'clip': the input of a model by its name, as `create_model` takes it.

    Raises:
        BvtamError, FileNotFoundError: as `create_model`.
    """
    with torch.device('meta'):
        return _entry_point(_locate(model_name)[0])().input_kind


def _locate(model_name: str, weights: bool = False, cache: Any = None) -> tuple[str, Any]:
    """The architecture and timm's `pretrained_cfg` of a name."""
    try:
        source, identifier = parse_model_name(model_source(model_name))
    except ValueError as error:
        raise BvtamError(str(error)) from None
    if not source:
        arch, _, tag = identifier.partition('.')
        return arch, tag
    folder = resolve.from_hub(identifier, weights, cache) if source == 'hf-hub' else identifier
    return zoo.read_config(folder)['architecture'], {'source': 'local-dir', 'file': str(folder)}


def describe(model_name: str) -> dict[str, Any]:
    """All that `bvtam info` shows of a model; no weights are loaded.

    Returns:
        `{name, architecture, params, num_classes, num_features, input, weights, published, options,
        clip}`: `options` are the class's own with their values here; `weights` tells where those of
        this name come from ('here', 'cache', 'download', 'convert by hand'), or those of this
        architecture by name; `published` has origin, licence, dataset, metrics with their views and
        costs, or is None.

    Raises:
        BvtamError, FileNotFoundError: as `create_model`.
    """
    source = model_source(model_name)
    entry = entries().get(model_name)
    if entry and not resolve.folders(*model_name.split('.', 1)):  # known, but not here
        model = published_model(entry)
    else:
        model = create_model(source, pretrained=False)
    arch = model.model_name
    if model.pretrained_cfg.get('source') == 'local-dir':
        weights = {
            'from': resolve.where(model_name) or 'here',
            'folder': model.pretrained_cfg['file'],
        }
    else:
        weights = {n: resolve.where(n) for n in list_pretrained(f'{arch}.*')}
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
        'weights': weights,
        'published': _published(entry) if entry else None,
        'options': options,
        'clip': model.clip_config.to_dict() if model.clip_config else None,
    }


def _published(entry: Entry) -> dict[str, Any]:
    keys = ('release', 'code', 'paper', 'licence', 'dataset', 'metrics', 'costs', 'url', 'page')
    return {key: getattr(entry, key) for key in keys if getattr(entry, key)}
