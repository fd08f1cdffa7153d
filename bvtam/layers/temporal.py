"""Temporal operators by name: 'tam' (`tam.py`), 'tsm' (`tsm.py`) or 'none'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import BvtamError
from .pairs import TemporalOp, slot_views
from .tam import TAM
from .tsm import TSM

TEMPORAL = ('tam', 'tsm', 'none')


class NoTemporal(TemporalOp):
    """Every frame alone: the two frames of a pair meet only where their branches are summed."""

    def _apply_form(self, x: Tensor, steps: int, form: str) -> tuple[Tensor, ...]:
        if form == 'split':
            return tuple(slot.flatten(0, 1) for slot in slot_views(x, steps, form))
        return (x, x) if form == 'pair' else (x,)

    def reach(self, form: str) -> tuple[int, int]:
        return 0, 0

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        return tuple(near[0]) * 2 if form == 'pair' else tuple(near[0])


def temporal_op(
    temporal: str, channels: int, temporal_range: int = 3, causal: bool = False
) -> TemporalOp:
    """The operator named `temporal`: 'tam', 'tsm' or 'none'.

    Raises:
        BvtamError: another name, or a causal shift.
    """
    if causal and temporal == 'tsm':
        raise BvtamError("causal=True is for temporal='tam': TSM shifts in both directions")
    if temporal == 'tam':
        return TAM(channels, temporal_range, causal)
    if temporal == 'tsm':
        return TSM(channels)
    if temporal == 'none':
        return NoTemporal()
    raise BvtamError(f'temporal must be one of {", ".join(TEMPORAL)}, not {temporal!r}')
