"""A zoo folder: `config.json`, `model.safetensors`, `README.md`, as a Hugging Face Hub repo has them.

The config is checked here before anybody believes it, and files against the folder's `SHA256SUMS`.
Which folder a name means: `resolve.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BvtamError, one_line
from ..files import open_regular, replaced

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
GOLDEN, SUMS = 'golden.safetensors', 'SHA256SUMS'


def model_folder(folder: str | os.PathLike[str]) -> Path:
    """The zoo folder that `folder` is, or that lies in it as the best or the last of a training run.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(folder)
    for inner in (folder, folder / 'best', folder / 'last'):
        if os.path.isfile(inner / CONFIG):
            return inner
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            one_line(f'{folder}: no such folder; a repo on the Hub is hf-hub:owner/repo')
        )
    raise FileNotFoundError(
        one_line(f'{folder} holds no model: expected {CONFIG}, best/ or last/ in it')
    )


def weights_file(folder: str | os.PathLike[str]) -> Path:
    """The weights of a zoo folder, which may be those of the folder beside it that its config names:
    models that differ by their ClipConfig alone share one file."""
    folder = Path(folder)
    own = folder / WEIGHTS
    if not os.path.isfile(own) and os.path.isfile(folder / CONFIG):
        with suppress(BvtamError):  # a damaged config is told of where it is used
            if name := read_config(folder).get('weights'):
                return folder.parent / name / WEIGHTS
    return own


def sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check_hashes(folder: Path) -> None:
    """Every file that the folder's `SHA256SUMS` names is as it was written; without one, nothing is.

    Raises:
        BvtamError: a file that is missing or has another hash, a list that leaves the weights out.
    """
    sums = folder / SUMS
    if not os.path.lexists(sums):
        return
    try:
        with open_regular(sums) as file:
            lines = file.read(100_000).decode('utf-8').splitlines()
    except (OSError, ValueError, BvtamError) as error:
        raise BvtamError(f'{sums} cannot be read: {error}') from None
    if not any(line.endswith(f'  {WEIGHTS}') for line in lines):
        raise BvtamError(f'{sums} does not name {WEIGHTS}: convert or download it again')
    for line in lines:
        expected, _, name = line.partition('  ')
        path = weights_file(folder) if name == WEIGHTS else folder / Path(name).name
        if not path.is_file():
            raise BvtamError(f'{path} is missing: convert or download it again')
        if (actual := sha256(path)) != expected:
            raise BvtamError(
                f'{path} has SHA-256 {actual}, not {expected}: convert or download it again'
            )


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'{next(k for k in table if keys.count(k) > 1)!r} is there twice')
    return table


def _no_number(name: str) -> None:
    raise ValueError(f'{name} is no number')


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`config.json` of a zoo folder.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        BvtamError: not JSON, without the name of an architecture, a value of a wrong type.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path's, False for a name that no file system takes
        if left := replaced(folder):
            raise FileNotFoundError(
                one_line(
                    f'{folder}: a program was killed while it replaced it; rename {left} to it'
                )
            )
        raise FileNotFoundError(
            one_line(f'{folder} is no folder; expected one with {CONFIG} and {WEIGHTS}')
        )
    path = folder / CONFIG
    if not os.path.isfile(path):
        raise FileNotFoundError(one_line(f'{path} is missing; `bvtam convert` writes it'))
    if path.stat().st_size > 2_000_000:
        raise BvtamError(f'{path} is {path.stat().st_size:,} bytes long, which no config is')
    try:
        text = path.read_text(encoding='utf-8')
        if (nested := text.count('[') + text.count('{')) > 100_000:  # Python is slow at them
            raise ValueError(f'it has {nested:,} lists and tables')
        config = json.loads(text, object_pairs_hook=_table, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BvtamError(f'{path} is not JSON: {error}') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise BvtamError(f'{path} names no "architecture"')
    for key in ('pretrained_cfg', 'model_args'):
        if not isinstance(config.setdefault(key, {}), dict):
            raise BvtamError(f'{path}: "{key}" must be a table, not {config[key]!r}')
    for key, kind in (('num_features', int), ('global_pool', str)):
        if key in config and type(config[key]) is not kind:
            raise BvtamError(f'{path}: "{key}" must be {kind.__name__}, not {config[key]!r}')
    shared = config.get('weights', 'none')
    if type(shared) is not str or not re.fullmatch(r'\w[\w.-]*', shared):
        raise BvtamError(f'{path}: "weights" must name a folder beside it, not {shared!r}')
    classes, labels = config.get('num_classes'), config.get('label_names')
    if type(classes) is not int or not 0 <= classes <= 1_000_000:
        raise BvtamError(f'{path}: "num_classes" must be a number of classes, not {classes!r}')
    if labels is not None and not (
        isinstance(labels, list) and len(labels) == classes and all(type(n) is str for n in labels)
    ):
        raise BvtamError(f'{path}: "label_names" must be {classes} names')
    return config
