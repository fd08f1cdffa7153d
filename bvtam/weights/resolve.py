"""From a name to weights: which zoo folder (`zoo.py`) a name means, and how it comes to be there.

`arch.tag` is the first folder `<arch>.<tag>/` with weights (`find`) of

1. the directories that `BVTAM_ZOO` lists (separated like PATH),
2. the user's cache, where `bvtam convert` writes,
3. the zoo that ships with the package,
4. the authors' file, where `published.json` has a direct link: `hub/download.py` downloads and converts
   it into 2, once. Behind a web page a person has to save it: the error says how.

`arch` alone is its only weights here, or the first of them in the table. `hf-hub:owner/repo` is a
folder in the Hub's cache (`from_hub`). A path, also that of a run, is one by itself; `factory.py` knows
the kinds of name apart, and `models/_build.py` loads what the folder holds.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path

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

from ..errors import BvtamError
from .table import Entry, entries
from .zoo import CONFIG, WEIGHTS, check_hashes, sha256, weights_file

# Makes a zoo folder of an entry with a direct link. `factory.py` sets it: a download ends in a
# conversion, which needs the models, and those import this package.
downloader: Callable[[Entry], Path] | None = None


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


def where(name: str) -> str:
    """How `arch.tag` comes to a model on this machine now.

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
            f'ask for a model without them: pretrained=False{" without the tag" if tag else ""}'
        )
    entry = wanted[0]
    if entry.ships:
        raise BvtamError(
            f'the weights {entry.name} are missing in {roots()[-1]}: install bvtam again'
        )
    if not entry.url:
        raise BvtamError(
            f'the weights {entry.name} are behind a web page: open {entry.page} in a browser, save '
            f'{entry.file}, then run `bvtam convert {entry.file} --name {entry.name}`, once'
        )
    assert downloader, 'bvtam.factory sets it'
    return downloader(entry)


def _check_blob(path: Path) -> None:
    """A large file from the Hub lies under its SHA-256; the client itself compares sizes alone."""
    blob = path.resolve()
    if re.fullmatch('[0-9a-f]{64}', blob.name) and (actual := sha256(blob)) != blob.name:
        blob.unlink()
        path.unlink()
        raise BvtamError(f'{path.name} has SHA-256 {actual}, not {blob.name}: removed, try again')


def from_hub(repo_id: str, weights: bool = True, cache: str | Path | None = None) -> Path:
    """The folder of a Hugging Face Hub repo, `owner/repo` or `owner/repo@revision`, in the Hub's cache.

    Only config.json and, with `weights`, model.safetensors are fetched.

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
