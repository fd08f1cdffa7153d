"""Frames out of video files, by PyAV."""

from __future__ import annotations

import logging
import operator
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path

import av
import torch
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from torch import Tensor

from ..errors import BvtamError

log = logging.getLogger('bvtam')


class VideoFile:
    """One video file, decoded from its start whenever frames are asked for.

    Frames are counted as they come out of the decoder, in display order; neither the header's count
    nor a seek is trusted, since both are wrong in many files. A file that is damaged at some place
    counts as a video that ends there, and a warning says so.

    Raises:
        FileNotFoundError: there is no such file.
        BvtamError: the path is a folder, or the file is empty. The two ways to decode it,
            `num_frames` and `read`, raise it too, for a file without a decodable video.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise BvtamError(f'{self.path} is a folder; give one video file')
        if not self.path.exists():
            raise FileNotFoundError(f'{self.path}: no such video file')
        if self.path.stat().st_size == 0:
            raise BvtamError(f'{self.path} is empty (0 bytes); fetch or copy the video again')

    @cached_property
    def num_frames(self) -> int:
        """Number of frames that can be decoded, found by decoding them all once."""
        with closing(self._decode()) as frames:
            return sum(1 for _ in frames)

    def read(self, indices: Iterable[int]) -> Tensor:
        """The frames at `indices`, counted from 0, in that order; an index may be given repeatedly.

        Decoding stops at the last of them, and no other frame is kept in memory.

        Returns:
            uint8 RGB tensor (T, C, H, W), upright as players show it. A frame of another size than
            the first of the video is scaled to that.

        Raises:
            BvtamError: no index, or one outside [0, num_frames).
        """
        wanted = [operator.index(i) for i in indices]
        if not wanted:
            raise BvtamError(f'{self.path}: no frame index given to read')
        places = defaultdict(list)
        for place, index in enumerate(wanted):
            places[index].append(place)

        picked = None
        with closing(self._decode()) as frames:
            for index, frame in enumerate(frames):
                if index == 0:
                    width, height, matrix = frame.width, frame.height, _display_matrix(frame)
                if index in places:
                    rgb_HWC = frame.to_ndarray(format='rgb24', width=width, height=height)
                    picture = _upright(torch.from_numpy(rgb_HWC).permute(2, 0, 1), matrix)
                    if picked is None:
                        picked = picture.new_empty((len(wanted), *picture.shape))
                    picked[places.pop(index)] = picture
                    if not places:
                        return picked
        raise BvtamError(f'{self.path}: frame {min(places)} is outside the video, 0 to {index}')

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames in display order, up to the end or the first damage, at least one."""
        try:
            # With its protocol, or FFmpeg takes what stands before a colon in a name for one.
            # Titles in another encoding than UTF-8 are no reason to refuse a video.
            container = av.open(f'file:{self.path}', metadata_errors='ignore')
        except av.FFmpegError as error:
            raise BvtamError(
                f'{self.path} cannot be opened as a video ({error.strerror}); '
                'is it complete, and of a format that FFmpeg reads?'
            ) from error
        with container:
            # A cover picture in a music file is a video stream to FFmpeg.
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & Disposition.attached_pic and stream.codec_context
            ]
            if not streams:
                raise BvtamError(f'{self.path} has no video stream; give a file with pictures')
            count, damage = 0, None
            try:
                for frame in _sound_frames(container, streams[0]):
                    yield frame
                    count += 1
            except _Damage as error:
                damage = error
        if not count:
            raise BvtamError(
                f'{self.path}: no frame can be decoded ({damage or "the stream is empty"}); '
                'fetch or encode the video again'
            )
        if damage:
            log.warning(
                '%s is damaged (%s); decoded %d frames up to there', self.path, damage, count
            )


class _Damage(Exception):
    """Why decoding ended before the video does."""


def _sound_frames(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Frames in display order; `_Damage` where one is broken or the file ends too early.

    What FFmpeg makes of a broken frame and of those that build on it is not part of the video.
    """
    # One thread: with several, FFmpeg marks the broken frames of H.264 sometimes, or never, and the
    # same file would have another length each time. Videos are better decoded side by side.
    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    num_packets, seconds, damage = 0, 0.0, None
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            packet, damage = None, error.strerror
        if packet is not None and packet.is_corrupt:
            packet, damage = None, 'a frame is cut short'
        if packet is not None:
            if not packet.size:
                continue
            num_packets += 1
            if packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                seconds = max(seconds, float(end))
        try:
            frames = stream.decode(packet)  # None asks for the frames it still holds
        except av.FFmpegError as error:
            raise _Damage(error.strerror) from error
        for frame in frames:
            if frame.is_corrupt:
                raise _Damage('a frame is broken')
            yield frame
        if packet is None:
            break
    if damage:
        raise _Damage(damage)
    # Some formats end without an error wherever the file was cut off. Headers are not exact either.
    promised = (container.duration or 0) / av.time_base
    if num_packets < 0.9 * stream.frames:
        raise _Damage(f'it holds {num_packets} of {stream.frames} frames')
    # With other streams, the longest of them may be the one that gives the file its duration.
    if len(container.streams) == 1 and seconds < 0.9 * promised:
        raise _Damage(f'it ends at {seconds:.1f} of {promised:.1f} s')


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) by which a player shows pixel (x, y) at (a*x + c*y, b*x + d*y) and a shift."""
    data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack_from('=5i', bytes(data))
    return a, b, c, d


def _upright(picture_CHW: Tensor, matrix: tuple[int, int, int, int]) -> Tensor:
    """The picture turned by quarters and mirrored as its display matrix says."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        picture_CHW, a, d = picture_CHW.transpose(1, 2), c, b
    return picture_CHW.flip([axis for axis, sign in ((2, a), (1, d)) if sign < 0])
