"""Decoding from the nearest keyframe before a frame, or all frames of a stream in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
import numpy as np

from .frame_table import INTERLACED, FrameTable, Key
from .joins import Damage, JoinFinder, check

_NO_FIELDS = {'apng', 'gif', 'webp'}
_NEAR = 32  # packets; so many are passed over sooner than a seek finds its place


class Mismatch(Exception):
    """The decoder's frames are not those of the table."""


class Decoder:
    """Frames of one newly opened stream; by their number, in rising order, or all of them.

    With a table that has `pts` it goes on at a later keyframe where that is nearer to the frame,
    and checks that the frames are those of the table.

    `joins` is of a stream that was not scanned before; marked packets are what they say else.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        table: FrameTable | None = None,
        joins: JoinFinder | None = None,
    ) -> None:
        # One thread: with several, FFmpeg marks the broken frames of H.264 sometimes, or never, and
        # the same file would be sound each second time. Videos are better decoded side by side.
        stream.codec_context.thread_count = 1
        self.container, self.stream, self.table = container, stream, table
        self.joins = joins
        self.packets: Iterator[av.Packet] | None = container.demux(stream)
        self.ready: deque[av.VideoFrame] = deque()
        self.fed = 0  # packets up to where the decoder is in the file
        self.due = 0  # number of the frame that must come next
        self.floor: int | None = None  # pts of the keyframe at which decoding began

    def __iter__(self) -> Iterator[av.VideoFrame]:
        while (frame := self._next()) is not None:
            self.due += 1
            yield frame

    def seconds(self, frame: av.VideoFrame) -> float | None:
        """When it is shown; the last frames do not know by themselves."""
        return None if frame.pts is None else float(frame.pts * self.stream.time_base)

    def length(self, frame: av.VideoFrame) -> float:
        """Seconds for which it is shown, 0 where that is not known; a field has half of a frame's."""
        codec = self.stream.codec_context
        known = codec.codec.canonical_name in _NO_FIELDS or codec.field_order not in INTERLACED
        return float((frame.duration or 0) * self.stream.time_base) if known else 0.0

    def frame(self, number: int) -> av.VideoFrame:
        """Frame `number`, not before the last one asked for.

        Raises:
            Damage: it, or one that it builds on, is broken.
            Mismatch: the table is not this video's.
        """
        known = self.table is not None and self.table.pts is not None
        if known:
            place = int(self.table.starts[number])
            if self.table.keys[place].number > self.fed:
                self._enter(place)
        while True:
            frame = self._next()
            if frame is None:
                raise Mismatch(f'there is no frame {self.due}')
            if known:
                if self.floor is not None and frame.pts is not None and frame.pts < self.floor:
                    continue  # builds on what was left out
                if frame.pts != self.table.pts[self.due]:
                    raise Mismatch(
                        f'frame {self.due} is at {frame.pts}, not {self.table.pts[self.due]}'
                    )
            self.due += 1
            if self.due > number:
                return frame

    def _next(self) -> av.VideoFrame | None:
        while not self.ready and self.packets is not None:
            packet = next(self.packets, None)
            if packet is None:
                self.packets = None
            elif not packet.size:
                continue
            if self.joins:
                self.joins.see(packet)
                check(self.joins.doubtful)
                self.joins.doubtful.clear()
            self._feed(packet)
        if not self.ready:
            return None
        frame = self.ready.popleft()
        if frame.is_corrupt:
            raise Damage(f'frame {self.due} is broken')
        return frame

    def _feed(self, packet: av.Packet | None) -> None:
        # One is marked where files were joined; else `scan` had raised.
        if packet is not None and packet.is_corrupt:
            marked, packet = packet, av.Packet(bytes(packet))
            packet.pts, packet.dts, packet.time_base = marked.pts, marked.dts, marked.time_base
        try:
            self.ready.extend(self.stream.decode(packet))  # None asks for the frames it holds
        except av.FFmpegError as error:
            raise Damage(f'packet {self.fed} cannot be decoded ({error.strerror})') from error
        self.fed += 1

    def _enter(self, place: int) -> None:
        """Goes on at the key `place`; the packets up to it are not decoded."""
        key = self.table.keys[place]
        self.ready.clear()
        if key.number - self.fed <= _NEAR:
            self.stream.codec_context.flush_buffers()
            found = self._pass_to(key)
        else:
            # Where a seek ends depends on the format; if that is behind the key, one to before it.
            found, aim, step = False, place, 1
            while not found and aim >= 0:
                try:
                    self.container.seek(self.table.keys[aim].dts, stream=self.stream)
                except av.FFmpegError as error:
                    raise Mismatch(error.strerror) from None
                self.packets = self.container.demux(self.stream)
                found = self._pass_to(key)
                aim, step = (max(0, aim - step) if aim else -1), 2 * step
        if not found:
            raise Mismatch(f'there is no keyframe at {key.pts}')

    def _pass_to(self, key: Key) -> bool:
        for packet in self.packets:
            if packet.is_keyframe and packet.size and packet.pts is not None:
                if packet.pts == key.pts:
                    self.fed, self.floor = key.number, key.pts
                    self.due = int(np.searchsorted(self.table.pts, key.pts))
                    self._feed(packet)
                    return True
                if packet.pts > key.pts:
                    break
        return False
