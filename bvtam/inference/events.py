"""The gestures of a video while it comes: each once, soon after its end.

A gesture is a stretch of motion between two rests. How much of the picture changes tells where it ends;
the model is asked about this stretch, as `predict` asks it about a video. So no answer flickers, and
most frames cost no more than their decoding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.sampling import view_indices
from ..data.transforms import to_crops
from ..data.video.addresses import PROTOCOLS
from ..data.video.open import open_video
from ..data.video.reader import closed_at_exit
from ..errors import BvtamError, nearest
from .predict import Classifier
from .stream import at_rate

QUIET = ('quiet', 'idle', 'none', 'nothing', 'background', 'no gesture', 'doing other things')
_CELLS = (
    16  # a side of the coarse grey picture that motion is measured on; noise averages out in it
)
_LAG = 0.1  # seconds between the two pictures that are compared, whatever the frame rate
_STILL = 1.0  # grey levels of mean change that are never motion
_REST = (
    0.1  # of the way from the weakest motion around to the strongest of a gesture: less is a rest
)
_CUT = 15, 1 / 3  # grey levels, and share of the cells that change more from one frame to the next
_GAP = 1.0  # seconds between two frames that belong together, at most
_LEAD = 0.4  # seconds before the motion that the model sees too, as in a clip that somebody cut out
_SHORTEST = 0.4  # seconds of a gesture
_LONGEST = 10.0  # seconds that are remembered
_TOLERANCE = 1e-6  # seconds; times of frames are rounded


class Event(TypedDict):
    """A gesture: its likeliest class; when it began, ended and was said, in seconds of the video."""

    label: str
    index: int
    score: float
    start: float
    end: float
    time: float


class _Frame(NamedTuple):
    second: float
    pixels: Tensor  # uint8 (C, S, S)
    coarse: Tensor  # (_CELLS, _CELLS)
    motion: float  # grey levels, against _LAG before


class Events:
    """Finds gestures in frames that come one by one, in constant memory.

        found = bvtam.inference.events.Events(model)
        for second, frame in camera:            # uint8 RGB (C, H, W)
            for event in found.push(second, frame):
                ...

    Args:
        model: a video model, as of `predict`; the first crop of its `clip_config`.
        threshold: probability of its class from which on a gesture is said.
        hold: seconds without motion after which a gesture has ended. A rest inside a gesture must be
            shorter; a gesture is said so much later.
        quiet: labels that are never said; by default those of the model that are in `QUIET`.

    Attributes:
        quiet: the labels that are never said.

    Raises:
        BvtamError: a model that `predict` does not take, a label that it lacks, a number out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.5,
        hold: float = 0.4,
        quiet: Iterable[str] | None = None,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise BvtamError(f'threshold must be from 0 to 1, not {threshold}')
        if not 0 < hold <= _LONGEST / 2:
            raise BvtamError(f'hold must be above 0 and at most {_LONGEST / 2:g} s, not {hold}')
        self._classifier = Classifier(model, 1, num_clips=1, num_crops=1)
        self.threshold, self.hold = threshold, hold
        self.quiet = quiet_labels(model) if quiet is None else tuple(quiet)
        labels = self._classifier.labels or [str(i) for i in range(model.num_classes)]
        for label in self.quiet:
            if label not in labels:
                raise BvtamError(
                    f'quiet: no class of the model is {label!r}{nearest(label, labels)}'
                )
        self._forget()

    @property
    def clip(self) -> Any:
        """The ClipConfig that frames are resized and cropped by."""
        return self._classifier.clip

    def push(self, second: float, frame: Tensor) -> list[Event]:
        """The gestures, none or one, that are known to have ended at this frame, uint8 (C, H, W).

        `second` is its time, after that of the frame before; times and not numbers of frames decide.
        """
        pixels = to_crops(frame[None], self.clip)[0, :, 0]
        coarse = F.adaptive_avg_pool2d(pixels.float().mean(0, keepdim=True), _CELLS)[0]
        found, motion = [], 0.0
        if self._frames and self._is_apart(second, coarse):
            found = self._ended(second)
            self._forget()
        if self._frames:
            due = second - _LAG + _TOLERANCE
            before = next((f for f in reversed(self._frames) if f.second <= due), self._frames[0])
            motion = float((coarse - before.coarse).abs().mean())
        self._frames.append(_Frame(second, pixels, coarse, motion))
        while self._frames[0].second < second - _LONGEST:
            self._frames.popleft()
        self._strongest = max(self._strongest, motion)
        if motion > self._rest():
            self._moved, self._answer = second, None
        elif second - self._moved >= self.hold - _TOLERANCE:
            found += self._ended(second)
        elif second - self._moved >= self.hold / 2 and self._answer is None:
            self._answer = self._ask()  # early, so that nobody waits for the model
        return found

    def finish(self) -> list[Event]:
        """The gesture that the end of the video ends; then ready for another video."""
        found = self._ended(self._frames[-1].second) if self._frames else []
        self._forget()
        return found

    def _forget(self) -> None:
        self._frames: deque[_Frame] = deque()
        self._strongest = 0.0  # motion since the last gesture
        self._moved = math.inf  # second of the last motion, where a gesture may be under way
        self._done = -math.inf  # end of the last gesture
        self._answer: list[Event] | None = None  # about what may turn out to be one

    def _is_apart(self, second: float, coarse: Tensor) -> bool:
        """Whether a frame does not go on with the one before: another scene, or a gap."""
        changed = (coarse - self._frames[-1].coarse).abs() > _CUT[0]
        elapsed = second - self._frames[-1].second
        return bool(changed.float().mean() > _CUT[1]) or not 0 <= elapsed <= _GAP

    def _rest(self) -> float:
        """Grey levels of motion below which the picture rests, over what moves all the time."""
        motions = sorted(frame.motion for frame in self._frames)
        weakest = motions[len(motions) // 10]
        return max(_STILL, weakest + _REST * (self._strongest - weakest))

    def _ended(self, now: float) -> list[Event]:
        """The gesture that ended with the last motion, if there is one and it is to be said."""
        if self._moved == math.inf:
            return []
        found = self._ask() if self._answer is None else self._answer
        self._strongest, self._answer = 0.0, None
        self._moved, self._done = math.inf, self._moved
        return [
            {**event, 'time': now}
            for event in found
            if event['label'] not in self.quiet and event['score'] >= self.threshold
        ]

    def _ask(self) -> list[Event]:
        """What the model says of the motion until the last one; nothing where it is too short."""
        rest, start, end = self._rest(), self._moved, self._moved
        for frame in reversed(self._frames):
            if frame.second <= self._done or start - frame.second >= self.hold:
                break
            if frame.motion > rest and frame.second <= end:
                start = frame.second
        start = max(start - _LAG, self._frames[0].second)
        if end - start < _SHORTEST - _TOLERANCE:
            return []
        part = [f for f in self._frames if max(self._done, start - _LEAD) < f.second <= end]
        indices = view_indices(self.clip, len(part))[0]
        clip = torch.stack([part[i].pixels for i in indices], dim=1)[None]
        (best,) = self._classifier.top(self._classifier.logits(clip)[0].softmax(0).cpu())
        return [{**best, 'start': start, 'end': end, 'time': end}]


def quiet_labels(model: nn.Module) -> tuple[str, ...]:
    """The labels of a model that say that nothing happens, those in `QUIET`."""
    labels = getattr(model, 'label_names', None) or ()
    return tuple(s for s in labels if s.lower().replace('_', ' ').replace('-', ' ') in QUIET)


def events(
    model: nn.Module,
    video: Any,
    threshold: float = 0.5,
    hold: float = 0.4,
    quiet: Iterable[str] | None = None,
    *,
    fps: float = 30.0,
    time_limit: float = 60.0,
) -> Iterator[Event]:
    """The gestures of a video while it comes, each once, in constant memory; see `Events`.

    Args:
        model, threshold, hold, quiet: as of `Events`.
        video: anything that `open_video` takes; a pipe is read as it comes, and a camera
            (/dev/video0) as one.
        fps: frames a second that are looked at, at most.
        time_limit: as of `predict`.

    Raises:
        BvtamError: as from `predict` and `Events`, or `fps` that is below 1.
    """
    if 0 < fps < 1 / _GAP:
        raise BvtamError(f'fps must be {1 / _GAP:g} or more to see gestures, not {fps:g}')
    return _events(Events(model, threshold, hold, quiet), video, fps, time_limit)


@closed_at_exit
def _events(found: Events, video: Any, fps: float, time_limit: float) -> Iterator[Event]:
    reader = open_video(video, time_limit, PROTOCOLS, found.clip.colors)
    for _, second, picture in at_rate(reader.play(), fps):
        yield from found.push(second, picture)
    yield from found.finish()
