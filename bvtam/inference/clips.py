"""Clips of many videos, decoded ahead by threads and given out in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..clip import ClipConfig
from ..data.failures import VIDEO_ERRORS, machine_errors
from ..data.sampling import view_indices
from ..data.transforms import read_crops
from ..data.video.addresses import PROTOCOLS
from ..data.video.folders import of_folder
from ..data.video.open import open_video
from ..data.video.reader import VideoError
from ..data.video.times import frames_from
from ..errors import BvtamError

_FRAMES_A_READ = 64  # more only where one clip has more
_BYTES_AHEAD = 256 << 20  # of clips that are decoded before they are asked for
_SHORTEST = 0.001  # seconds
_MOST_WINDOWS = 100_000
_TOLERANCE = 1e-6  # seconds; times of frames are rounded

Item, Result = TypeVar('Item'), TypeVar('Result')
Plan = Callable[[Any], list[list[int]]]


class Clips(NamedTuple):
    """Some clips of one video: `pixels` uint8 (crops, C, T, S, S) each, `frames` (n, T) and `times`
    (n, T) in seconds from the first frame."""

    pixels: list[Tensor]
    frames: Tensor
    times: Tensor


class Window(NamedTuple):
    """Seconds [start, end) of a video, and its frames [first, last)."""

    start: float
    end: float
    first: int
    last: int


def clip_plan(clip: ClipConfig) -> Plan:
    """A function from a reader to the frame indices of its test clips."""
    return lambda reader: view_indices(clip, reader.num_frames)


def window_plan(clip: ClipConfig, every: float, length: float) -> Plan:
    """A function from a reader to the frame indices of the test clips of its windows (see `cut`): in
    each of them as in a video of its own."""

    def plan(reader: Any) -> list[list[int]]:
        return [
            indices
            for window in cut(reader.times, reader.duration, every, length)
            for indices in view_indices(clip, window.last - window.first, window.first)
        ]

    return plan


def cut(times: Tensor, duration: float, every: float, length: float) -> list[Window]:
    """The windows of a video, so that each of its frames is in one at least.

    Windows of `length` seconds begin at 0, `every`, 2 * `every` and so on, until one reaches the
    video's end, where it is cut off. If less than half of it is left, there is no such window, and
    the one before it goes on to the end. The frames of a window are those that appear in it; where
    none does, it is the one still on screen.

    `times` and `duration` are those of a `Reader`. Raises as `spans`.
    """
    spans(every, length)
    count = max(0, math.ceil((duration - length - _TOLERANCE) / every)) + 1
    if count > max(_MOST_WINDOWS, 1000 * len(times)):  # a header that lies about the frame rate
        raise VideoError(
            f'{len(times)} frames that last {duration:g} s make {count} windows; raise every, or '
            'encode the video again'
        )
    if count > 1 and duration - (count - 1) * every < length / 2 - _TOLERANCE:
        count -= 1
    starts = torch.arange(count, dtype=torch.float64) * every
    ends = starts + length
    ends[-1] = duration
    firsts, lasts = frames_from(times, starts), frames_from(times, ends)
    lasts[-1] = len(times)
    firsts = torch.minimum(firsts, lasts - 1)
    columns = (column.tolist() for column in (starts, ends, firsts, lasts))
    return [Window(*values) for values in zip(*columns, strict=True)]


def spans(every: float | None, length: float | None) -> tuple[float, float]:
    """Seconds between windows and of a window, each of which is the other where it is left out.

    Raises:
        BvtamError: one below 0.001 or not finite, or `length` below `every`.
    """
    for name, value in (('every', every), ('length', length)):
        if value is not None and not _SHORTEST <= value < math.inf:
            raise BvtamError(f'{name} must be at least {_SHORTEST} seconds, not {value}')
    every, length = (length if every is None else every), (every if length is None else length)
    if length < every:
        raise BvtamError(
            f'length {length:g} is below every {every:g}, so that some frames would be in no '
            'window; raise length or lower every'
        )
    return every, length


def read_clips(
    pool: Executor,
    workers: int,
    videos: Iterable[str],
    plan: Plan,
    clip: ClipConfig,
    time_limit: float,
    protocols: Iterable[str] = PROTOCOLS,
    frames: str = '',
    fps: float | None = None,
) -> Iterator[tuple[int, Clips | Exception]]:
    """Number of the video and its clips, some at a time, in the order of videos and clips.

    `frames` and `fps` are of those that are folders, as of `open_video`.
    A video that cannot be read gives an exception of `VIDEO_ERRORS`, once or more, and perhaps some
    clips before. At most 2 * `workers` reads are ahead of the caller.
    """

    def open_one(name: str) -> list[tuple[Any, list[list[int]]]]:
        reader = open_video(name, time_limit, protocols, **of_folder(name, frames, fps))
        with machine_errors(reader.name):
            rows, step = plan(reader), max(1, _FRAMES_A_READ // clip.num_frames)
        return [(reader, rows[i : i + step]) for i in range(0, len(rows), step)]

    def read_one(part: tuple[Any, list[list[int]]]) -> Clips:
        reader, rows = part
        frames = torch.tensor(rows)
        return Clips(read_crops(reader, rows, clip), frames, reader.times[frames])

    def size(item: tuple[int, Any]) -> int:
        _, part = item
        clips = 0 if isinstance(part, Exception) else len(part[1])
        return clips * clip.num_crops * clip.num_bytes

    opened = _ahead(pool, 2 * workers, _pass_errors(open_one), enumerate(videos))
    parts = (
        (video, part)
        for video, found in opened
        for part in ([found] if isinstance(found, Exception) else found)
    )
    return _ahead(pool, 2 * workers, _pass_errors(read_one), parts, size)


def _ahead(
    pool: Executor,
    depth: int,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    size: Callable[[Item], int] = lambda _: 0,
) -> Iterator[Result]:
    """`function` of each item, in order, with up to `depth` of them under way, and fewer where the
    results, of `size` bytes, would be too much to hold."""
    waiting: deque = deque()
    for item in items:
        waiting.append((pool.submit(function, item), size(item)))
        while len(waiting) > depth or (
            len(waiting) > 1 and sum(number for _, number in waiting) > _BYTES_AHEAD
        ):
            yield waiting.popleft()[0].result()
    while waiting:
        yield waiting.popleft()[0].result()


def _pass_errors(function: Callable[[Any], Any]) -> Callable[[tuple[int, Any]], tuple[int, Any]]:
    """`function` of the second of a pair; what fails for the video's sake stands in its place."""

    def run(item: tuple[int, Any]) -> tuple[int, Any]:
        video, value = item
        if isinstance(value, Exception):
            return item
        try:
            return video, function(value)
        except VIDEO_ERRORS as error:
            return video, error

    return run
