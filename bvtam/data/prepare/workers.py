"""Worker processes that may crash, hang or be killed without ending the run."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from ...errors import BvtamError
from ..failures import PRELOAD, starting_processes

Item = TypeVar('Item')


class Crash(BvtamError):
    """The process that worked at an item came to an end."""


def outcomes(
    work: Callable[[Item], Any], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Any]]:
    """Each item with what `work` returned, or the exception that it raised, as they are done.

    If a process dies, the items that were in work are tried again, each by itself; the outcome of
    one whose process was its own and died is a `Crash`. The processes end with this one, however it
    ends.

    `work`, the items and what comes back can be pickled.

    Raises:
        BvtamError: no process can be started.
    """
    waiting = deque(items)
    while waiting:
        suspects = []
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future, Item] = {}
            while running or (waiting and not suspects):
                # No more than there are processes: all that is submitted is in work.
                while waiting and len(running) < workers and not suspects:
                    item = waiting.popleft()
                    try:
                        running[pool.submit(_call, work, item)] = item
                    except BrokenProcessPool:
                        suspects.append(item)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item, error = running.pop(future), future.exception()
                    if isinstance(error, BrokenProcessPool):
                        suspects.append(item)
                    else:
                        yield item, error or future.result()
        if workers == 1:
            for item in suspects:
                yield item, Crash('the process that read it crashed, hung, or ran out of memory')
        else:
            for item in suspects:
                yield from outcomes(work, [item], 1)


def watch(seconds: float) -> None:
    """Ends this worker process after so many seconds, unless this is called again or the item is done.

    It is for a library that never returns. In a process that is no worker nothing happens.
    """
    if _dev_null is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_dev_null)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """New processes, each of one thread, gone when the block ends or this process does."""
    # No plain fork, which copies locks that threads hold. The fork server imports torch only once.
    server = 'forkserver' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('forkserver' if server else 'spawn')
    if server:
        context.set_forkserver_preload(PRELOAD)
    lifeline, hold = context.Pipe(duplex=False)
    with starting_processes():
        pool = ProcessPoolExecutor(workers, context, _start, (lifeline,))
    try:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise BvtamError(
                "no process can be started; a script needs `if __name__ == '__main__':` around it"
            ) from None
        yield pool
    except BaseException:
        hold.close()  # which ends them at once; else they would end what they are at
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        hold.close()
        lifeline.close()


_dev_null: Any = None  # a file, in the processes of a pool


def _call(work: Callable[[Item], Any], item: Item) -> Any:
    try:
        return work(item)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _start(lifeline: Connection) -> None:
    global _dev_null
    _dev_null = open(os.devnull, 'w')  # noqa: SIM115 - as long as the process lives
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends this process
    torch.set_num_threads(1)

    def follow() -> None:
        lifeline.poll(None)  # until the other end is closed
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
