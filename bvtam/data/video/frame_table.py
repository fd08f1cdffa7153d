"""When each frame of a video is shown and where decoding can start, from its packets alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from .h264_fields import FieldFinder
from .joins import Damage, JoinFinder, Tail
from .pyav import num_indexed

# Codecs of which every packet that shows a picture shows one, and says so in its flags.
_ONE_TO_ONE = {'av1', 'dnxhd', 'ffv1', 'h264', 'hevc', 'huffyuv', 'mjpeg', 'mpeg1video'}
_ONE_TO_ONE |= {'mpeg2video', 'mpeg4', 'png', 'prores', 'vp8', 'vp9'}
_MAYBE_FIELDS = ('mpegts', 'mpeg')  # formats of which a packet may be half of an interlaced frame
_RAW = {'cavsvideo', 'evc', 'h264', 'hevc', 'm4v', 'mjpeg', 'mpegvideo', 'obu', 'vc1', 'vvc'}
INTERLACED = range(2, 6)  # of FFmpeg's AVFieldOrder
_NO_PICTURE = 8  # bytes: an MPEG-4 packet no longer than this may say 'as before'


class Key(NamedTuple):
    """A packet at which decoding can start: its place in the file, and its times in ticks."""

    number: int
    pts: int
    dts: int


@dataclass(frozen=True)
class FrameTable:
    """The frames of a video in the order in which they are shown.

    Attributes:
        times: (V,) float64 seconds from the first frame.
        duration: seconds from the first frame to the end of the last.
        pts: (V,) int64, rising: the time of each frame in ticks of the stream; None where frames
            are told by their count alone.
        keys: where decoding can start, in the file's order.
        starts: (V,) place in `keys` from which each frame is decoded.
    """

    times: Tensor
    duration: float
    pts: np.ndarray | None = None
    keys: tuple[Key, ...] = ()
    starts: np.ndarray | None = None


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    size: int
    is_key: bool
    is_shown: bool


def scan(
    container: av.container.InputContainer, stream: av.VideoStream, path: str = ''
) -> tuple[FrameTable | None, list[Tail]]:
    """The table of a newly opened stream, or None where only decoding tells its frames.

    Also what only a look at pictures can tell to be cut. `path` is that of the file, if it is one.

    Raises:
        Damage: a packet is cut short, or some are missing at the end.
        av.FFmpegError: the container is damaged.
    """
    packets, end, fields = [], 0.0, False
    codec = stream.codec_context.codec.canonical_name
    vp8, finder = codec == 'vp8', FieldFinder(stream.codec_context.extradata)
    finds_fields, joins = codec == 'h264' and finder.possible, JoinFinder(container, stream, path)
    for packet in container.demux():
        if not packet.size:
            continue
        pts, duration = packet.pts, packet.duration or 0
        if packet.stream is stream:
            joins.see(packet)
            shown = not packet.is_discard
            if vp8 and not memoryview(packet)[0] & 0x10:  # only there for others to build on
                shown = False
            fields = fields or (finds_fields and finder.is_field(bytes(packet)))
            packets.append(
                _Packet(pts, packet.dts, duration, packet.size, packet.is_keyframe, shown)
            )
        if pts is not None:
            end = max(end, (pts + duration) * float(packet.time_base))
    joins.see(None)
    _check_complete(container, stream, len(packets), end)
    table = None if fields else _table(container.format.name, stream, packets)
    return table, joins.doubtful


def _check_complete(
    container: av.container.InputContainer, stream: av.VideoStream, count: int, end: float
) -> None:
    """`Damage` where the header promises more: some formats end without an error where they are cut.

    Headers are not exact, and a header that counts from time zero is no sign of damage.
    """
    formats = container.format.name.split(',')
    promised, indexed = 0.9 * stream.frames, num_indexed(stream)
    if 'mp4' in formats and indexed is not None:
        # What is outside an edit list counts in the header, but is not in FFmpeg's index.
        promised = indexed
    elif 'avi' in formats:
        promised = 0  # it counts chunks without a picture, too; its clock tells where they end
    if count < promised:
        raise Damage(f'it holds {count} of {max(stream.frames, int(promised))} frames')
    seconds = (container.duration or 0) / av.time_base
    # A clock that wraps, or a cut before a keyframe, begins below zero.
    lasted = end - min(0, container.start_time or 0) / av.time_base
    if lasted < 0.9 * seconds:
        raise Damage(f'it ends at {lasted:.1f} of {seconds:.1f} s')
    if not count:
        raise Damage('the stream is empty')


def _table(format: str, stream: av.VideoStream, packets: list[_Packet]) -> FrameTable | None:
    codec = stream.codec_context
    name = codec.codec.canonical_name
    interlaced = codec.field_order in INTERLACED
    if (
        name not in _ONE_TO_ONE
        or (format == 'avi' and codec.has_b_frames)  # it keeps no times, and FFmpeg guesses
        or (interlaced and (format in _MAYBE_FIELDS or (name == 'h264' and not codec.extradata)))
        or (name == 'mpeg4' and min(p.size for p in packets) <= _NO_PICTURE)
    ):
        return None
    shown = [(p.pts, number, p.duration) for number, p in enumerate(packets) if p.is_shown]
    keys = [(number, p.pts, p.dts) for number, p in enumerate(packets) if p.is_key]
    if (
        not shown
        or not keys
        or any(row[0] is None for row in shown)
        or None in [k[1] for k in keys]
    ):
        return None
    pts, numbers, durations = np.array(sorted(shown), np.int64).T
    key_numbers, key_pts = np.array([key[:2] for key in keys], np.int64).T
    latest = np.searchsorted(key_numbers, numbers, 'right') - 1  # key at or before each packet
    before = key_pts[np.maximum(latest - 1, 0)]
    sound = (
        key_numbers[0] == 0  # else the first frames build on what is missing
        and (np.diff(pts) > 0).all()
        and (np.diff(key_pts) > 0).all()  # else times start anew somewhere
        and (pts >= before).all()
    )
    if not sound:
        return None
    # Frames shown before a key that stands before them in the file may need the key before it.
    starts = np.minimum(latest, np.searchsorted(key_pts, pts, 'right') - 1)
    tick = stream.time_base
    times = torch.from_numpy((pts - pts[0]) * tick.numerator / tick.denominator)
    last = float(durations[-1] * tick) or _interval(stream, times)
    return FrameTable(
        times,
        float(times[-1]) + last,
        pts,
        tuple(Key(n, p, p if d is None else min(p, d)) for n, p, d in keys),
        starts,
    )


def counted_table(stream: av.VideoStream, seconds: list[float | None], last: float) -> FrameTable:
    """The table of frames that came out of the decoder at these times, which may be missing.

    `last` is how long the last one is shown, 0 where that is not known.
    """
    if None not in seconds:
        clock = Clock(stream)
        seconds = [clock(second) for second in seconds]
    if None not in seconds and all(a < b for a, b in pairwise(seconds)):
        times = torch.tensor(seconds, dtype=torch.float64)
    else:
        times, last = torch.arange(len(seconds), dtype=torch.float64) / frame_rate(stream), 0.0
    return FrameTable(times, float(times[-1]) + (last or _interval(stream, times)))


class Clock:
    """Seconds from the first frame on; also where the clock of a transport stream starts anew."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._anew = stream.container.format.name == 'mpegts'
        self._step, self._count = 1 / frame_rate(stream), 0
        self._shift = self._last = 0.0

    def __call__(self, second: float | None) -> float:
        """When the next frame is shown, whose own time is this or missing."""
        number, self._count = self._count, self._count + 1
        if second is None:
            return number * self._step
        if not number:
            self._shift = -second
        elif self._anew and second + self._shift <= self._last:
            self._shift = self._last + self._step - second
        elif self._anew:
            self._step = second + self._shift - self._last
        self._last = second + self._shift
        return self._last


def frame_rate(stream: av.VideoStream) -> float:
    """Frames a second where no times tell it.

    The mean of a raw stream is what FFmpeg assumes; its guess is what the stream's headers say.
    """
    raw = stream.container.format.name in _RAW
    rates = (stream.average_rate, stream.guessed_rate)
    return float(next(filter(None, rates[::-1] if raw else rates), 25))


def _interval(stream: av.VideoStream, times: Tensor) -> float:
    """Mean seconds from a frame to the next."""
    if len(times) > 1:
        return float(times[-1]) / (len(times) - 1)
    return 1 / frame_rate(stream)
