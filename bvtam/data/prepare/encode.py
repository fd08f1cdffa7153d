"""One video made smaller: a file of short groups of pictures, or a folder of JPEG files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.transforms.v2 import functional as F

from ...errors import BvtamError
from ...files import sync
from ..failures import machine_errors
from ..records import Record, open_record
from ..video.colors import UNTAGGED, check_colors
from ..video.reader import Reader, VideoError
from ..video.times import frames_at
from ..video.write import Coding, write_video
from .workers import watch

log = logging.getLogger('bvtam')

FORMATS = {'video': (18, 0, 51), 'frames': (95, 1, 100)}  # quality: by default, least, most
IMAGE_NAME = '{:05d}.jpg'  # counted from 1, as in the authors' frame folders
_TOLERANCE = 1e-6  # seconds; times are rounded
_HUNG = 60  # time limits without a frame: the decoder never returns


@dataclass
class Encoding:
    """The settings of prepared videos, see `prepare`; a `BvtamError` where one is outside its range."""

    format: str = 'video'
    size: int = 256
    fps: float | None = None
    gop: int = 12
    quality: int | None = None
    codec: str = ''  # 'libx264', or 'mpeg4' where this FFmpeg lacks it; 'jpeg' of frames
    colors: str = 'tagged'

    def __post_init__(self) -> None:
        check_colors(self.colors)
        if self.format not in FORMATS:
            raise BvtamError(f'format must be one of {", ".join(FORMATS)}, not {self.format!r}')
        best, least, most = FORMATS[self.format]
        self.quality = best if self.quality is None else self.quality
        if self.format == 'video' and self.colors != 'tagged':
            raise BvtamError(
                f'colors {self.colors} is of frames: a video keeps its tags, by which each model '
                'sees the colours that it needs; leave it out, or take the format frames'
            )
        if self.size < 16 or self.size % 2:
            raise BvtamError(f'size must be an even number from 16 on, not {self.size}')
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise BvtamError(f'fps must be above 0 and at most 1000, not {self.fps}')
        if self.gop < 1:
            raise BvtamError(f'gop must be at least 1, not {self.gop}')
        if not least <= self.quality <= most:
            raise BvtamError(
                f'quality of {self.format} must be from {least} to {most}, not {self.quality}'
            )
        self.codec = 'jpeg' if self.format == 'frames' else _video_codec()

    @property
    def coding(self) -> Coding:
        """For `write_video`. Decoding can start at every `gop`-th frame, and no frame depends on a later
        one, so that a reader decodes at most `gop` of them to reach any."""
        options = {'g': str(self.gop), 'bf': '0'}
        if self.codec == 'libx264':
            options |= {'crf': str(self.quality), 'preset': 'fast'}
            options |= {'keyint_min': str(self.gop), 'sc_threshold': '0'}  # keyframes nowhere else
            return Coding(self.codec, options)
        # Its quantiser runs from 1 to 31, in units of 118.
        quantiser = str(118 * max(1, round(self.quality / 8)))
        return Coding(
            self.codec, options | {'flags': '+qscale', 'global_quality': quantiser}, 60000
        )


def _video_codec() -> str:
    if 'libx264' in av.codecs_available:
        return 'libx264'
    log.warning('this PyAV has no libx264: videos are written as MPEG-4, which is larger')
    return 'mpeg4'


def encode(part: Record, path: Path, encoding: Encoding, time_limit: float) -> int:
    """Makes `path`, a video file or a folder of images, of a video or a part of one.

    Returns:
        The number of its frames.

    Raises:
        BvtamError: the video cannot be read.
        OSError: the output cannot be written.
    """

    def resize(frame: Tensor) -> Tensor:
        watch(_HUNG * time_limit)
        return _resized(frame, encoding.size)

    watch(_HUNG * time_limit)
    try:
        with machine_errors(part.source):
            reader = open_record(part, time_limit).with_colors(encoding.colors)
            indices, times, duration = _selection(reader, part, encoding.fps)
            tags = reader.tags if encoding.format == 'video' else UNTAGGED
    except OSError as error:
        raise VideoError(error) from None
    pictures = reader.read_in_turn(indices, resize)
    if encoding.format == 'frames':
        write_frames(path, pictures, encoding.quality)
        return len(indices)
    try:
        aspect = reader.pixel_aspect
        write_video(path, pictures, times, duration, encoding.coding, aspect, tags)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(f'{part.source} cannot be encoded: {error.strerror}') from None
    sync(path)
    return len(indices)


def _selection(reader: Reader, part: Record, fps: float | None) -> tuple[list[int], Tensor, float]:
    """Indices of the frames to keep, the times from the first of them, and how long they last."""
    if fps is None:
        shown = reader.frames_between(part.start, part.end)
        edges = torch.cat([reader.times, reader.times.new_tensor([reader.duration])])
        edges = edges[shown.start : shown.stop + 1] - edges[shown.start]
        return list(shown), edges[:-1], edges[-1].item()
    start = part.start or 0.0
    end = min(reader.duration, math.inf if part.end is None else part.end)
    count = math.ceil((end - start - _TOLERANCE) * fps)
    if count < 1:
        raise VideoError(
            f'{part.source}: nothing is shown from {start:g} to {end:g} s; it lasts '
            f'{reader.duration:g} s'
        )
    times = torch.arange(count, dtype=torch.float64) / fps
    return frames_at(reader.times, start + times).tolist(), times, count / fps


def _resized(frame: Tensor, size: int) -> Tensor:
    """The frame with a shorter side of `size` pixels at most, and even sides."""
    sides = frame.shape[2:]
    short = min(sides)
    scaled = [max(2, (side * size // short if short > size else side) // 2 * 2) for side in sides]
    return F.resize(frame, scaled, antialias=True)


def write_frames(folder: Path, pictures: Iterable[Tensor], quality: int) -> None:
    """A new folder of JPEG files `00001.jpg`, `00002.jpg`, and so on, on disk when this returns.

    `pictures` are uint8 RGB (C, H, W).
    """
    folder.mkdir()
    for number, picture in enumerate(pictures, 1):
        jpeg = encode_jpeg(picture.contiguous(), quality)
        (folder / IMAGE_NAME.format(number)).write_bytes(jpeg.numpy())
    for path in [*folder.iterdir(), folder]:
        sync(path)
