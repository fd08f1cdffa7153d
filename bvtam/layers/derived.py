"""Less memory in training: what is cheap to make again is kept as how it was made.

Autograd keeps tensors for the backward pass. Inside `derived_kept_as_recipes`, a tensor that was
named with `derive` is not kept: its recipe is, which reads tensors that are kept anyway, and makes the
same values again when they are needed. Batch norm, ReLU, sums, pooling and TAM are passes over memory,
so this costs little; no convolution runs twice.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_DEEPEST = 2  # recipes that read each other's results; the next result is kept
_RECENT = 4  # results that are held for the next who asks; backward passes ask in a row
_active = threading.local()  # .book: the `_Book` of the forward pass that this thread is in


class _Made:
    """The tensors of one recipe, made when they are asked for."""

    def __init__(self, book: _Book, make: Callable[..., tuple[Tensor, ...]], sources: list) -> None:
        self.make, self.sources, self.recent = make, sources, book.recent
        depths = [s[0].depth for s in sources if not isinstance(s, Tensor)]
        self.depth = 1 + max(depths, default=0)

    def get(self) -> tuple[Tensor, ...]:
        for made, tensors in self.recent:
            if made() is self:
                return tensors
        with torch.no_grad():
            tensors = self.make(*map(_value, self.sources))
        self.recent.append(
            (weakref.ref(self), tensors)
        )  # a ring of references would outlive the graph
        return tensors


class _Book:
    """The recipes of one forward pass."""

    def __init__(self) -> None:
        self.recent: deque = deque(maxlen=_RECENT)
        self.recipes: dict[int, tuple[weakref.ref, _Made, int]] = {}

    def find(self, tensor: Tensor) -> tuple[_Made, int] | None:
        # By its memory, which may be another tensor's by now: then the first one is gone.
        named, made, index = self.recipes.get(tensor.data_ptr(), (None, None, 0))
        if named is None or (first := named()) is None or first.shape != tensor.shape:
            return None
        return made, index


def active() -> bool:
    """Whether this thread is in a forward pass that keeps recipes."""
    return getattr(_active, 'book', None) is not None


@contextmanager
def derived_kept_as_recipes() -> Iterator[None]:
    """For a forward pass; the backward pass may come later."""
    book = _Book()

    def pack(tensor: Tensor) -> Tensor | tuple[_Made, int]:
        # Not the tensor itself: it may be a node's own result, and would hold the node for good.
        return book.find(tensor) or tensor.detach()

    before = getattr(_active, 'book', None)
    _active.book = book
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _value):
            yield
    finally:
        _active.book = before


def derive(
    make: Callable[..., tuple[Tensor, ...]], *sources: Tensor, of: tuple[Tensor, ...]
) -> None:
    """Names a recipe of the tensors `of`, which must not be written to from here on, except by an
    operation whose result the recipe gives. Outside of such a forward pass, nothing happens.

    Args:
        make: gives the values again, from those of the sources.
        sources: tensors that autograd keeps, or that have a recipe.
    """
    book = getattr(_active, 'book', None)
    if book is None:
        return
    made = _Made(book, make, [book.find(s) or s.detach() for s in sources])
    if made.depth <= _DEEPEST:
        for index, tensor in enumerate(of):
            book.recipes[tensor.data_ptr()] = weakref.ref(tensor), made, index


def _value(source: Tensor | tuple[_Made, int]) -> Tensor:
    return source if isinstance(source, Tensor) else source[0].get()[source[1]]
