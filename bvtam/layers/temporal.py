"""The temporal operators by name: 'tam' (`tam.py`), 'tsm' (`tsm.py`) or 'none', and what they share.

An operator lets the frames of a clip see each other for a few multiplications per value. Tensors have
time folded into the batch, (N*T, C, H, W), and the number of steps per clip comes with every call, so
an operator keeps no state and one set of weights serves any clip length. It has three forms:

    op(x, T)         frames (N*T, C, H, W)   -> frames of the same shape ('plain')
    op.split(x, K)   frames (N*2K, C, H, W)  -> (even, odd) frames of K pairs, each (N*K, C, H, W)
    op.pair(x, K)    pairs  (N*K, C, H, W)   -> (even, odd), x in both slots of a pair (`pairs.py`)

For streaming, `op.step(near, form)` computes one output step from its temporal neighbours, and
`op.reach(form)` says how many steps back and ahead those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..errors import BvtamError
from .folding import unfold_time
from .tam import TAM
from .tsm import TSM

TEMPORAL = ('tam', 'tsm', 'none')


class NoTemporal(nn.Module):
    """Every frame alone: the two frames of a pair meet only where their branches are summed."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return x

    def split(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        even, odd = unfold_time(x, num_pairs, 2).unbind(2)
        return even.flatten(0, 1), odd.flatten(0, 1)

    def pair(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return x, x

    def reach(self, form: str) -> tuple[int, int]:
        """As `TAM.reach`."""
        return 0, 0

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        """As `TAM.step`."""
        return {'plain': near[0], 'split': near[0], 'pair': (near[0][0],) * 2}[form]


def temporal_op(
    temporal: str, channels: int, temporal_range: int = 3, causal: bool = False
) -> nn.Module:
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
