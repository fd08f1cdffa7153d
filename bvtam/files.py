"""Files that are written whole or not at all, and read only where they have an end."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from .errors import BvtamError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty file beside `path`, whose folder is made if need be; it takes the name of
    `path`, and is on disk, if the block succeeds.

    Raises:
        BvtamError: `path` cannot be written; an OSError inside the block counts as that.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f'.{path.name[-100:]}.'
        descriptor, name = tempfile.mkstemp(path.suffix[-100:], prefix, path.parent)
        try:
            yield Path(name)
            os.fsync(descriptor)
            os.chmod(name, 0o644)
            os.replace(name, path)
        finally:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise BvtamError(f'{path} cannot be written: {error.strerror or error}') from None


def write_file(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes `path` atomically; text as UTF-8.

    Raises:
        BvtamError: it cannot be written.
    """
    with atomic_file(path) as new:
        new.write_bytes(data.encode() if isinstance(data, str) else data)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read its bytes; what might give nothing, or never end, is not opened.

    Raises:
        BvtamError: it is a folder, a pipe, a socket or a device.
        OSError: it is not there, or cannot be opened.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: 'folder', stat.S_IFIFO: 'pipe', stat.S_IFSOCK: 'socket'}
        kind = kinds.get(stat.S_IFMT(mode), 'device')
        raise BvtamError(f'{os.fspath(path)} is a {kind}; a regular file is wanted in its place')
    return open(path, 'rb')


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], encoding: str = 'utf-8') -> str:
    """The text of a file, its lines ended by `\\n`; raises as `open_regular`, and UnicodeDecodeError."""
    with TextIOWrapper(open_regular(path), encoding) as file:
        return file.read()


def sync(path: str | os.PathLike[str]) -> None:
    """Returns once a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
