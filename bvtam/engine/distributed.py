"""The processes of one run: what one finds out all learn, and a signal stops them after one step."""

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

_GRACE = 30  # seconds from SIGTERM to the end of a decoding process that is not ended before


class Processes:
    """This process among those that `accelerate launch` has started, or alone.

    Attributes:
        rank, world: its number, and how many there are.
        main: whether it is the one that writes.
        device: the one that it trains on.

    Raises:
        BvtamError: accelerate is missing.
    """

    def __init__(self) -> None:
        try:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env
        except ImportError:
            raise BvtamError("training needs accelerate: pip install 'bvtam[train]'") from None
        state = PartialState(cpu=parse_flag_from_env('ACCELERATE_USE_CPU'))
        self.rank, self.world, self.device = state.process_index, state.num_processes, state.device
        self.main = self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients become the mean over all processes."""
        if self.world == 1:
            return model
        ids = None if self.device.type == 'cpu' else [self.device]
        return DistributedDataParallel(model, ids)

    def alone(self, model: nn.Module, yes: bool) -> AbstractContextManager:
        """Where gradients of a wrapped model stay with this process for now."""
        return model.no_sync() if yes and self.world > 1 else nullcontext()

    def in_main(self, action: Callable[[], object]) -> None:
        """Calls it in the main process; what that raises all raise, so that none waits in vain."""
        error: list[Exception | None] = [None]
        if self.main:
            try:
                action()
            except (BvtamError, OSError) as cause:
                error = [cause]
        if self.world > 1:
            dist.broadcast_object_list(error, device=self.device)
        if error[0]:
            raise error[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    def mean(self, values: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def largest(self, *values: int) -> list[int]:
        """Of each value the largest that a process has."""
        if self.world == 1:
            return list(values)
        reduced = torch.tensor(values, device=self.device)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced.tolist()

    def share_buffers(self, net: nn.Module) -> None:
        """Each process has running statistics of its own; from now on those of the main one."""
        if self.world > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)


class Stopped(BvtamError):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells have it


class Wish:
    """Number of the signal that asked for a stop, or 0."""

    number = 0


@contextmanager
def stop_signals() -> Iterator[Wish]:
    """SIGTERM and SIGINT ask for a stop after the step at hand; another one later kills as ever."""
    wish, asked_at = Wish(), 0.0

    def ask(number: int, _frame: Any) -> None:
        nonlocal asked_at
        # Launchers pass on what the terminal has sent already: that is no second wish.
        if wish.number and time.monotonic() - asked_at > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        elif not wish.number:
            wish.number, asked_at = number, time.monotonic()

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield wish
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_worker(_worker: int) -> None:
    """A decoding process leaves signals to its parent, which may have a step to finish, and ends with it.

    Ctrl-C and schedulers signal them all, and torch takes the end of a worker for a failure; one whose
    parent is killed before it has looked around would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    torch.set_num_threads(1)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
