"""Sources that can be read only once: live pipes, and temporary copies of pipes and open files."""

from __future__ import annotations

import os
import select
import stat
import tempfile
import weakref
from collections.abc import Callable

from ..failures import machine_error
from .reader import VideoError

_PIECE = 1 << 20  # bytes
_LONGEST = 4 << 30  # bytes of a copy, in a folder that may lie in memory


class Pipe:
    """A pipe as a file object, which FFmpeg reads while it is written.

    Raises:
        VideoError: from `read`, when it gives nothing for `time_limit` seconds.
    """

    def __init__(self, name: str, time_limit: float) -> None:
        self.name, self.time_limit = name, time_limit
        # Opened like this, a pipe to which nobody writes does not wait for a writer.
        self.source = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        self.close = weakref.finalize(self, os.close, self.source)

    def read(self, size: int) -> bytes:
        if not select.select([self.source], [], [], self.time_limit)[0]:
            raise VideoError(
                f'{self.name} gave nothing for {self.time_limit:g} s; is anything written to it?'
            )
        return os.read(self.source, size)


def copy_pipe(name: str, time_limit: float) -> str:
    """Path of a new temporary file with all that a pipe gives; the caller removes it.

    Raises:
        VideoError: it is a device, gives nothing at all, nothing for `time_limit` seconds, or more
            than 4 GB.
        MachineError: the temporary folder is full.
    """
    try:
        pipe = Pipe(name, time_limit)
    except OSError as error:
        raise _not_copied(error, name) from None
    try:
        if not stat.S_ISFIFO(os.fstat(pipe.source).st_mode):
            raise VideoError(f'{name} is a device; give a file, a pipe or an address')
        long = ', as if it had no end; --stream reads it as it comes, or save it to a file'
        return copy_to_file(name, pipe.read, '; is anything written to it?', long)
    finally:
        pipe.close()


def copy_to_file(name: str, read: Callable[[int], bytes], if_empty: str, if_long: str) -> str:
    """As `copy_pipe`, of all that `read` gives, as of a file.

    `if_empty` and `if_long` end the message where there is nothing, or more than 4 GB.
    """
    path = None
    try:
        target, path = tempfile.mkstemp(prefix='bvtam-')
        with open(target, 'wb') as copy:
            while piece := read(_PIECE):
                if copy.tell() + len(piece) > _LONGEST:
                    raise VideoError(f'{name} has more than {_LONGEST >> 30} GB{if_long}')
                copy.write(piece)
            if not copy.tell():
                raise VideoError(f'{name} is empty (0 bytes){if_empty}')
        return path
    except BaseException as error:
        if path is not None:
            os.unlink(path)
        if isinstance(error, OSError):
            raise _not_copied(error, name) from None
        raise


def _not_copied(error: OSError, name: str) -> Exception:
    where = tempfile.gettempdir()
    return machine_error(error, name) or VideoError(
        f'{name} cannot be copied to {where} ({error.strerror})'
    )


def remove_copy(path: str, process: int) -> None:
    """Removes a copy, in the process that made it."""
    if os.getpid() == process:
        os.unlink(path)
