"""Transport streams that were joined end to end: where, and whether the last pictures of each are whole."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import av
from av.video.reformatter import VideoReformatter

from . import mpeg_ts
from .memory import MAX_PIXELS

_MOST = 64 << 20  # bytes of packets that are kept
# Decoders of these go on behind the end without a word; whole pictures do not change by what follows.
_SILENT = {'hevc', 'vvc'}
_FILLING = b'\xa5' * 64


class Damage(Exception):
    """Why a frame of the video cannot be had as it was."""


class Tail(NamedTuple):
    """Packets from the keyframe before the last one on, of which the last may be cut."""

    codec: str
    extradata: bytes | None
    packets: list[bytes]

    def is_cut(self) -> bool:
        *sound, last = self.packets
        before, whole = self._decoded(sound), self._decoded(self.packets)
        if whole[0] > before[0] or whole[1] == before[1]:
            return True
        return self.codec in _SILENT and self._decoded([*sound, last + _FILLING]) != whole

    def _decoded(self, packets: list[bytes]) -> tuple[int, list[int]]:
        """The number of broken or missing pictures; and a hash of each picture."""
        decoder = av.CodecContext.create(self.codec, 'r')
        decoder.extradata, decoder.thread_count = self.extradata, 1
        decoder.options = {'max_pixels': str(MAX_PIXELS)}
        broken, found, reformatter = 0, [], VideoReformatter()
        for data in [*packets, None]:
            try:
                frames = decoder.decode(None if data is None else av.Packet(data))
            except av.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                broken += frame.is_corrupt
                # Threads of its own would hang in a process that was forked (PyAV 19).
                rgb = reformatter.reformat(frame, format='rgb24', threads=1)
                found.append(hash(rgb.to_ndarray().tobytes()))
        return broken, found


def check(tails: list[Tail]) -> None:
    """`Damage` where the last picture of one is cut."""
    if any(tail.is_cut() for tail in tails):
        raise Damage('the last picture is cut short')


class JoinFinder:
    """Tells packets that are marked because another file was added there from packets that were lost.

    FFmpeg marks the packet at which counters break, or the one before. A loss takes neither the
    clock back nor ends at a keyframe; a join does both, or leaves no time out.

    `path` is that of the file, of which bytes are looked at; '' where there is none.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, path: str = ''
    ) -> None:
        self.format, self.stream, self.path = container.format.name, stream, path
        self.doubtful: list[Tail] = []  # for `check`
        self._number = 0
        self._marked: tuple[int, int | None] | None = None  # number and place of the first
        self._before: int | None = None  # dts
        self._step = 0  # the longest between two packets
        self._groups: deque[list[av.Packet]] = deque(maxlen=2)  # each from a keyframe on
        self._kept = 0  # bytes in the last one

    def see(self, packet: av.Packet | None) -> None:
        """The next packet of the stream, None at its end.

        Raises:
            Damage: one before it is cut short, or some between are missing.
        """
        if packet is None:
            self._end()
            return
        if self._marked is not None:
            if packet.is_keyframe and self._is_join(packet):
                self._marked = None
                self._before = None
                self._groups.clear()
            elif self._number - self._marked[0] > 1:
                raise Damage(self._reason())
        if packet.is_corrupt and self._marked is None:
            self._marked = self._number, packet.pos
        if None not in (self._before, packet.dts):
            self._step = max(self._step, packet.dts - self._before)
        self._before = packet.dts
        self._number += 1
        self._keep(packet)

    def _end(self) -> None:
        if self._marked is not None:
            raise Damage(self._reason())
        if self.format in _SILENT:
            self._doubt()
        elif self.format == 'mpegts' and self.path:
            with open(self.path, 'rb') as file:
                if not mpeg_ts.ends_whole(file, file.seek(0, 2), self.stream.id):
                    self._doubt()

    def _reason(self) -> str:
        reason = f'packet {self._marked[0]} is cut short'
        if self.format == 'mpegts':
            reason += (
                ', or followed by a gap or another file that was added '
                '(`ffmpeg -i FILE -c copy NEW.ts` makes one of added files)'
            )
        return reason

    def _is_join(self, key: av.Packet) -> bool:
        if self.format != 'mpegts' or None in (self._before, key.dts):
            return False
        goes_on = key.dts < self._before or key.dts - self._before <= 1.5 * self._step
        if not self.path:
            return goes_on
        start = self._marked[1]
        if start is None or key.pos is None:
            return False
        with open(self.path, 'rb') as file:
            if not (goes_on or mpeg_ts.begins_anew(file, key.pos)):
                return False
            whole = mpeg_ts.breaks_between(file, start, key.pos, self.stream.id)
        if whole is None:
            self._doubt()
        return whole is not False

    def _keep(self, packet: av.Packet) -> None:
        """Holds those since the last keyframe, where the last may be in doubt."""
        if self.format not in _SILENT | {'mpegts'}:
            return
        if packet.is_keyframe:
            self._groups.append([])
            self._kept = 0
        if self._groups:
            self._groups[-1].append(packet)
            self._kept += packet.size
            if self._kept > _MOST:
                self._groups.clear()

    def _doubt(self) -> None:
        if self._groups:
            codec = self.stream.codec_context
            packets = [bytes(packet) for group in self._groups for packet in group]
            self.doubtful.append(Tail(codec.codec.canonical_name, codec.extradata, packets))
