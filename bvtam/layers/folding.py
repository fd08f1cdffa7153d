"""Time folded into the batch: clips (B, C, T, H, W) as frames (B*T, C, H, W), and back."""

from __future__ import annotations

from math import prod

from torch import Tensor


def fold_time(x: Tensor, *steps: int) -> Tensor:
    """Clips (B, C, T, H, W) -> frames (B*T, C, H, W), channels last, in one copy; T = prod(steps)."""
    x = x.permute(0, 2, 3, 4, 1).contiguous().unflatten(1, steps)
    return x.flatten(0, len(steps)).permute(0, 3, 1, 2)


def unfold_time(x: Tensor, *steps: int) -> Tensor:
    """(N*steps, ...) -> (N, steps, ...); N is spelt out, which keeps symbolic shapes simple."""
    return x.unflatten(0, (x.shape[0] // prod(steps), *steps))
