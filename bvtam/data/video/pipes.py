"""Copies of what can be read only once."""

from __future__ import annotations

import os
import select
import stat
import tempfile
import weakref

from ..failures import machine_error
from .reader import VideoError

_PIECE = 1 << 20  # bytes
_LONGEST = 4 << 30  # bytes of a copy, in a folder that may lie in memory


def spool(name: str, time_limit: float) -> str:
    """Path of a new temporary file with all that a pipe gives; the caller removes it.

    Raises:
        VideoError: it is a device, gives nothing at all, nothing for `time_limit` seconds, or more
            than 4 GB.
        MachineError: the temporary folder is full.
    """
    path = None
    try:
        # Opened like this, a pipe to which nobody writes does not wait for a writer.
        source = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISFIFO(os.fstat(source).st_mode):
                raise VideoError(f'{name} is a device; give a file, a pipe or an address')
            target, path = tempfile.mkstemp(prefix='bvtam-')
            with open(target, 'wb') as file:
                while True:
                    if not select.select([source], [], [], time_limit)[0]:
                        raise VideoError(
                            f'{name} gave nothing for {time_limit:g} s; is anything written to it?'
                        )
                    piece = os.read(source, _PIECE)
                    if not piece:
                        break
                    file.write(piece)
                    if file.tell() > _LONGEST:
                        raise VideoError(
                            f'{name} gives more than {_LONGEST >> 30} GB, as if it had no end; '
                            '--stream reads it as it comes, or save it to a file'
                        )
                empty = not file.tell()
        finally:
            os.close(source)
        if empty:
            raise VideoError(f'{name} is empty (0 bytes); is anything written to it?')
        return path
    except BaseException as error:
        if path is not None:
            os.unlink(path)
        if isinstance(error, OSError):
            raise machine_error(error, name) or VideoError(
                f'{name} cannot be copied to {tempfile.gettempdir()} ({error.strerror})'
            ) from None
        raise


class Pipe:
    """A pipe as a file that FFmpeg reads while it comes.

    Raises:
        VideoError: from `read`, when it gives nothing for `time_limit` seconds.
    """

    def __init__(self, name: str, time_limit: float) -> None:
        self.name, self.time_limit = name, time_limit
        self._source = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._source)

    def read(self, size: int) -> bytes:
        if not select.select([self._source], [], [], self.time_limit)[0]:
            raise VideoError(
                f'{self.name} gave nothing for {self.time_limit:g} s; is anything written to it?'
            )
        return os.read(self._source, size)


def remove(path: str, process: int) -> None:
    """Removes a copy, in the process that made it."""
    if os.getpid() == process:
        os.unlink(path)
