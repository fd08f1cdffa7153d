"""The pair form: a temporal operator on pairs of frames that are the same tensor, stored once.

After a fusion both slots of a pair hold the same tensor, so bLVNet need not store T frames: T/2 pairs
are enough, which is what makes it cheap. Slot p (0 even, 1 odd) at offset j reads pair

    k + floor((p + j) / 2)

and the weights of all offsets that read the same pair are summed first. `plan` gives the terms of
this form and of the two on stored frames; `TemporalOp` is the base of what offers all three.

Source: ours; it equals bLVNet-TAM (Fan et al., NeurIPS 2019, section 3.2) on frames stored twice.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .folding import unfold_time


class TemporalOp(nn.Module):
    """Lets the frames of a clip see each other, for a few multiplications per value.

    Tensors have time folded into the batch, (N*T, C, H, W), and the number of steps per clip comes
    with every call, so an operator keeps no state and one set of weights serves any clip length. It
    has three forms:

        op(x, T)         frames (N*T, C, H, W)   -> frames of the same shape ('plain')
        op.split(x, K)   frames (N*2K, C, H, W)  -> (even, odd) frames of K pairs, each (N*K, C, H, W)
        op.pair(x, K)    pairs  (N*K, C, H, W)   -> (even, odd), where x stands in both slots of a pair
    """

    def _apply_form(self, x: Tensor, steps: int, form: str) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self._apply_form(x, num_frames, 'plain')[0]

    def split(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        even, odd = self._apply_form(x, num_pairs, 'split')
        return even, odd

    def pair(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        even, odd = self._apply_form(x, num_pairs, 'pair')
        return even, odd

    def reach(self, form: str) -> tuple[int, int]:
        """How many steps back, and ahead, an output reads."""
        raise NotImplementedError

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        """One output step (N, C, H, W), or both slots of one, computed from its temporal neighbours
        for streaming, without gradients.

        Args:
            near: {offset: slots (N, C, H, W)} of the steps that `reach` says; steps outside the clip
                are left out.
        """
        raise NotImplementedError


class Tap(NamedTuple):
    """One term of an output: weights [first, last) summed, times source slot `slot` at `offset`."""

    slot: int
    offset: int  # in steps: frames in the plain form, pairs in the others
    first: int
    last: int


def plan(form: str, temporal_range: int, causal: bool = False) -> tuple[tuple[Tap, ...], ...]:
    """The taps of each output (one in the plain form, else the even and the odd slot)."""
    first = 1 - temporal_range if causal else -(temporal_range // 2)
    offsets = range(first, first + temporal_range)
    if form == 'plain':
        return (tuple(Tap(0, j, j - first, j - first + 1) for j in offsets),)
    outputs = []
    for slot in (0, 1):
        if form == 'split':
            taps = [Tap((slot + j) % 2, (slot + j) // 2, j - first, j - first + 1) for j in offsets]
        else:
            pairs = [(slot + j) // 2 for j in offsets]  # ascending, so equal ones are neighbours
            taps = [
                Tap(0, d, pairs.index(d), pairs.index(d) + pairs.count(d))
                for d in sorted(set(pairs))
            ]
        outputs.append(tuple(taps))
    return tuple(outputs)


def reachable(taps: Sequence[Tap], offsets: Container[int]) -> list[Tap]:
    """The taps that read at one of `offsets`; one of offset 0, which reads all of a clip, first."""
    return sorted((t for t in taps if t.offset in offsets), key=lambda t: t.offset != 0)


def reach(outputs: Sequence[Sequence[Tap]]) -> tuple[int, int]:
    """How many steps back, and ahead, these taps read."""
    offsets = [tap.offset for taps in outputs for tap in taps]
    return -min(0, *offsets), max(0, *offsets)


def overlap(offset: int, steps: int) -> tuple[slice, slice]:
    """Where an output reads, and what it reads, when step k reads step k + offset."""
    if offset < 0:
        return slice(-offset, None), slice(None, offset)
    return slice(None, steps - offset), slice(offset, None)


def slot_views(x: Tensor, steps: int, form: str) -> list[Tensor]:
    """Views (N, steps, C, H, W) of the sources: both slots of frames, or the one tensor."""
    if form == 'split':
        return list(unfold_time(x, steps, 2).unbind(2))
    return [unfold_time(x, steps)]
