"""`Reader`: the frames of one video, by number or time; the base of all kinds of video."""

from __future__ import annotations

import atexit
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import BvtamError
from ..failures import machine_errors
from .colors import UNTAGGED, Tags
from .memory import DECODING, frame_bytes
from .times import frames_at, frames_from

Result = TypeVar('Result')
_CHUNK_BYTES = 64 << 20  # of frames that are read in turn


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def closed_at_exit(generate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A decorator of generator functions: generators that are still open when the program ends are closed
    while the modules that they need are there."""

    @wraps(generate)
    def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
        results = generate(*args, **kwargs)
        _open.add(results)
        return results

    return run


@atexit.register
def _close() -> None:
    for results in list(_open):
        with suppress(ValueError):  # a thread is in it
            results.close()


class VideoError(BvtamError):
    """A video that cannot be opened or decoded, is damaged, or stalls."""


class Reader:
    """Frames of one video by their number or time.

    A subclass sets `name` and has `num_frames`, `times`, `duration` and `_read`.

    Attributes:
        name: the source, for messages.
        frame_pixels: of a frame, where decoding one takes memory; known once `num_frames` is.
    """

    name: str
    frame_pixels: int = 0

    @property
    def times(self) -> Tensor:
        """(V,) float64 seconds at which each frame appears, from 0 for the first."""
        raise NotImplementedError

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        raise NotImplementedError

    @property
    def tags(self) -> Tags:
        """The colour tags of a video; of images, those that are written for them."""
        return UNTAGGED

    def with_colors(self, colors: str) -> Reader:
        """A reader of the same video with colours 'tagged' or 'jpeg', as of `ClipConfig`; this one
        where they are the same, as they are for images."""
        return self

    def _read(self, indices: list[int]) -> Tensor:
        raise NotImplementedError

    @property
    def num_frames(self) -> int:
        """Number of frames V, at least 1."""
        raise NotImplementedError

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel over its height as players show it; frames are read as they are stored."""
        return Fraction(1)

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        last = float(self.times[-1])
        return (self.num_frames - 1) / last if last else 1 / self.duration

    def frames_between(self, start: float | None, end: float | None) -> range:
        """The frames that appear from `start` on and before `end`, in seconds; None for no limit.

        Raises:
            VideoError: there is none.
        """
        if start is None and end is None:
            return range(self.num_frames)
        start, end = start or 0.0, self.duration if end is None else end
        found = range(*frames_from(self.times, self.times.new_tensor([start, end])).tolist())
        if not found:
            raise VideoError(
                f'{self.name}: no frame appears from {start:g} to {end:g} s; the video lasts '
                f'{self.duration:g} s'
            )
        return found

    def read(self, indices: Iterable[int]) -> Tensor:
        """The frames at `indices`, counted from 0, in that order; an index may be given repeatedly.

        Returns:
            uint8 RGB tensor (T, C, H, W), upright as players show it. A frame of another size than
            the first of the video is scaled to that.

        Raises:
            BvtamError: no index, or one outside [0, num_frames).
            VideoError: the video is damaged.
            MachineError: memory or descriptors run out.
        """
        with machine_errors(self.name):
            return self._read(self._checked(indices))

    def read_each(
        self, indices: Iterable[int], function: Callable[[Tensor], Result]
    ) -> list[Result]:
        """`function` of each of the frames at `indices`, in that order.

        It takes a frame (1, C, H, W) as from `read`, as soon as it is decoded, so that of those of
        full size one is held at a time; and the threads of a process wait for each other where their
        frames together would take too much memory. A frame that is there repeatedly is taken once.

        Raises:
            As `read`, and what `function` raises.
        """
        with machine_errors(self.name):
            wanted = self._checked(indices)
            with DECODING.hold(frame_bytes(self.frame_pixels)):
                return self._read_each(wanted, function)

    def _read_each(self, indices: list[int], function: Callable[[Tensor], Result]) -> list[Result]:
        found = {index: function(self._read([index])) for index in sorted(set(indices))}
        return [found[index] for index in indices]

    def read_in_turn(
        self, indices: Sequence[int], function: Callable[[Tensor], Tensor] = lambda frame: frame
    ) -> Iterator[Tensor]:
        """`function` of each of the frames at `indices`, one after the other, (C, H, W).

        Some are decoded at a time, so that a long video needs little memory.

        Raises:
            As `read_each`; an `OSError` as a `VideoError`, which tells it from one of the output.
        """
        place, step = 0, 1
        while place < len(indices):
            try:
                frames = self.read_each(indices[place : place + step], function)
            except OSError as error:
                raise VideoError(error) from None
            yield from (frame[0] for frame in frames)
            place += step
            step = max(1, _CHUNK_BYTES // frames[0].numel())

    def _checked(self, indices: Iterable[int]) -> list[int]:
        wanted = [operator.index(i) for i in indices]
        if not wanted:
            raise BvtamError(f'{self.name}: no frame index given to read')
        for index in (min(wanted), max(wanted)):
            if not 0 <= index < self.num_frames:
                raise BvtamError(
                    f'{self.name}: frame {index} is outside the video, 0 to {self.num_frames - 1}'
                )
        return wanted

    def play(self) -> Iterator[tuple[float, Tensor]]:
        """All frames in turn: seconds from the first one, and uint8 RGB (C, H, W) as from `read`.

        Raises:
            VideoError: the video is damaged.
        """
        for index, second in enumerate(self.times.tolist()):
            yield second, self._read([index])[0]

    def read_at(self, seconds: Iterable[float]) -> Tensor:
        """The frames on screen at `seconds`, the first or last one for times outside the video.

        Returns:
            uint8 RGB tensor (T, C, H, W), as from `read`.

        Raises:
            BvtamError: as from `read`.
        """
        moments = torch.as_tensor([float(s) for s in seconds], dtype=torch.float64)
        return self.read(frames_at(self.times, moments).tolist())
