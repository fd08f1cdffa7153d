"""Less memory in training: saved tensors that are cheap to recompute are replaced by a recompute function.

Autograd saves tensors for the backward pass. Inside `cheap_tensors_recomputed`, a tensor that was
registered with `recompute_with` is not saved: its recompute function is, which reads tensors that are
saved anyway, and gives the same values when they are needed. Batch norm, ReLU, sums, pooling and TAM
are passes over memory, so this costs little; no convolution runs twice.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_DEEPEST = 2  # recompute functions that read each other's results; the next result is saved
_RECENT = 4  # results that are held for the next who asks; backward passes ask in a row
_active = threading.local()  # .record: the `_Record` of the forward pass that this thread is in


class _Recomputed:
    """The results of one recompute function, computed when they are asked for."""

    def __init__(
        self, record: _Record, function: Callable[..., tuple[Tensor, ...]], sources: list
    ) -> None:
        self.function, self.sources, self.recent = function, sources, record.recent
        depths = [s[0].depth for s in sources if not isinstance(s, Tensor)]
        self.depth = 1 + max(depths, default=0)

    def get(self) -> tuple[Tensor, ...]:
        for made, tensors in self.recent:
            if made() is self:
                return tensors
        with torch.no_grad():
            tensors = self.function(*map(_value, self.sources))
        self.recent.append(
            (weakref.ref(self), tensors)
        )  # a ring of references would outlive the graph
        return tensors


class _Record:
    """The recompute functions of one forward pass."""

    def __init__(self) -> None:
        self.recent: deque = deque(maxlen=_RECENT)
        self.functions: dict[int, tuple[weakref.ref, _Recomputed, int]] = {}

    def find(self, tensor: Tensor) -> tuple[_Recomputed, int] | None:
        # By its memory, which may be another tensor's by now: then the first one is gone.
        named, made, index = self.functions.get(tensor.data_ptr(), (None, None, 0))
        if named is None or (first := named()) is None or first.shape != tensor.shape:
            return None
        return made, index


def active() -> bool:
    """Whether this thread is in a forward pass whose cheap tensors are recomputed."""
    return getattr(_active, 'record', None) is not None


@contextmanager
def cheap_tensors_recomputed() -> Iterator[None]:
    """For a forward pass; the backward pass may come later."""
    record = _Record()

    def pack(tensor: Tensor) -> Tensor | tuple[_Recomputed, int]:
        # Not the tensor itself: it may be a node's own result, and would hold the node for good.
        return record.find(tensor) or tensor.detach()

    before = getattr(_active, 'record', None)
    _active.record = record
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _value):
            yield
    finally:
        _active.record = before


def recompute_with(
    function: Callable[..., tuple[Tensor, ...]], *sources: Tensor, of: tuple[Tensor, ...]
) -> None:
    """Registers a recompute function of the tensors `of`, which must not be written to from here on,
    except by an operation whose result it gives. Outside of such a forward pass, nothing happens.

    Args:
        function: the recompute function; gives the same values again, from those of the sources.
        sources: tensors that autograd keeps, or that have a recompute function.
    """
    record = getattr(_active, 'record', None)
    if record is None:
        return
    made = _Recomputed(record, function, [record.find(s) or s.detach() for s in sources])
    if made.depth <= _DEEPEST:
        for index, tensor in enumerate(of):
            record.functions[tensor.data_ptr()] = weakref.ref(tensor), made, index


def _value(source: Tensor | tuple[_Recomputed, int]) -> Tensor:
    return source if isinstance(source, Tensor) else source[0].get()[source[1]]
