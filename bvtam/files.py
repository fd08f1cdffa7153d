"""Writes files and folders whole or not at all, and reads regular files only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from .errors import BvtamError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty file beside `path`, which replaces it, flushed to disk, if the block succeeds.

    The folder is created if missing. The mode is as `open` gives it: that of the file replaced, or
    what the umask leaves. A link of that name is replaced, not followed.

    Raises:
        BvtamError: `path` cannot be written; an OSError inside the block counts as that.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f'.{path.name[-100:]}.{secrets.token_hex(8)}{path.suffix[-100:]}')
        # not tempfile's, whose files are for their owner alone: the umask decides, unread
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            before = path if path.is_file() and not path.is_symlink() else new
            mode = stat.S_IMODE(before.stat().st_mode)
            yield new
            os.chmod(new, mode)  # the block may have put another file in its place
            sync(new)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)
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
    """Opens a regular file to read its bytes; a pipe or a device might never end.

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
    """Flushes a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_own(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to append bytes, created if missing; a link is not followed.

    Raises:
        OSError: it is a link or no regular file, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))
    return os.fdopen(descriptor, 'ab')


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Checks that nothing will be written through a link, pipe, socket or device in `folder`.

    Raises:
        BvtamError: one of `names` is such.
    """
    for name in names:
        path = folder / name
        if path.is_symlink():
            raise BvtamError(f'{path} is a symbolic link, which is not written through: remove it')
        if os.path.lexists(path) and not (path.is_file() or path.is_dir()):
            raise BvtamError(f'{path} is neither file nor folder: remove it')


@contextmanager
def atomic_folder(folder: Path, others: Iterable[Path] = ()) -> Iterator[Path]:
    """Yields a new folder, which replaces `folder`, flushed to disk, if the block succeeds.

    Its files get the mode that the umask leaves; `others` are copied as they are. Killed at any
    moment, it leaves the old folder or the new one, and at most hidden copies, which the next call
    removes. Where the system cannot swap two folders in one step, the old one may be hidden too:
    the next call first restores it.

    Raises:
        OSError: it cannot be written.
    """
    recover(folder)
    new, lock = _new_folder(folder)
    mode = stat.S_IMODE(new.stat().st_mode) & 0o666
    try:
        yield new
        for path in filter(Path.is_file, new.iterdir()):
            os.chmod(path, mode)  # `safetensors` makes files for their owner alone
            sync(path)
        for path in others:  # links as links: what they lead to may be large, or a device
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)
        sync(new)
        _replace(folder, new)
        sync(folder.parent)
    finally:
        try:
            shutil.rmtree(new, ignore_errors=True)
        finally:
            os.close(lock)


def _replace(folder: Path, new: Path) -> None:
    try:
        new.rename(folder)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(new, folder):  # the old one is now the hidden one
        return
    old = new.with_suffix('.old')
    with _locked(folder):
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Restores or removes the hidden folders of a killed `atomic_folder`; those in use stay."""
    for end in ('.old', '.new'):
        for left in sorted(folder.parent.glob(f'.{glob.escape(folder.name)}.*{end}')):
            with suppress(OSError), _locked(left):  # a link, or in use
                if end == '.old' and not os.path.lexists(folder):
                    left.rename(folder)
                else:
                    shutil.rmtree(left, ignore_errors=True)


def replaced(folder: Path) -> Path | None:
    """The hidden old folder, where a program was killed before it put the new one there."""
    with suppress(OSError, ValueError):
        return next(folder.parent.glob(f'.{glob.escape(folder.name)}.*.old'), None)
    return None


def _new_folder(folder: Path) -> tuple[Path, int]:
    """A hidden folder beside `folder`, and the descriptor that locks it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        new = folder.with_name(f'.{folder.name}.{secrets.token_hex(8)}.new')
        new.mkdir()
        # Before it was locked, another program may have taken it for a leftover.
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(new)
            if new.is_dir():
                return new, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _lock(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step, where the system can (Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0
