"""Where weights lie: a name resolves to a zoo folder `<arch>.<tag>/`, in this order.

1. folders in the directories that `BVTAM_ZOO` lists (separated like PATH),
2. the user's cache, where `bvtam convert` writes,
3. the zoo that ships with the package.

A folder is a Hugging Face Hub repo as it stands: `config.json`, `model.safetensors`, `README.md`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import BvtamError

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'


def cache_dir() -> Path:
    """The user's zoo: `bvtam/` in torch.hub's directory (so TORCH_HOME and XDG_CACHE_HOME count)."""
    return Path(torch.hub.get_dir()) / 'bvtam'


def roots() -> list[Path]:
    """Directories of zoo folders, in the order of resolution."""
    named = [Path(p) for p in os.environ.get('BVTAM_ZOO', '').split(os.pathsep) if p]
    package = Path(__file__).parents[1]
    # in a wheel the zoo lies inside the package, in a checkout beside it
    shipped = next(
        (z for z in (package / 'zoo', package.parent / 'zoo') if z.is_dir()), package / 'zoo'
    )
    return [*named, cache_dir(), shipped]


def folders(arch: str = '*', tag: str = '*') -> list[Path]:
    """Zoo folders with weights whose name matches, first root first; a later same name is hidden."""
    found: dict[str, Path] = {}
    for root in roots():
        for weights in sorted(root.glob(f'{arch}.{tag}/{WEIGHTS}')):
            found.setdefault(weights.parent.name, weights.parent)
    return list(found.values())


def find(arch: str, tag: str = '') -> Path:
    """The zoo folder of `arch.tag`, or of the only tag that `arch` has.

    Raises:
        BvtamError: no such weights on this machine, or several tags and none named.
    """
    found = folders(arch, tag or '*')
    if tag and found:
        return found[0]
    if len(found) == 1:
        return found[0]
    name = f'{arch}.{tag}' if tag else arch
    if found:
        tags = ', '.join(f.name for f in found)
        raise BvtamError(f'{arch} has weights under several names ({tags}): name one')
    raise BvtamError(
        f"no weights named {name} on this machine: convert the authors' checkpoint with "
        f'`bvtam convert CHECKPOINT --name {arch}.{tag or "TAG"}`, or pass pretrained=False'
    )


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """`config.json` of a zoo folder.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        BvtamError: not JSON, or without the name of an architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; expected one with {CONFIG} and {WEIGHTS}')
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; `bvtam convert` writes it')
    return parse_config(path)


def parse_config(path: Path) -> dict[str, Any]:
    """A `config.json` as a dict, with the keys that everything else relies on checked."""
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BvtamError(f'{path} is not JSON: {error}') from None
    if not isinstance(config, dict) or not isinstance(config.get('architecture'), str):
        raise BvtamError(f'{path} names no "architecture"')
    for key, kind in (('pretrained_cfg', dict), ('model_args', dict), ('num_classes', int)):
        if not isinstance(config.setdefault(key, kind()), kind):
            raise BvtamError(f'{path}: "{key}" must be {kind.__name__}, not {config[key]!r}')
    return config
