"""Limits to the memory that decoding takes."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..failures import machine_errors

MAX_PIXELS = 2**26  # of a frame; 8K has half of that
# Of one frame in work: at full size as RGB, twice, and those that a video decoder holds.
_BYTES_A_PIXEL = 16
_LARGE = 256 << 20  # bytes
_BYTES_AHEAD = 512 << 20  # of batches


class Budget:
    """Bytes that the threads of this process may hold together; one that needs more than all of them gets
    them alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reset()

    def reset(self) -> None:
        self._left, self._freed = self.size, threading.Condition()
        self._holders: set[int] = set()  # threads, which hold but once

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until so many are left, and holds them for the block."""
        size, thread = min(size, self.size), threading.get_ident()
        if thread in self._holders:
            yield
            return
        with self._freed:
            self._freed.wait_for(lambda: self._left >= size)
            self._left -= size
            self._holders.add(thread)
        try:
            release_memory(size)  # of others
            yield
        finally:
            release_memory(size)
            with self._freed:
                self._left += size
                self._holders.remove(thread)
                self._freed.notify_all()


def release_memory(size: int) -> None:
    """Makes glibc return free memory after so many bytes were used: it keeps some frames a thread."""
    if size < _LARGE:
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another libc
        return
    trim(ctypes.c_size_t(0))


def prefetch(workers: int, size: int) -> int | None:
    """Batches of `size` bytes that each worker of a `DataLoader` makes ahead, for `prefetch_factor`."""
    return min(2, max(1, _BYTES_AHEAD // (workers * size))) if workers else None


def shared_number() -> Tensor:
    """An int64 zero of which processes that are started later see every change.

    Raises:
        MachineError: there is no shared memory.
    """
    with machine_errors(''):
        return torch.zeros((), dtype=torch.int64).share_memory_()


DECODING = Budget(512 << 20)
if hasattr(os, 'register_at_fork'):  # the threads that held some are not in the new process
    os.register_at_fork(after_in_child=DECODING.reset)


OPENING_BYTES = 64 << 20  # about what the first look at a video takes, of which no size is known


def frame_bytes(pixels: int) -> int:
    """About what decoding a frame takes."""
    return _BYTES_A_PIXEL * pixels
