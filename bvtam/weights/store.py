"""Where weights lie: a name resolves to a zoo folder `<arch>.<tag>/`, in this order.

1. folders in the directories that `BVTAM_ZOO` lists (separated like PATH),
2. the user's cache, where `bvtam convert` writes,
3. the zoo that ships with the package,
4. the authors' file, where `published.json` has a direct link: downloaded and converted into 2.

A folder is a Hugging Face Hub repo as it stands: `config.json`, `model.safetensors`, `README.md`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import BvtamError, one_line
from ..files import open_regular, replaced
from .table import Entry, entries

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
GOLDEN, SUMS = 'golden.safetensors', 'SHA256SUMS'


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


def folders(arch: str = '', tag: str = '') -> list[Path]:
    """Zoo folders with weights, of any or this arch and tag; a later root's same name is hidden."""
    if any(c in '/\\\0' for c in arch + tag):  # no path: `arch.tag` is one folder's name
        return []
    pattern = f'{glob.escape(arch) or "*"}.{glob.escape(tag) or "*"}'
    found: dict[str, Path] = {}
    for root in roots():
        try:
            matching = sorted(root.glob(pattern))
        except (OSError, ValueError):  # no file system takes such a name
            continue
        for folder in matching:
            # a name that starts with a dot is what a killed process left behind
            if not folder.name.startswith('.') and os.path.isfile(weights_file(folder)):
                found.setdefault(folder.name, folder)
    return list(found.values())


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
    nets that differ by their ClipConfig alone share one file."""
    folder = Path(folder)
    own = folder / WEIGHTS
    if not os.path.isfile(own) and os.path.isfile(folder / CONFIG):
        with suppress(BvtamError):  # a damaged config is told of where it is used
            if name := read_config(folder).get('weights'):
                return folder.parent / name / WEIGHTS
    return own


def where(name: str) -> str:
    """How `arch.tag` comes to a net on this machine now.

    Returns:
        'here' (the user's folders or the package), 'cache', 'download', 'convert by hand', or ''
        where nobody knows the name, or an installation lacks what it should have.
    """
    if found := folders(*name.split('.', 1)):
        return 'cache' if found[0].parent == cache_dir() else 'here'
    entry = entries().get(name)
    if entry is None or entry.ships:
        return ''
    return 'download' if entry.url else 'convert by hand'


# Makes a zoo folder of an entry with a direct link; `download.py` puts itself here on import.
downloaders: list[Callable[[Entry], Path]] = []


def find(arch: str, tag: str = '') -> Path:
    """The zoo folder of `arch.tag`; without a tag, of the only one here or the first in the table,
    which begins with the weights that ship with the package.

    Weights with a direct link are downloaded and converted, once.

    Raises:
        BvtamError: no such weights, several tags and none named, a wrong SHA-256; for weights behind
            a web page, what to do.
    """
    found = {folder.name: folder for folder in folders(arch, tag)}
    published = [e for e in entries().values() if e.arch == arch]
    if not tag and len(found) > 1:
        first = next((e.name for e in published if e.name in found), None)
        if first is None:
            raise BvtamError(
                f'{arch} has weights under several names ({", ".join(found)}): name one'
            )
        found = {first: found[first]}
    if found:
        (folder,) = found.values()
        check_hashes(folder)
        return folder
    wanted = [e for e in published if not tag or e.name == f'{arch}.{tag}']
    if not wanted:
        others = f'; known are {", ".join(e.name for e in published)}' if published else ''
        raise BvtamError(
            f'no weights named {f"{arch}.{tag}" if tag else arch} on this machine{others}: convert the '
            f"authors' checkpoint with `bvtam convert CHECKPOINT --name {arch}.{tag or 'TAG'}`, or "
            f'pass pretrained=False{" without the tag" if tag else ""}'
        )
    entry = wanted[0]
    if entry.ships:
        raise BvtamError(
            f'the weights {entry.name} are missing in {roots()[-1]}: install bvtam again'
        )
    if not entry.url:
        raise BvtamError(
            f'the weights {entry.name} lie behind a web page: open {entry.page} in a browser, save '
            f'{entry.file}, then run `bvtam convert {entry.file} --name {entry.name}`, once'
        )
    return downloaders[0](entry)


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


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
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


def _check_blob(path: Path) -> None:
    """A large file from the Hub lies under its SHA-256; the client itself compares sizes alone."""
    blob = path.resolve()
    if re.fullmatch('[0-9a-f]{64}', blob.name) and (actual := sha256(blob)) != blob.name:
        blob.unlink()
        path.unlink()
        raise BvtamError(f'{path.name} has SHA-256 {actual}, not {blob.name}: removed, try again')


def from_hub(repo_id: str, weights: bool = True, cache: str | os.PathLike | None = None) -> Path:
    """The folder of a Hugging Face Hub repo, `owner/repo` or `owner/repo@revision`, in the Hub's cache.

    Only config.json and model.safetensors are fetched.

    Raises:
        BvtamError: a repo, revision or file that is not there or not allowed, no network.
    """
    name, _, revision = repo_id.partition('@')
    try:
        path = hf_hub_download(name, CONFIG, revision=revision or None, cache_dir=cache)
        if weights:
            file = hf_hub_download(name, WEIGHTS, revision=revision or None, cache_dir=cache)
            _check_blob(Path(file))
    except GatedRepoError:
        why = f'is gated: ask for access at {constants.ENDPOINT}/{name}, then `hf auth login`'
    except RepositoryNotFoundError:
        why = 'is not there, or private: check the name, or log in with `hf auth login`'
    except RevisionNotFoundError:
        why = f'has no revision {revision!r}'
    except LocalEntryNotFoundError:
        why = 'is not in the cache, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)'
    except EntryNotFoundError as error:
        file = WEIGHTS if WEIGHTS in str(error) else CONFIG
        why = f'has no {file}; other formats than safetensors need allow_pickle=True'
    except HFValidationError:
        why = 'is no name of a repo: it should look like owner/repo or owner/repo@revision'
    except HfHubHTTPError as error:
        status = error.response.status_code
        token = '; the token may be wrong: `hf auth login`' if status in (401, 403) else ''
        why = f'cannot be had: the Hub answers {status}{token}'
    except (OSError, ValueError) as error:  # a revision that is no file's name
        why = f'cannot be had: {error}'
    except Exception as error:  # the client's own network errors have no common base
        why = f'cannot be had: the Hub cannot be reached ({error}); try again'
    else:
        return Path(path).parent
    raise BvtamError(f'hf-hub:{repo_id} {why}')
