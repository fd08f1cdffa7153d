"""Transforms against plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bvtam.clip import ClipConfig
from bvtam.data.transforms import to_clip
from bvtam.errors import BvtamError


def resize_axis(length, out, kernel):
    """(out, length) weights of antialiased resampling: the kernel widens as pixels merge."""
    scale = length / out
    centre = (np.arange(out)[:, None] + 0.5) * scale
    weights = kernel(np.abs(np.arange(length) + 0.5 - centre) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def bilinear(x):
    return np.clip(1 - x, 0, None)


def bicubic(x):  # Keys, a = -1/2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@pytest.mark.parametrize('interpolation, kernel', [('bilinear', bilinear), ('bicubic', bicubic)])
@pytest.mark.parametrize('height, width', [(37, 61), (61, 37), (20, 33)])
@pytest.mark.parametrize('num_crops', [1, 3])
def test_to_clip_is_resize_crop_normalise(interpolation, kernel, height, width, num_crops):
    random = np.random.default_rng(height * width)
    frames = random.integers(0, 256, (4, 3, height, width), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    config = ClipConfig(
        resize=28,
        crop_size=24,
        num_crops=num_crops,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    out = to_clip(torch.from_numpy(frames), config)

    short = min(height, width)
    new_h, new_w = 28 * height // short, 28 * width // short
    rows, cols = resize_axis(height, new_h, kernel), resize_axis(width, new_w, kernel)
    # Along the width, then the height; both passes end on the 256 grey levels.
    resized = np.clip(frames.astype(float) @ cols.T, 0, 255).round()
    resized = np.clip(rows @ resized, 0, 255).round() / 255
    top, left = (new_h - 24) // 2, (new_w - 24) // 2
    if num_crops == 1:
        corners = [(top, left)]
    elif width > height:
        corners = [(top, 0), (top, left), (top, new_w - 24)]
    else:
        corners = [(0, left), (top, left), (new_h - 24, left)]
    assert out.shape == (num_crops, 3, 4, 24, 24)
    assert out.dtype == torch.float32 and out.is_contiguous()
    for view, (y, x) in zip(out, corners, strict=True):
        for channel in range(3):
            wanted = (resized[:, channel, y : y + 24, x : x + 24] - mean[channel]) / std[channel]
            levels = np.abs(view[channel].numpy() - wanted) * std[channel] * 255
            # A weight rounded to 16 bits may decide between two levels.
            assert levels.max() < 1.01 and levels.mean() < 0.02


def test_frames_of_the_right_size_are_not_resized():
    frames = torch.randint(0, 256, (2, 3, 20, 31), dtype=torch.uint8)
    config = ClipConfig(resize=20, crop_size=20, num_crops=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    out = to_clip(frames, config)
    for view, left in zip(
        out, (0, 6, 11), strict=True
    ):  # 5.5 is rounded to even, as CenterCrop does
        wanted = frames[..., left : left + 20].transpose(0, 1)
        assert torch.equal((view * 255).round().to(torch.uint8), wanted)


def test_to_clip_names_what_does_not_fit():
    config = ClipConfig(resize=8, crop_size=8)
    with pytest.raises(BvtamError, match=r'uint8 tensor \(T, C, H, W\), not torch.float32'):
        to_clip(torch.zeros(2, 3, 8, 8), config)
    with pytest.raises(BvtamError, match=r'not torch.uint8 \(3, 8, 8\)'):
        to_clip(torch.zeros(3, 8, 8, dtype=torch.uint8), config)
    with pytest.raises(BvtamError, match=r'clip\.mean has 3 channels, but the frames have 1'):
        to_clip(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), config)
