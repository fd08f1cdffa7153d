"""Temporal Shift Module (TSM): some channels come from the next frame, some from the one before.

    out_t = x_(t+1) for the first C/div channels, x_(t-1) for the next C/div, x_t for the others

Source: TSM (Lin et al., ICCV 2019, section 3), the order of channels as in the release
mit-han-lab/temporal-shift-module. For the three forms of a call see `TemporalOp` in `layers/pairs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .pairs import TemporalOp, overlap, slot_views


class TSM(TemporalOp):
    """The module, without weights: TAM with 0/1 weights and no ReLU."""

    # Of each output: the slot that it keeps, and (slot, offset) of the two groups that it takes.
    _TAKES: ClassVar = {
        'plain': ((0, (0, 1), (0, -1)),),
        'split': ((0, (1, 0), (1, -1)), (1, (0, 1), (0, 0))),
        'pair': ((0, (0, 0), (0, -1)), (0, (0, 1), (0, 0))),
    }

    def __init__(self, channels: int, shift_div: int = 8) -> None:
        super().__init__()
        self.fold_channels = channels // shift_div

    def _mix(self, x: Tensor, later: tuple[Tensor, int], earlier: tuple[Tensor, int]) -> Tensor:
        """x (N, steps, C, H, W), folded, with two channel groups from other (source, offset)s."""
        if torch.compiler.is_compiling():  # in sizes that hold for any number of steps
            groups = (
                F.pad(source, (0, 0) * 3 + (1, 1)).narrow(1, 1 + offset, x.shape[1])[
                    :, :, first : first + self.fold_channels
                ]
                for first, (source, offset) in ((0, later), (self.fold_channels, earlier))
            )
            return torch.cat([*groups, x[:, :, 2 * self.fold_channels :]], 2).flatten(0, 1)
        out, steps = x.clone(), x.shape[1]
        for first, (source, offset) in ((0, later), (self.fold_channels, earlier)):
            group = slice(first, first + self.fold_channels)
            to, frm = overlap(offset, steps)
            out[:, to, group] = source[:, frm, group]
            if offset:  # what would come from outside the clip
                out[:, -1 if offset > 0 else 0, group] = 0
        return out.flatten(0, 1)

    def _apply_form(self, x: Tensor, steps: int, form: str) -> tuple[Tensor, ...]:
        slots = slot_views(x, steps, form)
        return tuple(
            self._mix(slots[kept], *((slots[slot], offset) for slot, offset in taken))
            for kept, *taken in self._TAKES[form]
        )

    def reach(self, form: str) -> tuple[int, int]:
        return 1, 1

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        outputs = []
        for kept, *taken in self._TAKES[form]:
            out = near[0][kept].clone()
            for i, (slot, offset) in enumerate(taken):
                group = slice(i * self.fold_channels, (i + 1) * self.fold_channels)
                out[:, group] = near[offset][slot][:, group] if offset in near else 0
            outputs.append(out)
        return tuple(outputs)

    def extra_repr(self) -> str:
        return f'{self.fold_channels} channels each way'
