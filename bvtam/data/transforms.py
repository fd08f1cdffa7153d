"""From the frames of a video to the input of a net."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..clip import ClipConfig
from ..errors import BvtamError


def to_clip(frames_TCHW: Tensor, clip: ClipConfig) -> Tensor:
    """Resize, crop, scale to [0, 1] and normalise the frames of one clip, as for a test.

    The shorter side is resized to `clip.resize` pixels and the longer one in proportion, rounded
    down (torchvision's `Resize(int)`), with antialiasing; frames of that size already stay as they
    are. One crop is the centre; three lie at start, centre and end of the longer side.

    Args:
        frames_TCHW: uint8 tensor (T, C, H, W).
        clip: sizes, crops, and mean and standard deviation of each of the C channels.

    Returns:
        float32 tensor (crops, C, T, crop_size, crop_size).

    Raises:
        BvtamError: frames of another kind, or with another number of channels than the mean has.
    """
    if frames_TCHW.ndim != 4 or frames_TCHW.dtype != torch.uint8 or not frames_TCHW.numel():
        raise BvtamError(
            'frames must be a uint8 tensor (T, C, H, W), not '
            f'{frames_TCHW.dtype} {tuple(frames_TCHW.shape)}'
        )
    if frames_TCHW.shape[1] != len(clip.mean):
        raise BvtamError(
            f'clip.mean has {len(clip.mean)} channels, but the frames have {frames_TCHW.shape[1]}'
        )
    mode = InterpolationMode(clip.interpolation)
    frames_TCHW = F.resize(frames_TCHW, [clip.resize], interpolation=mode, antialias=True)
    height, width = frames_TCHW.shape[-2:]
    size = clip.crop_size
    crops = torch.stack(
        [
            frames_TCHW[..., top : top + size, left : left + size]
            for top, left in _corners(height, width, size, clip.num_crops)
        ]
    )
    values = F.normalize(F.to_dtype(crops, torch.float32, scale=True), clip.mean, clip.std)
    return values.transpose(1, 2).contiguous()


def _corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of each crop; the centre is rounded as torchvision's `CenterCrop` does."""
    top, left = round((height - size) / 2), round((width - size) / 2)
    if num_crops == 1:
        return [(top, left)]
    if width >= height:
        return [(top, x) for x in (0, left, width - size)]
    return [(y, left) for y in (0, top, height - size)]
