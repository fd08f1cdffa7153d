"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def sync(path: str | os.PathLike[str]) -> None:
    """Returns once a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
