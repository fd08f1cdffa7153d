"""The processes of one run: they exchange results and errors, and a signal stops all after a step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import BvtamError
from ..inference.ranks import rank_and_world_size
from ..optional import library

_GRACE = 30  # seconds from SIGTERM to the end of a decoding process that is not ended before


class Processes:
    """This process among those that `accelerate launch` has started, or alone.

    Attributes:
        rank, world_size: its number, and how many there are.
        is_main: whether it is the one that writes.
        device: the one that it trains on.

    Raises:
        BvtamError: accelerate is missing.
    """

    def __init__(self) -> None:
        accelerate = library('accelerate', 'train', 'training')
        on_cpu = library('accelerate.utils', 'train', 'training').parse_flag_from_env
        self.device = accelerate.PartialState(cpu=on_cpu('ACCELERATE_USE_CPU')).device
        self.rank, self.world_size = rank_and_world_size()
        self.is_main = self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients become the mean over all processes."""
        if self.world_size == 1:
            return model
        ids = None if self.device.type == 'cpu' else [self.device]
        return DistributedDataParallel(model, ids)

    def no_sync(self, wrapped: nn.Module, active: bool) -> AbstractContextManager:
        """While `active`, gradients of a wrapped model stay with this process."""
        return wrapped.no_sync() if active and self.world_size > 1 else nullcontext()

    def run_on_main(self, action: Callable[[], object]) -> None:
        """Calls it in the main process; its error is raised in all, so that none waits for ever."""
        error: list[Exception | None] = [None]
        if self.is_main:
            try:
                action()
            except (BvtamError, OSError) as cause:
                error = [cause]
        if self.world_size > 1:
            dist.broadcast_object_list(error, device=self.device)
        if error[0]:
            raise error[0]

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def all_reduce_max(self, *values: int) -> list[int]:
        """Of each value the largest that a process has."""
        if self.world_size == 1:
            return list(values)
        reduced = torch.tensor(values, device=self.device)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced.tolist()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Gives all processes the running statistics of the main one; each has some of its own."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def gather_failures(
    error: Exception | None, failed: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The failed videos of all processes together.

    Raises:
        The error; in the other processes a `BvtamError` with its text, so that none waits for ever.
    """
    found = all_gather((f'{type(error).__name__}: {error}' if error else None, failed))
    if error is not None:
        raise error
    for rank, (text, _) in enumerate(found):
        if text:
            raise BvtamError(f'process {rank} of {len(found)} stopped: {text}')
    return [failure for _, failures in found for failure in failures]


class Stopped(BvtamError):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells have it


class StopRequest:
    """Number of the signal that asked for a stop, or 0."""

    signal = 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """SIGTERM and SIGINT ask for a stop after the step at hand; another one later kills as ever."""
    request, asked_at = StopRequest(), 0.0

    def ask(number: int, _frame: Any) -> None:
        nonlocal asked_at
        # Launchers pass on what the terminal has sent already: that is no second request.
        if request.signal and time.monotonic() - asked_at > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        elif not request.signal:
            request.signal, asked_at = number, time.monotonic()

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield request
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_worker(_worker: int) -> None:
    """A decoding process leaves signals to its parent, which may have a step to finish, and ends with it.

    Ctrl-C and schedulers signal them all, and torch takes the end of a worker for a failure; one whose
    parent is killed before torch watches it would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    torch.set_num_threads(1)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
