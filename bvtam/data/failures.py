"""Videos that cannot be read: the policy (stop, skip or substitute), the count and the list of them.

Memory, disk or descriptors that run out are no failure of a video: a `MachineError` stops every run.
"""

from __future__ import annotations

import csv
import errno
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..errors import BvtamError, MachineError, one_line

log = logging.getLogger('bvtam')

ON_ERROR = ('raise', 'skip', 'substitute')
VIDEO_ERRORS = (BvtamError, OSError)  # what reading one video may raise
_SHARED = '/dev/shm'  # where Linux has shared memory
_MEMORY_LEFT = 256 << 20  # bytes; who has so many is not out of memory
# What torch says in errors that have no type or number of their own.
_TORCH = {
    "can't allocate memory": errno.ENOMEM,
    'Too many open files': errno.EMFILE,
    'received 0 items of ancdata': errno.EMFILE,  # descriptors that found no place
    "can't start new thread": errno.EAGAIN,
    'shared memory': errno.ENOBUFS,
    '</torch_': errno.ENOBUFS,
    'DataLoader worker': errno.ECHILD,  # which says that one is gone
}


def machine_error(error: BaseException, name: str = '') -> MachineError | None:
    """`error` as a `MachineError` that names the video, where the machine ran out of something."""
    if isinstance(error, MachineError):
        return error
    number = _errno_of(error)
    if number is None:
        return error.__cause__ and machine_error(error.__cause__, name)
    return MachineError(f'{name}: {_advice(number)}' if name else _advice(number))


def _errno_of(error: BaseException) -> int | None:
    """The number of the error where `_advice` has it, else None."""
    number = getattr(error, 'errno', None)
    if isinstance(error, MemoryError):  # FFmpeg's has a number, and comes of damaged files too
        return errno.ENOMEM if number is None or memory_is_short() else None
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT):
        return number
    if isinstance(error, RuntimeError):
        if type(error).__name__ == 'OutOfMemoryError':  # of an accelerator
            return errno.ENOMEM
        return next((n for text, n in _TORCH.items() if text in str(error)), None)
    return None


def _advice(number: int) -> str:
    if number == errno.ENOMEM:
        return 'out of memory; lower workers or batch_size, or give this process more'
    if number == errno.EMFILE:
        limit = ''
        with suppress(ImportError):  # on Windows
            import resource

            limit = f' of {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}'
        return f'no file descriptor{limit} is left; raise the limit (ulimit -n) or lower workers'
    if number == errno.ENFILE:
        return 'no file descriptor of the whole machine is left; raise its limit (fs.file-max)'
    if number == errno.EAGAIN:
        return 'no thread can be started; raise the limit (ulimit -u) or lower workers'
    if number == errno.ENOBUFS:
        return shared_memory()
    if number == errno.ECHILD:
        return 'a decoding process was killed, maybe as memory ran out; lower workers or batch_size'
    return f'no space is left; temporary files go to {tempfile.gettempdir()} unless TMPDIR is set'


def shared_memory() -> str:
    """One line on how much shared memory there is, and what to do where it is too little."""
    size = ''
    with suppress(OSError):
        usage = shutil.disk_usage(_SHARED)
        size = f' ({_SHARED}: {usage.free >> 20} of {usage.total >> 20} MB left)'
    return (
        f'no shared memory is left{size}; give more (docker run --shm-size=1g) or lower workers, '
        'where it can be to 0'
    )


# For a fork server; each process would take seconds to import it.
PRELOAD = ['bvtam.data.prepare.run', 'bvtam.engine.distributed']


@contextmanager
def starting_processes(workers: int = 0) -> Iterator[None]:
    """Raises a `MachineError` where there is no room for the locks that processes share.

    It makes as many as a `DataLoader` of `workers` takes, since that fails with a traceback. A fork
    server is told what to import once for all processes.
    """
    if workers and multiprocessing.get_start_method() == 'forkserver':
        multiprocessing.set_forkserver_preload(PRELOAD)
    try:
        _ = [multiprocessing.Lock() for _ in range(4 * workers + 16 if workers else 0)]
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise MachineError(shared_memory()) from error


def memory_is_short() -> bool:
    """Whether memory is out; else a library has refused what a damaged file asks for."""
    try:
        np.empty(_MEMORY_LEFT, np.uint8)
    except MemoryError:
        return True
    return False


@contextmanager
def machine_errors(name: str) -> Iterator[None]:
    """Raises errors of a machine that runs out of something as a `MachineError` that names the video."""
    try:
        yield
    except Exception as error:
        lack = machine_error(error, name)
        if lack is None or lack is error:
            raise
        raise lack from error


def check_policy(on_error: str, choices: tuple[str, ...] = ON_ERROR) -> str:
    """`on_error`, if it is one of `choices`; else a `BvtamError`."""
    if on_error not in choices:
        raise BvtamError(f'on_error must be one of {", ".join(choices)}, not {on_error!r}')
    return on_error


class Failures:
    """Counts the videos of one run that failed, and lists each with its reason.

    Args:
        total: videos in the run.
        max_failed: share of them, on [0, 1], that may fail; one more stops the run.
        path: `errors.csv` to write, with columns video and reason; it appears with the first
            failure and is on disk after each, so that a killed run leaves its list behind.

    Raises:
        BvtamError: `max_failed` outside [0, 1], or a `path` that cannot be written.
    """

    def __init__(
        self, total: int, max_failed: float = 0.1, path: str | os.PathLike[str] | None = None
    ) -> None:
        if not 0 <= max_failed <= 1:
            raise BvtamError(f'max_failed must be a share from 0 to 1, not {max_failed}')
        self.total, self.max_failed = total, max_failed
        self.path = Path(path) if path is not None else None
        self.reasons: dict[str, str] = {}
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.unlink(missing_ok=True)  # of an earlier run
            except OSError as error:
                raise BvtamError(f'{self.path} cannot be written: {error.strerror}') from None

    def add(self, video: str, reason: object) -> None:
        """Records one failure; a video that failed before counts once.

        Raises:
            BvtamError: more than the stated share has failed, or the list cannot be written.
            MachineError: the reason is no fault of the video.
        """
        lack = machine_error(reason, video) if isinstance(reason, Exception) else None
        if lack is not None:
            raise lack
        if video in self.reasons:
            return
        reason = one_line(reason)
        self.reasons[video] = reason
        log.warning('%s failed: %s', one_line(video), reason)
        if self.path is not None:
            try:
                self._list(video, reason)
            except OSError as error:
                raise BvtamError(f'{self.path} cannot be written: {error.strerror}') from None
        if len(self.reasons) > self.max_failed * self.total:
            where = f'; see {self.path}' if self.path is not None else ''
            raise BvtamError(
                f'{len(self.reasons)} of {self.total} videos failed, more than the allowed share '
                f'of {self.max_failed:g} (max_failed){where}; the last: {reason}'
            )

    def _list(self, video: str, reason: str) -> None:
        with self.path.open('a', newline='', encoding='utf-8', errors='surrogateescape') as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(['video', 'reason'])
            writer.writerow([video, reason])
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self.reasons)

    def summary(self) -> str:
        """`''` where nothing failed, else one line for the end of a run."""
        if not self.reasons:
            return ''
        where = f', listed in {self.path}' if self.path is not None else ''
        return f'{len(self.reasons)} of {self.total} videos failed{where}'
