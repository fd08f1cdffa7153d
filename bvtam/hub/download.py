"""The authors' files with a direct link: downloaded once, checked, converted into the user's zoo."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from ..errors import BvtamError
from ..files import write_file
from ..weights import resolve, zoo
from ..weights.table import Entry
from .convert import convert


def fetch(entry: Entry) -> Path:
    """The zoo folder of `entry` in the user's cache, made from the authors' file if it is not there.

    Several processes that ask at the same time wait for the one that downloads.

    Raises:
        BvtamError: no network, a transfer that does not end, a wrong SHA-256, an unusable file, a
            cache that cannot be written.
    """
    folder = resolve.cache_dir() / entry.name
    downloads = resolve.cache_dir() / 'downloads'
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / f'{entry.file}.lock'):
            if not (folder / zoo.WEIGHTS).is_file():
                convert(_download(entry, downloads / entry.file), name=entry.name, out=folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not error.strerror:
            raise
        raise BvtamError(
            f'{error.filename or downloads}: {error.strerror}; make room or set TORCH_HOME to a '
            'folder that can be written'
        ) from None
    return folder


def _download(entry: Entry, path: Path) -> Path:
    """`path`, downloaded unless it is there; a cut transfer goes on where it stopped."""
    if not path.is_file():
        if constants.is_offline_mode():
            raise BvtamError(
                f'{entry.name} has to be downloaded from {entry.url}, but HF_HUB_OFFLINE is set'
            )
        part = path.with_name(f'{path.name}.incomplete')
        with part.open('ab') as file:
            try:
                http_get(entry.url, file, resume_size=file.tell(), displayed_filename=path.name)
            except HfHubHTTPError as error:
                if error.response.status_code == 416:  # more than the whole file is there
                    part.unlink()
                raise BvtamError(
                    f'{entry.url} answers {error.response.status_code}; try again later, or save '
                    f'the file yourself and run `bvtam convert FILE --name {entry.name}`'
                ) from None
            except OSError as error:
                if error.strerror:  # of this machine: a full disk
                    raise
                part.unlink()
                raise BvtamError(f'{entry.url}: {_line(error)}') from None
            except Exception as error:  # the client's own network errors have no common base
                raise BvtamError(
                    f'{entry.url} cannot be reached ({_line(error)}); what came is kept, try again'
                ) from error
            file.flush()
            os.fsync(file.fileno())
        _check(entry, part)
        # before the file has its name: a kill in between must not leave one without a hash
        if not _record(entry).exists():
            write_file(_record(entry), zoo.sha256(part))
        part.rename(path)
    else:
        _check(entry, path)
    return path


def _record(entry: Entry) -> Path:
    """Where the SHA-256 of the first download is kept, apart from the file and what is made of it."""
    return resolve.cache_dir() / 'trusted' / f'{entry.file}.sha256'


def _check(entry: Entry, path: Path) -> None:
    """The published SHA-256 counts, or else that of the first download."""
    record, first = _record(entry), ''
    expected = entry.sha256 or (record.read_text().strip() if record.is_file() else '')
    if expected and (actual := zoo.sha256(path)) != expected:
        path.unlink()
        if not entry.sha256:
            first = f' as the first time (if its authors have changed it, remove {record})'
        raise BvtamError(
            f'{entry.url} gave a file with SHA-256 {actual}, not {expected}{first}: not used, and '
            'removed'
        )


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
