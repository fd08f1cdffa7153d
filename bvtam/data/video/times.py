"""Seconds to frames, by the times at which the frames of a video appear."""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 1e-6  # seconds; times of frames are rounded


def frames_from(times: Tensor, seconds: Tensor) -> Tensor:
    """The first frames that appear at `seconds`, of any shape, or later; V where none does.

    `times` are those of `Reader`, (V,).
    """
    return torch.searchsorted(times, seconds - _TOLERANCE)


def frames_at(times: Tensor, seconds: Tensor) -> Tensor:
    """The frames on screen at `seconds`, the first or last one for times outside the video."""
    shown = torch.searchsorted(times, seconds + _TOLERANCE, right=True) - 1
    return shown.clamp(0, len(times) - 1)
