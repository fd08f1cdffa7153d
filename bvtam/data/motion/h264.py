"""Codecs that leave no trace of the direction of time, in memory and in files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ...errors import BvtamError
from ...files import atomic_file
from ..video.write import Coding, write_video

CODECS = ('h264', 'mpeg4', 'mjpeg')


def recode(clip_CTHW: Tensor, quantiser: int, codec: str = 'h264') -> Tensor:
    """The clip after a lossy codec: each frame coded by itself, at a constant quantiser.

    Codecs otherwise predict frames from earlier ones, and so leave a trace of the direction in which
    time ran. This way, coding the reversed clip gives the reversed coded clip, to the last bit.

    Args:
        clip_CTHW: uint8 RGB (3, T, H, W), H and W even.
        quantiser: H.264's QP, from 0 (lossless) to 51; the other codecs take the same step.
        codec: one of `CODECS`.

    Returns:
        uint8 RGB of the same shape.
    """
    _, _, height, width = clip_CTHW.shape
    if codec == 'h264':
        name, options = 'libx264', {'qp': str(quantiser), 'preset': 'veryfast'}
    else:  # their step grows linearly, where that of H.264 doubles with every six: x264's own table
        scale = str(max(2, min(31, round(0.85 * 2 ** ((quantiser - 12) / 6)))))
        name, options = codec, {'qmin': scale, 'qmax': scale}
    encoder = av.CodecContext.create(name, 'w')
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = options | {'g': '1'}
    decoder = av.CodecContext.create(codec, 'r')
    decoder.thread_count = 1
    pictures = [
        av.VideoFrame.from_ndarray(picture, format='rgb24')
        for picture in clip_CTHW.permute(1, 2, 3, 0).contiguous().numpy()
    ]
    for number, picture in enumerate(pictures):
        picture.pts = number
    frames = [
        frame
        for picture in [*pictures, None]
        for packet in encoder.encode(picture)
        for frame in decoder.decode(packet)
    ]
    frames += decoder.decode(None)
    reformat = VideoReformatter().reformat  # one for all: setting it up takes most of the time
    coded = [reformat(frame, format='rgb24', threads=1).to_ndarray() for frame in frames]
    return torch.from_numpy(np.stack(coded)).permute(3, 0, 1, 2)


def write_clip(
    path: str | os.PathLike[str],
    clip_CTHW: Tensor,
    fps: float = 25.0,
    quantiser: int = 20,
    gop: int = 1,
) -> Path:
    """Writes an H.264 file, whole or not at all.

    Args:
        clip_CTHW, quantiser: as of `recode`; the quantiser is that of every frame, since rate control
            would look back.
        gop: frames from one that is coded by itself to the next. 1 keeps coding free of a direction
            of time (see `recode`); 250 gives far smaller files.

    Raises:
        BvtamError: frames of an odd height or width, or a file that cannot be written.
    """
    path = Path(path)
    _, num_frames, height, width = clip_CTHW.shape
    check_even(path, height, width)
    rate = Fraction(fps).limit_denominator(1001)
    options = {'qp': str(quantiser), 'g': str(gop), 'preset': 'slow'}
    coding = Coding('libx264', options, clock=rate, quick_start=False)
    times = torch.arange(num_frames, dtype=torch.float64) / float(rate)
    with atomic_file(path) as new:
        write_video(new, clip_CTHW.unbind(1), times, num_frames / float(rate), coding)
    return path


def check_even(name: object, height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise BvtamError(f'{name}: H.264 needs an even height and width, not {height} x {width}')
