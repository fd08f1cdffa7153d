"""Layers of a video model on one time step after the other, in constant memory.

A model is a row of stages. Each has a function of single steps, and at most one layer that mixes steps:
it waits for the steps ahead that it reads, and forgets those that no later step reads. What comes out
is what the whole clip would have given, step by step and as many steps later as the stages wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .pairs import TemporalOp

Slots = Sequence[Tensor]  # of one step, each (B, C, H, W): (even, odd) of a pair of frames, or (x,)


@dataclass
class StreamStage:
    """A temporal operator, and what follows until the next.

    Attributes:
        operator: its outputs are computed step by step.
        form: of the operator: 'plain', 'split' or 'pair'.
        after: (x, *outputs) -> x of the next stage; x is the step that the outputs are of.
        before: what happens to each source before the operator.
        reads: what the operator reads of a source, where `after` begins with the same.
    """

    operator: TemporalOp
    form: str
    after: Callable[..., Tensor]
    before: Callable[[Tensor], Tensor] | None = None
    reads: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.back, self.ahead = self.operator.reach(self.form)
        # Steps, each with what the operator reads of it.
        self.held: deque[tuple[Tensor, Slots]] = deque()
        self.first = 0  # number of the first step that is held
        self.next = 0  # number of the step that comes out next

    def wait(self, steps: int) -> int:
        """How many steps must be there before as many have come out."""
        return steps + self.ahead

    def push(self, x: Slots) -> Iterator[Tensor]:
        """What the step that comes now completes."""
        x = x if self.before is None else [self.before(slot) for slot in x]
        self.held.append((x[0], x if self.reads is None else [self.reads(slot) for slot in x]))
        if self.first + len(self.held) > self.next + self.ahead:
            yield self._step()

    def finish(self) -> Iterator[Tensor]:
        """What no later step can change any more."""
        while self.next < self.first + len(self.held):
            yield self._step()

    def _step(self) -> Tensor:
        held, now = self.held, self.next - self.first
        near = {
            offset: held[now + offset][1]
            for offset in range(-self.back, self.ahead + 1)
            if 0 <= now + offset < len(held)
        }
        out = self.after(held[now][0], *self.operator.step(near, self.form))
        self.next += 1
        while self.first < self.next - self.back:
            self.first += 1
            held.popleft()
        return out


class MaxPool:
    """Maximum of 3 steps at every second, as a `StreamStage`: steps 2k-1, 2k and 2k+1 give step k."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.count = 0

    def wait(self, steps: int) -> int:
        return 2 * steps

    def push(self, x: Slots) -> Iterator[Tensor]:
        self.held.append(x[0])
        self.count += 1
        if self.count % 2 == 0:
            yield self._step()

    def finish(self) -> Iterator[Tensor]:
        if self.count % 2:
            yield self._step()

    def _step(self) -> Tensor:
        out = torch.stack(self.held).amax(0)
        self.held = self.held[-1:] if self.count % 2 == 0 else []
        return out


def run(stages: Sequence[StreamStage | MaxPool], x: Slots | None) -> Iterator[Tensor]:
    """What comes out of the last stage when `x` comes into the first, or None ends the clip."""
    if not stages:
        if x is not None:
            yield x[0]
        return
    stage, *rest = stages
    for y in stage.finish() if x is None else stage.push(x):
        yield from run(rest, (y,))
    if x is None:
        yield from run(rest, None)
