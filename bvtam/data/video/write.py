"""Frames to a video file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from .colors import Tags, from_rgb

_LOOKAHEAD_BYTES = 512 << 20  # of frames that x264 looks at ahead


@dataclass(frozen=True)
class Coding:
    """Settings of an encoder.

    Attributes:
        codec: 'libx264' or 'mpeg4'.
        options: of the encoder, as FFmpeg calls them.
        clock: ticks a second, of which the times of frames are multiples; MPEG-4 allows 65535.
        quick_start: whether the index is at the start of the file, so that players need not seek.
    """

    codec: str = 'libx264'
    options: Mapping[str, str] = field(default_factory=dict)
    clock: Fraction | int = 90000
    quick_start: bool = True


def write_video(
    path: Path,
    pictures: Iterable[Tensor],
    times: Tensor,
    duration: float,
    coding: Coding,
    pixel_aspect: Fraction = Fraction(1),
    tags: Tags | None = None,
) -> None:
    """An MP4 file without sound. One thread encodes, so that the same pictures give the same bytes.

    Args:
        pictures: V uint8 RGB tensors (C, H, W); H and W even and always the same.
        times: (V,) seconds at which the frames are shown, rising from 0.
        duration: seconds from the first frame to the end of the last.
        coding: without frames that depend on later ones.
        pixel_aspect: width of a pixel over its height, for players.
        tags: of the colours, by whose matrix and range the pictures are coded; None for none.

    Raises:
        OSError: the file cannot be written.
        av.FFmpegError: the encoder refuses the pictures.
    """
    codec, clock = coding.codec, coding.clock
    ticks = (
        torch.cat([times, times.new_tensor([duration])]).mul(float(clock)).round().long().tolist()
    )
    for i in range(1, len(ticks)):  # frames nearer to each other than a tick
        ticks[i] = max(ticks[i], ticks[i - 1] + 1)
    lasting = {tick: after - tick for tick, after in pairwise(ticks)}
    flags = {'movflags': '+faststart'} if coding.quick_start else {}
    # With its protocol, or FFmpeg takes what stands before a colon in a name for one.
    with av.open(f'file:{path}', 'w', format='mp4', options=flags) as container:
        rate = Fraction(len(times) * clock, ticks[-1]).limit_denominator(1001)
        rate = max(rate, Fraction(1, 1001))
        stream = container.add_stream(codec, rate=rate, options=dict(coding.options))
        stream.pix_fmt = 'yuv420p'
        encoder = stream.codec_context
        stream.time_base = encoder.time_base = 1 / Fraction(clock)
        encoder.thread_count = 1
        if pixel_aspect != 1:
            encoder.sample_aspect_ratio = pixel_aspect
        if tags is not None:
            encoder.colorspace, encoder.color_range = tags.matrix, tags.range
            encoder.color_primaries, encoder.color_trc = tags.primaries, tags.transfer
        reformatter = VideoReformatter()

        def mux(packets: list[av.Packet]) -> None:
            for packet in packets:  # the encoder makes every frame last as long as the mean
                packet.duration = lasting[packet.pts]
                container.mux(packet)

        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = picture.shape[1:]
                ahead = _LOOKAHEAD_BYTES // picture.numel()
                if codec == 'libx264' and ahead < 30:  # its preset's
                    encoder.options |= {'rc-lookahead': str(ahead)}
            rgb_HWC = picture.permute(1, 2, 0).contiguous().numpy()
            if tags is None:
                frame = av.VideoFrame.from_ndarray(rgb_HWC, format='rgb24')
            else:
                frame = from_rgb(reformatter, rgb_HWC, tags)
            frame.pts, frame.time_base = ticks[i], encoder.time_base
            mux(stream.encode(frame))
        mux(stream.encode(None))
