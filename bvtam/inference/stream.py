"""A video model on frames as they come: features and a running answer, in constant memory.

Every layer that mixes frames holds the few that it still needs (`layers/streaming.py`). A frame goes
through the model once, however the clips that it belongs to overlap; what comes out, some frames later,
is what the model gives for the whole video.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from ..data.transforms import to_crops
from ..data.video.addresses import PROTOCOLS
from ..data.video.open import open_video
from ..data.video.reader import closed_at_exit
from ..errors import BvtamError
from ..layers.streaming import run
from .predict import Classifier, Score

_TOLERANCE = 1e-6  # seconds; times of frames are rounded


class StreamStep(NamedTuple):
    """The output of a model for one step of time, a pair of frames for bLVNet.

    Attributes:
        index: number of the step, from 0.
        features: (B, C, h, w), what `forward_features` has at this step of the whole video.
        embedding: (B, num_features), pooled features averaged over the steps so far; None where the
            model does not pool.
        logits: (B, num_classes) of them; those of the last step are `model(video)`. None where the
            model has no classifier.
    """

    index: int
    features: Tensor
    embedding: Tensor | None
    logits: Tensor | None


class Stream:
    """A model in eval mode that takes the frames of a video one by one.

        stream = bvtam.stream(model)
        for frame in frames:             # (B, C, H, W), normalised
            for step in stream.push(frame):
                ...
        for step in stream.finish():     # the last ones, which waited for frames that never came
            ...

    Args:
        model: a video model of this package; its weights are used as they are at every step.
        last: steps that the running answer is of, the last ones; all by default.

    Raises:
        BvtamError: an image model, one in training mode, `last` below 1.
    """

    def __init__(self, model: nn.Module, last: int | None = None) -> None:
        if not hasattr(model, 'stream_stages'):
            raise BvtamError(f'{type(model).__name__} cannot stream: it has no stream_stages()')
        if model.training:
            raise BvtamError('a stream needs a model in eval mode: call model.eval() first')
        if last is not None and last < 1:
            raise BvtamError(f'last must be 1 step or more, not {last}')
        self.model, self.last = model, last
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: what comes next is another video."""
        self._stages = self.model.stream_stages()
        self._shape: torch.Size | None = None
        self._slots: list[Tensor] = []  # frames of the step that is not whole yet
        self._steps = 0
        self._sum: Tensor | float = 0.0
        self._recent: deque[Tensor] = deque()

    @property
    def delay(self) -> int:
        """Frames after the last one of a step until the step comes out."""
        steps = 1
        for stage in reversed(self._stages):
            steps = stage.wait(steps)
        return self.model.frames_per_step * (steps - 1)

    @torch.no_grad()
    def push(self, frame: Tensor) -> list[StreamStep]:
        """The steps that this frame (B, C, H, W) completes, often none or one.

        Raises:
            ValueError: a frame of another shape than the ones before it, or of no such.
        """
        if frame.ndim != 4 or frame.shape[1] != self.model.in_chans:
            raise ValueError(
                f'expected a frame (B, C={self.model.in_chans}, H, W), got a tensor of shape '
                f'{tuple(frame.shape)}'
            )
        if self._shape not in (None, frame.shape):
            raise ValueError(
                f'expected a frame of shape {tuple(self._shape)} as before, got {tuple(frame.shape)}'
            )
        self._shape = frame.shape
        # A copy: the caller may have one buffer for all frames.
        self._slots.append(frame.clone(memory_format=torch.channels_last))
        if len(self._slots) < self.model.frames_per_step:
            return []
        slots, self._slots = self._slots, []
        return [self._answer(x) for x in run(self._stages, slots)]

    @torch.no_grad()
    def finish(self) -> list[StreamStep]:
        """The steps that waited for frames to come, then a stream for another video.

        Raises:
            ValueError: the last pair of frames is half; push the last frame once more.
        """
        if self._slots:
            raise ValueError('expected an even number of frames: push the last one once more')
        steps = [self._answer(x) for x in run(self._stages, None)]
        self.reset()
        return steps

    def __call__(self, frames: Iterable[Tensor]) -> Iterator[StreamStep]:
        """All steps of a video, as they are known."""
        self.reset()
        for frame in frames:
            yield from self.push(frame)
        yield from self.finish()

    def _answer(self, x: Tensor) -> StreamStep:
        index, self._steps = self._steps, self._steps + 1
        pooled = self.model.forward_head(x.unsqueeze(2), pre_logits=True)
        if pooled.ndim > 2:  # the model was made with global_pool=''
            return StreamStep(index, x, None, None)
        wide = torch.float32 if pooled.device.type == 'mps' else torch.float64  # which that lacks
        self._sum = self._sum + pooled.to(wide)
        count = self._steps
        if self.last is not None:
            self._recent.append(pooled)
            if len(self._recent) > self.last:
                self._sum -= self._recent.popleft()
            count = len(self._recent)
        embedding = (self._sum / count).to(pooled.dtype)
        classify = self.model.get_classifier()
        return StreamStep(
            index, x, embedding, classify(embedding) if self.model.num_classes else None
        )


class StreamAnswer(TypedDict):
    """The likeliest classes so far, at a step: the seconds and the number of its last frame."""

    time: float
    frame: int
    top: list[Score]


@closed_at_exit
def predict_stream(
    model: nn.Module,
    video: Any,
    topk: int = 5,
    *,
    fps: float | None = None,
    last: int | None = None,
    time_limit: float = 60.0,
) -> Iterator[StreamAnswer]:
    """Answers about a video while it comes, in constant memory and whether or not it ends.

    Args:
        model: a video model in eval mode, as of `predict`; the first crop of its `clip_config`.
        video: anything that `open_video` takes; a pipe is read as it comes, and a camera
            (/dev/video0) as one.
        topk, time_limit: as of `predict`.
        fps: frames a second that the model sees; all by default, and never more than there are.
        last: steps that an answer is of; all so far by default.

    Yields:
        a `StreamAnswer` for each step; a lone last frame of a pair counts twice.

    Raises:
        BvtamError: as from `predict` and `stream`, or `fps` that is not positive.
    """
    classifier, steps = Classifier(model, topk, num_clips=1, num_crops=1), stream(model, last)
    waiting: deque[tuple[float, int]] = deque()  # time and number of each step's last frame

    def answers(found: list[StreamStep]) -> Iterator[StreamAnswer]:
        for step in found:
            second, number = waiting.popleft()
            scores = classifier.finite(step.logits)[0].softmax(0).cpu()
            yield {'time': second, 'frame': number, 'top': classifier.top(scores)}

    seen, x = 0, None
    reader = open_video(video, time_limit, PROTOCOLS, classifier.clip.colors)
    for number, second, picture in at_rate(reader.play(), fps):
        x = classifier.inputs(to_crops(picture[None], classifier.clip))[:, :, 0]
        seen += 1
        if seen % model.frames_per_step == 0:
            waiting.append((second, number))
        yield from answers(steps.push(x))
        shown = second, number
    if seen % model.frames_per_step:
        waiting.append(shown)
        yield from answers(steps.push(x))
    yield from answers(steps.finish())


def at_rate(
    frames: Iterable[tuple[float, Tensor]], fps: float | None
) -> Iterator[tuple[int, float, Tensor]]:
    """Number, second and picture of frames of `Reader.play`, at most `fps` a second; None for all.

    Raises:
        BvtamError: `fps` that is not positive.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise BvtamError(f'fps must be above 0, not {fps}')
    due = 0.0
    for number, (second, picture) in enumerate(frames):
        if fps is not None:
            if second < due - _TOLERANCE:
                continue
            due = (second if second > due + 1 / fps else due) + 1 / fps  # a gap is not made up for
        yield number, second, picture


def stream(model: nn.Module, last: int | None = None) -> Stream:
    """The model as one that takes frames one by one; see `Stream`."""
    return Stream(model, last)
