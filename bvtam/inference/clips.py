"""Clips of many videos, decoded ahead by threads and given out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..clip import ClipConfig
from ..data.failures import VIDEO_ERRORS
from ..data.sampling import clip_indices
from ..data.transforms import to_crops
from ..data.video import open_video
from ..errors import BvtamError

_FRAMES_A_READ = 64  # at full size in one thread; more only where one clip has more
_SHORTEST = 0.001  # seconds

Item, Result = TypeVar('Item'), TypeVar('Result')
Plan = Callable[[Any], list[list[int]]]


class Clips(NamedTuple):
    """Some clips of one video: `pixels` uint8 (crops, C, T, S, S) each, `frames` (n, T) and `times`
    (n, T) in seconds from the first frame."""

    pixels: list[Tensor]
    frames: Tensor
    times: Tensor


def clip_plan(clip: ClipConfig) -> Plan:
    """A function from a reader to the frame indices of its test clips."""
    return lambda reader: clip_indices(
        reader.num_frames, clip.num_frames, clip.num_clips, clip.sampling, clip.frame_stride
    )


def window_plan(num_frames: int, length: float, every: float | None = None) -> Plan:
    """A function from a reader to the frame indices of its windows.

    A window begins every `every` seconds as long as it ends inside the video, and there is always
    one at the start. It is cut into `num_frames` equal parts, and the frame is taken that is on
    screen in the middle of each.

    Raises:
        BvtamError: a length or distance below 0.001 seconds.
    """
    every = length if every is None else every
    for name, value in (('length', length), ('every', every)):
        if not value >= _SHORTEST:
            raise BvtamError(f'{name} must be at least {_SHORTEST} seconds, not {value}')

    def plan(reader: Any) -> list[list[int]]:
        span = min(length, reader.duration)
        # A last window that ends with the video counts, whatever the rounding.
        count = int((reader.duration - span) / every + 1e-6) + 1
        starts = torch.arange(count, dtype=torch.float64)[:, None] * every
        middles = (torch.arange(num_frames, dtype=torch.float64) + 0.5) * (span / num_frames)
        shown = torch.searchsorted(reader.times, starts + middles, right=True) - 1
        return shown.clamp(0, reader.num_frames - 1).tolist()

    return plan


def read_clips(
    pool: Executor,
    workers: int,
    videos: Iterable[str],
    plan: Plan,
    clip: ClipConfig,
    time_limit: float,
) -> Iterator[tuple[int, Clips | Exception]]:
    """Number of the video and its clips, some at a time, in the order of videos and clips.

    A video that cannot be read gives an exception of `VIDEO_ERRORS`, once or more, and perhaps some
    clips before. At most 2 * `workers` reads are ahead of the caller.
    """

    def open_one(name: str) -> list[tuple[Any, list[list[int]]]]:
        reader = open_video(name, time_limit)
        rows, size = plan(reader), max(1, _FRAMES_A_READ // clip.num_frames)
        return [(reader, rows[i : i + size]) for i in range(0, len(rows), size)]

    def read_one(part: tuple[Any, list[list[int]]]) -> Clips:
        reader, rows = part
        frames = torch.tensor(rows)
        pictures = reader.read(frames.flatten().tolist()).split(clip.num_frames)
        return Clips([to_crops(p, clip) for p in pictures], frames, reader.times[frames])

    opened = _ahead(pool, 2 * workers, _pass_errors(open_one), enumerate(videos))
    parts = (
        (video, part)
        for video, found in opened
        for part in ([found] if isinstance(found, Exception) else found)
    )
    return _ahead(pool, 2 * workers, _pass_errors(read_one), parts)


def _ahead(
    pool: Executor, depth: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """`function` of each item, in order, with up to `depth` of them under way."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


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
