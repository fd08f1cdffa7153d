"""Checkpoints of a training run: whole or not there, without pickles.

A checkpoint is a folder `checkpoints/step-<number>/` of

- `model.safetensors`: the model,
- `ema.safetensors`: its moving average, where the recipe asks for one,
- `optimizer.safetensors`: the optimizer's tensors, named `<parameter>.<key>`,
- `state.json`: everything else, and the SHA-256 of the files above.

It is written under a temporary name and renamed, and taken for whole only if every hash fits.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import BvtamError, shown
from ..files import atomic_folder, read_text, recover
from ..weights.zoo import sha256

log = logging.getLogger('bvtam')

STATE = 'state.json'

# What loading a checkpoint of another run raises.
MISFITS = (LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


def save(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Writes `folder/step-<step>` and removes all but the newest `keep` checkpoints.

    Args:
        tensors: file stem -> named tensors, such as {'model': model.state_dict()}.
        state: what JSON can hold.

    Raises:
        BvtamError: it cannot be written; those written before are as they were.
    """
    target = folder / f'step-{step:08d}'
    try:
        for name in [path.name for path in folder.glob('.step-*')]:
            recover(folder / name[1:].rsplit('.', 2)[0])
        with atomic_folder(target) as new:  # which a resumed run may reach again
            files = {}
            for stem, named in tensors.items():
                path = new / f'{stem}.safetensors'
                contiguous = {name: tensor.detach().contiguous() for name, tensor in named.items()}
                safetensors.torch.save_file(contiguous, path, metadata={'format': 'pt'})
                files[path.name] = sha256(path)
            (new / STATE).write_text(json.dumps({**state, 'files': files}, indent=1))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise BvtamError(f'checkpoint {target} cannot be written: {reason}') from None
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def all_checkpoints(folder: Path) -> list[Path]:
    """By their names, the oldest first, whole or not."""
    return sorted(p for p in folder.glob('step-*') if p.is_dir() and not p.is_symlink())


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; a partial one is passed over with a warning."""
    for path in reversed(all_checkpoints(folder)):
        try:
            read_state(path)
        except BvtamError as error:
            log.warning('%s; looking for the one before', error)
        else:
            return path
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json`, after every file was checked against it.

    Raises:
        BvtamError: a file that is missing, cut off or changed, a value of another kind.
        PermissionError: it may be whole, but not for this user.
    """
    try:
        state = json.loads(read_text(checkpoint / STATE))
        _check(state)
        for name, expected in state.pop('files').items():
            if (checkpoint / name).is_symlink() or not (checkpoint / name).is_file():
                raise ValueError(f'{name} is missing, or no file of its own')
            if sha256(checkpoint / name) != expected:
                raise ValueError(f'{name} has another SHA-256')
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError, BvtamError) as error:
        raise BvtamError(f'checkpoint {checkpoint} is damaged ({error})') from None
    return state


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_table(value: Any, fits: Callable[[Any], bool] = lambda value: True) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _is_line(value: Any) -> bool:
    return _is_table(value, _is_number) and (not value or 'val_top1' in value)


# What `Trainer` saves and reads back: each value must be what the functions here accept.
_SCHEMA: dict[str, Callable[[Any], bool]] = {
    'epoch': _is_count,
    'steps_done': _is_count,
    'step': _is_count,
    'metrics_bytes': _is_count,
    'lr': lambda value: _is_number(value) and math.isfinite(value),
    'pending': lambda value: isinstance(value, list) and all(map(_is_number, value)),
    'best': _is_line,
    'last': _is_line,
    'failed': lambda value: _is_table(value, lambda reason: isinstance(reason, str)),
    'scaler': _is_table,
    'groups': lambda value: isinstance(value, list) and all(map(_is_table, value)),
    'data': _is_table,
    'files': lambda value: (
        _is_table(value, lambda digest: isinstance(digest, str))
        and {'model.safetensors', 'optimizer.safetensors'} <= value.keys()
        and value.keys() <= {f'{stem}.safetensors' for stem in ('model', 'optimizer', 'ema')}
    ),
}


def _check(state: Any) -> None:
    if not isinstance(state, dict):
        raise ValueError(f'{STATE} is no table')
    for key, fits in _SCHEMA.items():
        if key not in state:
            raise ValueError(f'{STATE} lacks {key}')
        if not fits(state[key]):
            raise ValueError(f'{STATE}: {key} cannot be {shown(state[key])}')


def read_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(checkpoint / f'{stem}.safetensors')


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<key>`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f'{names[parameter]}.{key}': torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What its groups hold besides parameters, for JSON: some count their steps there."""
    kinds = (int, float, str, list, tuple)  # others, such as types, do not change in training
    return [
        {k: v for k, v in _plain(group).items() if k != 'params' and isinstance(v, kinds)}
        for group in optimizer.param_groups
    ]


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}


def load_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    groups: Sequence[dict[str, Any]],
) -> None:
    """Inverse of `optimizer_tensors` and `group_settings`.

    Raises:
        LookupError, RuntimeError, TypeError, ValueError: they are not those of this optimizer.
    """
    parameters = dict(model.named_parameters())
    order = [p for group in optimizer.param_groups for p in group['params']]
    places = {parameter: place for place, parameter in enumerate(order)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition('.')
        parameter = parameters[name]
        if value.shape == parameter.shape:  # in its memory format too: sums depend on the order
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        # A count of steps is a tensor in torch, and an integer in timm.
        number = value.ndim == 0 and not value.is_floating_point()
        state.setdefault(places[parameter], {})[what] = value.item() if number else value
    now = optimizer.state_dict()['param_groups']
    for group, saved in zip(now, groups, strict=True):
        for key, value in saved.items():
            if key in group and not _alike(value, _plain(group)[key]):
                raise ValueError(f'{key} of a group cannot be {shown(value)}')
    merged = [group | saved for group, saved in zip(now, groups, strict=True)]
    optimizer.load_state_dict({'state': state, 'param_groups': merged})


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings of an optimizer are of one kind; JSON has lists alone."""
    kinds = ((bool,), (int, float), (str,), (list, tuple))
    return any(type(one) in kind and type(other) in kind for kind in kinds)
