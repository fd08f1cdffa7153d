"""`VideoFile`: the frames of one video file or stream, by number or in turn."""

from __future__ import annotations

import copy
import gc
import logging
import os
import struct
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import av
import torch
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ...errors import BvtamError
from .addresses import PROTOCOLS, check_protocol, protocol_of, whitelist
from .colors import Tags, check_colors, tags_of, to_rgb
from .container import Opened, damaged, open_stream
from .decoder import Decoder, Mismatch
from .frame_table import Clock, FrameTable, counted_table, scan
from .joins import Damage, JoinFinder, check
from .memory import DECODING, MAX_PIXELS, OPENING_BYTES, frame_bytes, release_memory
from .pipes import Pipe, copy_pipe, remove_copy
from .reader import Reader, Result, VideoError, closed_at_exit
from .truncation import cut_short

log = logging.getLogger('bvtam')


class _Known:
    """Findings about a video, for all readers of it, whatever their colours."""

    def __init__(self) -> None:
        self.table: FrameTable | None = None
        self.size: tuple[int, int] | None = None  # of the first frame, where others differ
        self.frame_pixels = 0
        self.copy: str | None = None  # of a pipe
        self.copying = threading.Lock()

    def keep(self, copy: str) -> None:
        """Uses this copy, and removes it when no reader is left."""
        self.copy = copy
        weakref.finalize(self, remove_copy, copy, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != 'copying'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.copying = threading.Lock()


class VideoFile(Reader):
    """One video file or stream, opened anew whenever frames are asked for.

    Its packets are read once, without decoding, to find when each frame is shown. Frames are then
    decoded from the nearest keyframe before them, and are those that decoding the whole video gives.
    Where packets do not tell the frames (GIF, streams without times, keyframes that are none), the
    video is decoded once to count them and from its start to read them.

    Args:
        path: a file, an address such as `https://...` or `rtsp://...`, or '-' for standard input.
            What can be read only once, a pipe, is copied to a temporary file at the first use.
        time_limit, protocols, colors: as of `open_video`.

    Raises:
        FileNotFoundError: there is no such file.
        BvtamError: the path is a folder, the file is empty, an address of another protocol, or
            unknown `colors`.
        VideoError: from all but the constructor, if the video cannot be opened or decoded, is
            damaged, or stalls.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        time_limit: float = 60.0,
        protocols: Iterable[str] = PROTOCOLS,
        colors: str = 'tagged',
    ) -> None:
        self.colors = check_colors(colors)
        self.name, self.time_limit = os.fspath(path), float(time_limit)
        if not self.time_limit > 0:
            raise BvtamError(f'time_limit must be above 0 seconds, not {time_limit}')
        self._known = _Known()
        self._protocols = whitelist(protocols)
        protocol = protocol_of(self.name) if isinstance(path, str) else ''
        if protocol == 'file':
            self.name, protocol = url2pathname(urlsplit(self.name).path), ''
        if self.name == '-':
            self.name = '/dev/stdin'
        self._is_url = bool(protocol)
        if self._is_url:
            check_protocol(self.name, protocols)
            return
        file = Path(self.name)
        if file.is_dir():
            raise BvtamError(f'{self.name} is a folder; give one video file')
        if not file.exists():
            raise FileNotFoundError(f'{self.name}: no such video file')
        self._is_file = file.is_file()
        if self._is_file and not file.stat().st_size:
            raise VideoError(f'{self.name} is empty (0 bytes); fetch or copy the video again')

    @property
    def frame_pixels(self) -> int:
        return self._known.frame_pixels

    @property
    def num_frames(self) -> int:
        return len(self._frames().times)

    @property
    def times(self) -> Tensor:
        return self._frames().times

    @property
    def duration(self) -> float:
        return self._frames().duration

    @property
    def pixel_aspect(self) -> Fraction:
        with self._opened() as (container, stream):
            aspect = stream.sample_aspect_ratio or Fraction(1)
            if aspect == 1:
                return aspect
            a, b, *_ = _display_matrix(Decoder(container, stream).frame(0))
            return 1 / aspect if abs(b) > abs(a) else aspect

    @property
    def tags(self) -> Tags:
        """The colour tags of its first frame."""
        with self._opened() as (container, stream):
            return tags_of(Decoder(container, stream).frame(0))

    def with_colors(self, colors: str) -> Reader:
        if colors == self.colors:
            return self
        other = copy.copy(self)
        other.colors = check_colors(colors)
        return other

    @closed_at_exit
    def play(self) -> Iterator[tuple[float, Tensor]]:
        """As `Reader.play`, of sources that have no end as well: nothing is read ahead or kept.

        A pipe is not copied, so it can be played once, and a camera (/dev/video0) is opened as one.
        """
        reformatter, matrix, size = VideoReformatter(), (1, 0, 0, 1), None
        with self._opened(live=True) as (container, stream):
            clock = Clock(stream)
            path = '' if self._is_url else self.name if self._is_file else self._known.copy or ''
            decoder = Decoder(container, stream, joins=JoinFinder(container, stream, path))
            for number, frame in enumerate(decoder):
                if frame.width * frame.height > MAX_PIXELS:
                    raise Damage(f'frame {number} has {frame.width}x{frame.height} pixels')
                if size is None:
                    size = frame.width, frame.height
                    matrix = _display_matrix(frame)
                rgb = to_rgb(reformatter, frame, size, self.colors)
                second = clock(decoder.seconds(frame))
                yield second, _upright(torch.from_numpy(rgb), matrix).permute(2, 0, 1)
            if size is None:
                raise Damage('no frame can be decoded')

    def _frames(self) -> FrameTable:
        table = self._known.table
        if table is None:
            held = nullcontext() if self._is_url else DECODING.hold(OPENING_BYTES)
            with held, self._opened() as (container, stream):
                self._known.frame_pixels = stream.codec_context.width * stream.codec_context.height
                path = '' if self._is_url else self._local_path()
                table, doubtful = scan(container, stream, path)
                if path and (reason := cut_short(path, container.format.name)):
                    raise Damage(reason)
            if doubtful:
                with DECODING.hold(frame_bytes(self.frame_pixels)):
                    try:
                        check(doubtful)
                    except Damage as error:
                        raise damaged(self.name, error) from None
            release_memory(frame_bytes(self.frame_pixels))
            self._known.table = table = table or self._count()
        return table

    def _count(self) -> FrameTable:
        """The table of the frames that decoding the whole video gives."""
        held = DECODING.hold(frame_bytes(self.frame_pixels))
        with held, self._opened() as (container, stream):
            decoder = Decoder(container, stream)
            seconds, last = [], 0.0
            for frame in decoder:
                seconds.append(decoder.seconds(frame))
                last = decoder.length(frame)
            if not seconds:
                raise Damage('no frame can be decoded')
            return counted_table(stream, seconds, last)

    def _read(self, indices: list[int]) -> Tensor:
        places = defaultdict(list)
        for place, index in enumerate(indices):
            places[index].append(place)
        picked = torch.empty(0)

        def take(index: int, picture_HWC: Tensor) -> None:
            nonlocal picked
            if picked.shape[1:] != picture_HWC.shape:
                picked = picture_HWC.new_empty((len(indices), *picture_HWC.shape))
            for place in places[index]:  # faster than by a list of them
                picked[place] = picture_HWC

        self._take(sorted(places), take)
        return picked.permute(0, 3, 1, 2)  # a copy in this order would take as long as the colours

    def _read_each(self, indices: list[int], function: Callable[[Tensor], Result]) -> list[Result]:
        found = {}

        def take(index: int, picture_HWC: Tensor) -> None:
            found[index] = function(picture_HWC.contiguous().permute(2, 0, 1)[None])

        self._take(sorted(set(indices)), take)
        return [found[index] for index in indices]

    def _take(self, indices: list[int], take: Callable[[int, Tensor], None]) -> None:
        """Gives the frames (H, W, C) at `indices`, which rise, to `take`; some twice, the last counts."""
        table = self._frames()
        try:
            return self._pick(indices, table, take)
        except Mismatch as error:
            if table.pts is None:
                raise VideoError(f'{self.name} has changed while it was read') from None
            log.debug('%s is read from its start: %s', self.name, error)
        self._known.table = counted = self._count()
        if self.num_frames != len(table.times):
            raise VideoError(
                f'{self.name} is damaged: {self.num_frames} of {len(table.times)} frames can be '
                'decoded; fetch or encode the video again'
            )
        return self._pick(indices, counted, take)

    def _pick(
        self, indices: list[int], table: FrameTable, take: Callable[[int, Tensor], None]
    ) -> None:
        with self._opened() as (container, stream):
            size = self._known.size or (stream.codec_context.width, stream.codec_context.height)
            decoder, reformatter = Decoder(container, stream, table), VideoReformatter()
            matrix = None
            for index in indices:
                frame = decoder.frame(index)
                if frame.width * frame.height > MAX_PIXELS:
                    raise Damage(f'frame {index} has {frame.width}x{frame.height} pixels')
                if (frame.width, frame.height) != size and self._known.size is None:
                    self._known.size = self._first_size()
                    if self._known.size != size:  # the header's is not the first frame's
                        return self._pick(indices, table, take)
                rgb = to_rgb(reformatter, frame, size, self.colors)
                asked = matrix is None
                if asked:
                    matrix = _display_matrix(frame)
                del frame  # or two are held while the next one is decoded
                if asked:
                    gc.collect(1)  # a frame that was asked for its side data is in a cycle with it
                take(index, _upright(torch.from_numpy(rgb), matrix))
                del rgb

    def _first_size(self) -> tuple[int, int]:
        with self._opened() as (container, stream):
            frame = Decoder(container, stream).frame(0)
            return frame.width, frame.height

    def _opened(self, live: bool = False) -> AbstractContextManager[Opened]:
        """As `open_stream`; where it is `live`, what can be read only once is read now, not copied."""
        if live and self.name.startswith('/dev/video'):  # a camera
            return open_stream(self.name, self.name, self.time_limit, format='v4l2')
        if self._is_url:
            protocol = protocol_of(self.name)
            place = protocol + self.name[len(protocol) :]  # FFmpeg knows them in lower case
            return open_stream(place, self.name, self.time_limit, self._protocols, remote=True)
        if live and not self._is_file and self._known.copy is None:
            pipe = Pipe(self.name, self.time_limit)
            return open_stream(pipe, self.name, self.time_limit, 'none')
        # With its protocol, or FFmpeg takes what stands before a colon in a name for one.
        return open_stream(f'file:{self._local_path()}', self.name, self.time_limit, 'file')

    def _local_path(self) -> str:
        if self._is_file:
            return self.name
        known = self._known
        with known.copying:
            if known.copy is None:
                known.keep(copy_pipe(self.name, self.time_limit))
        return known.copy


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) by which a player shows pixel (x, y) at (a*x + c*y, b*x + d*y) and a shift."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack_from('=5i', bytes(data))
    return a, b, c, d


def _upright(picture_HWC: Tensor, matrix: tuple[int, int, int, int]) -> Tensor:
    """The picture turned by quarters and mirrored as its display matrix says."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        picture_HWC, a, d = picture_HWC.transpose(0, 1), c, b
    axes = [axis for axis, sign in ((1, a), (0, d)) if sign < 0]
    return picture_HWC.flip(axes) if axes else picture_HWC
