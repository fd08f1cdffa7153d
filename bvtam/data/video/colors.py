"""Colours of frames: from decoded ones to RGB, and back for an encoder, by tags.

Tags are numbers of ITU-T H.273, as FFmpeg has them. Values stay as coded: matrix and range are undone,
transfer (PQ and HLG of HDR included) and primaries are not.
"""

from __future__ import annotations

from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from ...clip import COLORS
from ...errors import BvtamError

_BT601, _BT2020, _BT2020_CONSTANT, _UNSPECIFIED = 6, 9, 10, 2
# Matrices that swscale knows, as it calls them, of YCbCr in the order of H.273.
_SWSCALE = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
_RESERVED = (0, 3)
_FULL_RANGE = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8)


class Tags(NamedTuple):
    """The colour tags of a video.

    Attributes:
        matrix, primaries, transfer: of H.273; `matrix` one that can be written.
        full: whether the range is full, not limited.
    """

    matrix: int = _BT601
    primaries: int = _BT601
    transfer: int = _BT601
    full: bool = False

    @property
    def range(self) -> ColorRange:
        return ColorRange.JPEG if self.full else ColorRange.MPEG


UNTAGGED = Tags()  # of pictures that are no video


def check_colors(colors: str) -> str:
    if colors not in COLORS:
        raise BvtamError(f'colors must be one of {", ".join(COLORS)}, not {colors!r}')
    return colors


def tags_of(frame: av.VideoFrame) -> Tags:
    """The tags of a decoded frame, with BT.601 for a matrix that is not told or not known."""
    others = (frame.color_primaries, frame.color_trc)
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith('yuvj')
    return Tags(
        _matrix(frame),
        *(_UNSPECIFIED if tag in _RESERVED else tag for tag in others),
        full and not frame.format.is_rgb,
    )


def to_rgb(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    size: tuple[int, int],
    colors: str = 'tagged',
) -> np.ndarray:
    """A decoded frame as uint8 RGB (H, W, C), scaled to `size` (width, height).

    Args:
        reformatter: kept from frame to frame, since setting it up takes time.
        frame: its tags are changed.
        colors: 'tagged' or 'jpeg', see `ClipConfig`. A JPEG file has the components of the frame at
            full range, and is read by BT.601 whatever their matrix; of grey it has the levels.
    """
    stretch = (
        colors == 'tagged'
        and frame.format.name.startswith('gray')
        and frame.color_range == ColorRange.MPEG
    )
    frame.colorspace = _BT601 if colors == 'jpeg' else _matrix(frame)
    frame.color_primaries = frame.color_trc = _UNSPECIFIED  # swscale refuses those it does not know
    rgb = reformatter.reformat(frame, *size, 'rgb24', threads=1).to_ndarray()
    return _FULL_RANGE[rgb] if stretch else rgb  # swscale takes every grey format for full range


def from_rgb(reformatter: VideoReformatter, rgb_HWC: np.ndarray, tags: Tags) -> av.VideoFrame:
    """A yuv420p frame for an encoder, of these tags, that `to_rgb` gives back for 'tagged'."""
    frame = reformatter.reformat(
        av.VideoFrame.from_ndarray(rgb_HWC, 'rgb24'),
        format='yuv420p',
        dst_colorspace=_SWSCALE[tags.matrix],
        dst_color_range=tags.range,
        threads=1,
    )
    frame.colorspace, frame.color_range = tags.matrix, tags.range
    return frame


def _matrix(frame: av.VideoFrame) -> int:
    """The matrix to read a frame by: its own where swscale has it, else the nearest that it has."""
    tag = _BT2020 if frame.colorspace == _BT2020_CONSTANT else frame.colorspace
    return tag if tag in _SWSCALE else _BT601
