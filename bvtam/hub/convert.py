"""An authors' checkpoint to a zoo folder: what model it is follows from its names and shapes.

Four releases are read: IBM/bLVNet-TAM, IBM/BigLittleNet, IBM/action-recognition-pytorch and
mit-han-lab/temporal-shift-module; flat or wrapped in `{'state_dict': ...}`, with or without the
`module.` prefix. Checkpoints are pickles: they are read with `weights_only=True`, which runs no code.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from timm.models import list_models, model_entrypoint
from torch import Tensor

from ..clip import ClipConfig
from ..errors import BvtamError, nearest
from ..models import bl_resnet, temporal_resnet
from ..models._checks import strict_filter
from ..weights import resolve, zoo
from ..weights.table import entries
from .publish import save_pretrained

_logger = logging.getLogger('bvtam')

_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # private, yet named in pickles
# numpy scalars that the releases keep beside the weights (best accuracy and the like)
_HARMLESS = [
    (_scalar, 'numpy.core.multiarray.scalar'),
    _scalar,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ('?', *'bhilqBHILQefd')},
]

# Options that leave no trace in weights, so that a caller may tell them
_UNTOLD = ('temporal_pool', 'drop_rate', 'drop_path_rate')

# Where training programs keep weights in a checkpoint; averages first, as timm does.
_CONTAINERS: tuple[str, ...] = ('state_dict_ema', 'ema_state_dict', 'model_ema', 'state_dict')
_CONTAINERS += ('model_state_dict', 'model_state', 'model', 'net', 'network', 'module', 'weights')

# Prefixes of wrappers before every name of a model, averages first, and in the middle of names.
_WRAPPERS: tuple[str, ...] = ('ema_model.', 'model_ema.', 'averaged_model.', 'ema.')
_WRAPPERS += ('module.', 'model.', 'net.', 'network.')
_INSIDE = r'(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'

_RELEASES = {
    'blvnet': 'IBM/bLVNet-TAM',
    'blresnet': 'IBM/BigLittleNet',
    'ibm': 'IBM/action-recognition-pytorch',
    'mit': 'mit-han-lab/temporal-shift-module',
}


class Identity(NamedTuple):
    """The kind of a checkpoint: names that fit, the options that differ from theirs, its release."""

    arch_prefix: str
    options: dict[str, Any]
    release: str
    num_classes: int
    in_chans: int


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict, less any `module.` prefix, and what else the file holds.

    Raises:
        FileNotFoundError: no such file.
        BvtamError: a web page, a damaged or truncated file, code in place of weights, no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} is no file')
    with path.open('rb') as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise BvtamError(f'{path} is empty: download it again')
    if head.startswith((b'<!doctype', b'<html')):
        raise BvtamError(
            f'{path} is a web page, not a checkpoint: open its address in a browser and '
            'save the file that it offers'
        )
    try:
        if path.suffix == '.safetensors':
            content: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
                warnings.simplefilter('ignore')
                content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a hostile file can fail the parser anywhere
        if isinstance(error, pickle.UnpicklingError):
            unsafe = re.search(r'GLOBAL (\S+)', str(error))
            what = f' ({unsafe.group(1)})' if unsafe else ''
            raise BvtamError(
                f'{path} holds more than tensors{what} or is damaged, so it was not loaded: nothing '
                'in it was run'
            ) from None
        reason = str(error).partition('\n')[0].partition('. ')[0] or type(error).__name__
        raise BvtamError(
            f'{path} is damaged, truncated or no checkpoint ({reason}): download it again'
        ) from None
    if not isinstance(content, Mapping):
        raise BvtamError(f'{path} holds a {type(content).__name__}, not a state dict')
    content, meta = _weights_in(content, path)
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state or len(state) != len(content):
        other = [str(k) for k in content if k not in state][:3]
        raise BvtamError(
            f'{path} is no state dict: no tensors under {", ".join(other) or "any key"}'
        )
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise BvtamError(
                f'{path}: {name} is no plain tensor ({tensor.layout}, {tensor.device})'
            )
    return _plain_names(state, path), meta


def _weights_in(content: Mapping[Any, Any], path: Path) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """The table of weights in a training program's checkpoint, and what else is beside it.

    As by timm, an average of the weights comes before the weights that it is of.
    """
    meta: dict[str, Any] = {}
    while found := [key for key in _CONTAINERS if isinstance(content.get(key), Mapping)]:
        if len(found) > 1:
            _logger.warning('%s holds %s: %s is taken', path, ', '.join(found), found[0])
        meta |= {k: v for k, v in content.items() if k not in found}
        content = content[found[0]]
    return content, meta


def _plain_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The names without what DataParallel, torch.compile, Lightning and averages put before or in them.

    Of several models in one table, one is taken: an average before what it is of. What is in none,
    such as the weights of a loss, is left out, with a warning.
    """
    state = {re.sub(_INSIDE, '', name): tensor for name, tensor in state.items()}
    while found := [p for p in _WRAPPERS if any(name.startswith(p) for name in state)]:
        inner = {n.removeprefix(found[0]): t for n, t in state.items() if n.startswith(found[0])}
        left = [n for n in state if not n.startswith(found[0]) and n != 'n_averaged']
        if left:
            _logger.warning('%s: left out beside %s*: %s', path, found[0], ', '.join(left[:3]))
        state = inner
    return state


def identify(state: Mapping[str, Tensor]) -> tuple[Identity, dict[str, Tensor]]:
    """The model that the weights are of, and the same weights under our names.

    Raises:
        BvtamError: none that this package has, with the first few names.
    """
    if any(n.endswith('bl_init.weight') for n in state):
        return _identify_bl(state)
    if any(n.removeprefix('base_model.') == 'layer1.0.bn1.weight' for n in state):
        return _identify_resnet(state)
    raise BvtamError(
        'the checkpoint is of none of the families bLVNet, bL-ResNet, TSN, TSM or TAM-ResNet; '
        f'it has {", ".join(list(state)[:3])}'
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks `prefix`0, `prefix`1, ... there are."""
    numbers = [re.match(rf'{re.escape(prefix)}(\d+)\.', n) for n in state]
    return 1 + max((int(m.group(1)) for m in numbers if m), default=-1)


def _need(state: Mapping[str, Tensor], *names: str) -> None:
    if absent := [n for n in names if n not in state]:
        raise BvtamError(f'the checkpoint lacks {", ".join(absent)}')


def _identify_bl(state: Mapping[str, Tensor]) -> tuple[Identity, dict[str, Tensor]]:
    video = any('tam.' in n or n.startswith(('baseline_model.', 'new_fc.')) for n in state)
    ours = bl_resnet.checkpoint_filter_fn(state)
    first, little, fc = 'stem.conv1.weight', 'stem.little_conv1.weight', 'fc.weight'
    _need(ours, first, little, fc)
    width, in_chans = ours[first].shape[:2]
    deep = [_count(ours, f'layer{i}.big.') for i in (1, 2, 3)]
    shallow = [_count(ours, f'layer{i}.little.') for i in (1, 2, 3)]
    layers = (*(n + 1 for n in deep), _count(ours, 'layer4.'))
    depths = {blocks: f'r{depth}' for depth, blocks in bl_resnet.DEPTHS.items()}
    depths[2, 2, 2, 2] = 'tiny'
    if layers not in depths:
        raise BvtamError(f'no model of this package has stages of {layers} bottlenecks')
    # several betas may give the same blocks; the releases' own comes first
    betas = [b for b in (4, 2, 1, *range(3, 31))
             if [max(1, n // b - 1) for n in layers[:3]] == shallow]  # fmt: skip
    if not betas:
        raise BvtamError(f'no beta gives Little branches of {shallow} bottlenecks')
    alpha = width // ours[little].shape[0]
    options: dict[str, Any] = {'alpha': alpha, 'beta': betas[0], 'width': width}
    usual: dict[str, Any] = {'alpha': 2, 'beta': 4, 'width': 16 if depths[layers] == 'tiny' else 64}
    if video:
        tam = ours.get('stem.temporal.weight')
        options['temporal'] = 'none' if tam is None else 'tam'
        options['temporal_range'] = 3 if tam is None else len(tam)
        usual |= {'temporal': 'tam', 'temporal_range': 3}
    prefix = f'bvtam_{depths[layers]}_' if video else f'blresnet{depths[layers][1:]}'
    options = {k: v for k, v in options.items() if v != usual[k]}
    release = 'blvnet' if video else 'blresnet'
    return Identity(prefix, options, release, len(ours[fc]), in_chans), ours


def _identify_resnet(state: Mapping[str, Tensor]) -> tuple[Identity, dict[str, Tensor]]:
    mit = any(n.startswith('base_model.') for n in state)
    shifted = {n.partition('.conv1.net.')[0].removeprefix('base_model.')
               for n in state if '.conv1.net.' in n}  # fmt: skip
    aggregated = any('tam.' in n for n in state)
    ours = temporal_resnet.checkpoint_filter_fn(state)
    first, fc = 'backbone.conv1.weight', 'backbone.fc.weight'
    _need(ours, first, fc)
    layers = tuple(_count(ours, f'backbone.layer{i}.') for i in (1, 2, 3, 4))
    bottleneck = 'backbone.layer1.0.conv3.weight' in ours
    depths: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}
    if not bottleneck:
        depths = {(2, 2, 2, 2): 18}
    depth = depths.get(layers)
    if depth is None:
        raise BvtamError(f'no model of this package is a ResNet with stages of {layers} blocks')
    family = 'tam' if aggregated else 'tsm' if shifted else 'tsn'
    options: dict[str, Any] = {}
    if aggregated:
        ranges = {len(t) for n, t in ours.items() if n.endswith('temporal.weight')}
        if len(ranges) > 1:
            raise BvtamError(f'the TAMs have different ranges: {sorted(ranges)}')
        if ranges != {3}:
            options['temporal_range'] = ranges.pop()
    if shifted:
        blocks = {every: {f'layer{i + 1}.{j}' for i in range(4) for j in range(0, layers[i], every)}
                  for every in (1, 2)}  # fmt: skip
        every = next((n for n, names in blocks.items() if names == shifted), None)
        if every is None:
            raise BvtamError(
                'the shifted blocks are neither all nor every second one of each stage'
            )
        if every != (2 if depth == 101 else 1):
            options['temporal_every'] = every
    prefix = f'{family}_resnet{depth}_'
    release = 'mit' if mit else 'ibm'
    return Identity(prefix, options, release, len(ours[fc]), ours[first].shape[1]), ours


def _arch(identity: Identity, hint: str) -> str:
    """The registered name: weights do not tell T, so the file's own name may (`f16x2`, `segment8`)."""
    archs = [n for n in list_models() if n.startswith(identity.arch_prefix)]
    if not archs:
        raise BvtamError(f'no registered model is named {identity.arch_prefix}...')
    for frames in re.findall(r'(?:\bf|segment|[-_]f)(\d+(?:x2)?)(?![\dx])', hint):
        for arch in archs:
            if arch.endswith((f'_{frames}', f'_f{frames}')):
                return arch
    return archs[0]


def convert(
    checkpoint: str | os.PathLike[str],
    name: str = '',
    labels: str | os.PathLike[str] = '',
    out: str | os.PathLike[str] = '',
    sha256: str = '',
    **options: Any,
) -> Path:
    """Writes an authors' checkpoint as a zoo folder.

    Args:
        checkpoint: the authors' file.
        name: `ARCH.TAG` or `ARCH` for the result; by default inferred, with tag `converted`.
        labels: a text file with one class name per line, or what else `read_labels` takes.
        out: the folder to write; by default one in the user's zoo, where the name finds it.
        sha256: of the file, where its authors or somebody you trust have published it; checked first.
        options: of the model, where the weights do not tell them (`temporal_pool=True`).

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such checkpoint or label file.
        BvtamError: anything else that is wrong with them, or a name of another family.
    """
    if told := [key for key in options if key not in _UNTOLD]:
        raise BvtamError(
            f'option {told[0]!r} follows from the weights; only {", ".join(_UNTOLD)} can be given'
        )
    arch, _, tag = name.partition('.')
    if tag and not re.fullmatch(r'\w[\w.-]*', tag):
        raise BvtamError(f'--name: a tag is of letters, digits, `_`, `-` and `.`, not {tag!r}')
    if sha256 and os.path.isfile(checkpoint):
        actual = zoo.sha256(Path(checkpoint))
        if actual != sha256.strip().lower():
            raise BvtamError(f'{checkpoint} has SHA-256 {actual}, not {sha256}: nothing was loaded')
    state, meta = read_checkpoint(checkpoint)
    try:
        identity, ours = identify(state)
    except BvtamError as error:
        raise BvtamError(f'{checkpoint}: {error}') from None
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise BvtamError(f'{checkpoint} has tensors of impossible shapes ({error})') from None
    hint = f'{meta.get("arch", "")} {Path(checkpoint).name}'
    variant = _ibm_variant(str(meta.get('arch', ''))) if identity.release == 'ibm' else {}
    options = identity.options | variant | options
    if arch and arch not in list_models():
        raise BvtamError(f'--name: no model is named {arch}{nearest(arch, list_models())}')
    if arch and not arch.startswith(identity.arch_prefix):
        raise BvtamError(f'--name says {arch}, but the checkpoint is of {identity.arch_prefix}*')
    arch = arch or _arch(identity, hint)
    if arch.startswith('tsn_') and identity.release == 'ibm':
        _logger.warning('%s: a plain ResNet by its names; taken as a TSN', checkpoint)
    entry = entries().get(name)
    if entry and entry.num_classes != identity.num_classes:
        raise BvtamError(
            f'{checkpoint} has {identity.num_classes} classes, but {name} has {entry.num_classes}'
        )
    label_names = None
    if labels:
        from ..data.labels import read_labels  # torch.hub does without what reads data

        if not os.path.isfile(labels):
            raise FileNotFoundError(f'{labels} is no file')
        label_names = read_labels(Path(labels))
        if len(label_names) != identity.num_classes:
            raise BvtamError(
                f'{labels} names {len(label_names)} labels, but the checkpoint '
                f'{identity.num_classes} classes'
            )

    cfg: dict[str, Any] = {'num_classes': identity.num_classes, 'architecture': arch}
    if identity.in_chans != 3:  # as the releases treat optical flow
        mean, std = (0.5,) * identity.in_chans, (0.226,) * identity.in_chans
        cfg |= {'input_size': (identity.in_chans, 224, 224), 'mean': mean, 'std': std}
    model = model_entrypoint(arch)(pretrained=False, pretrained_cfg_overlay=cfg, **options)
    if model.clip_config:
        clip = {'colors': 'jpeg'}  # the scripts of all four releases extract JPEG files
        clip |= (entry.clip or {}) if entry else {}
        if identity.in_chans != 3:
            clip |= {'mean': cfg['mean'], 'std': cfg['std']}
        model.clip_config = ClipConfig.from_dict(model.clip_config.to_dict() | clip)
    try:
        model.load_state_dict(strict_filter(ours, model))
    except BvtamError as error:
        raise BvtamError(f'{checkpoint}: {error}') from None
    model.label_names = label_names
    model._model_args = options
    release = _RELEASES[identity.release]
    origin = f'Converted from `{Path(checkpoint).name}`, in the layout of {release}.'
    folder = Path(out) if out else resolve.cache_dir() / f'{arch}.{tag or "converted"}'
    return save_pretrained(model, folder, origin, entry=entry)


def _ibm_variant(arch: str) -> dict[str, Any]:
    """Options without a trace in the weights; the release writes them into the name it stores."""
    if '-ts-avg' in arch:
        raise BvtamError(f'{arch} pools over time by averaging, which no model here does')
    if re.search(r'TAM-b\d+-max', arch):
        raise BvtamError(f'{arch} aggregates by maximum, not by sum, which no model here does')
    return {'temporal_pool': True} if '-ts-max' in arch else {}
