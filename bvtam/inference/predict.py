"""The classes that a model sees in videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ..data.failures import VIDEO_ERRORS, Failures, check_policy
from ..data.video.in_memory import is_one, source_name
from ..data.video.reader import closed_at_exit
from ..errors import BvtamError
from .clips import clip_plan, read_clips
from .runner import Runner, check_classes, check_counts


class Score(TypedDict):
    """A class with its probability; the index stands for a label where the model has none."""

    label: str
    index: int
    score: float


class Prediction(TypedDict):
    """The likeliest classes of a video, the likeliest first."""

    video: str
    model: str
    frames: list[int]  # indices of all clips, one after another
    top: list[Score]


def predict(
    model: nn.Module,
    video: Any,
    topk: int = 5,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    batch_size: int = 1,
    time_limit: float = 60.0,
) -> Prediction:
    """The `topk` likeliest classes of one video, over the clips and crops of `model.clip_config`.

    Each view is normalised and classified by itself, on the model's device and in its precision;
    the softmax probabilities are averaged over the views. The model is left as it came.

    Args:
        model: a video model of the zoo, with `clip_config`, `num_classes` and, where known,
            `label_names`.
        video: anything that `open_video` takes: a file, an address, '-', a folder of frames, an
            array of frames, a list of PIL images, the bytes of a file, a binary file object, a reader.
        topk: classes to return; all of them where the model has fewer.
        num_clips, num_crops: views of the video; by default those of `model.clip_config`.
        batch_size: views that go through the model together.
        time_limit: seconds without progress after which the video is given up.

    Raises:
        BvtamError: an image model, one without classes, labels of another number than classes,
            an option out of range, a video that cannot be decoded, or scores that are not finite.
        FileNotFoundError: there is no such video.
    """
    (result,) = predict_many(
        model,
        [video],
        topk,
        num_clips=num_clips,
        num_crops=num_crops,
        batch_size=batch_size,
        workers=1,
        time_limit=time_limit,
    )
    return result


def predict_many(
    model: nn.Module,
    videos: Iterable[Any],
    topk: int = 5,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    batch_size: int = 8,
    workers: int = 4,
    on_error: str = 'raise',
    failures: Failures | None = None,
    time_limit: float = 60.0,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Prediction]:
    """The result of `predict` for each video, in their order, while the next ones are decoded.

    Views of several videos go through the model together. The scores are those of `predict`, but for
    the rounding of sums. The model is left as it came.

    Args:
        model, topk, num_clips, num_crops, time_limit: as of `predict`.
        videos: whatever `predict` takes, any number of them.
        batch_size: views that go through the model together, of one video or several.
        workers: threads that decode.
        on_error: 'raise' stops at a video that cannot be read, after the results of those before
            it; 'skip' records it in `failures`, and there is no result of it.
        failures: says how many may fail, and where they are listed; by default a tenth, nowhere.
        progress: called with the numbers of videos done, failed ones included, and of all.

    Raises:
        BvtamError: as from `predict`; more failed videos than allowed.
        FileNotFoundError: there is no such video, under 'raise'.
    """
    check_policy(on_error, ('raise', 'skip'))
    check_counts(batch_size=batch_size, workers=workers)
    classifier = Classifier(model, topk, num_clips, num_crops)
    videos = [videos] if is_one(videos) else list(videos)
    if failures is None:
        failures = Failures(len(videos))
    tell = progress or (lambda done, total: None)

    @closed_at_exit
    def run() -> Iterator[Prediction]:
        frames, failed, stop = defaultdict(list), set(), []

        def clips() -> Iterator[tuple[int, Tensor]]:
            for number, found in read_clips(
                pool, workers, videos, clip_plan(classifier.clip), classifier.clip, time_limit
            ):
                if not isinstance(found, Exception):
                    frames[number] += found.frames.flatten().tolist()
                    yield from ((number, pixels) for pixels in found.pixels)
                    continue
                failed.add(number)
                try:
                    if on_error == 'raise':
                        raise found
                    failures.add(source_name(videos[number]), found)
                except VIDEO_ERRORS as error:  # raised when those before it are through
                    stop.append(error)
                    return

        tell(0, len(videos))
        with decoding(workers) as pool:
            for number, scores in classifier.classify(clips(), batch_size):
                if number not in failed:  # some clips may come before one that fails
                    yield {
                        'video': source_name(videos[number]),
                        'model': classifier.name,
                        'frames': frames.pop(number),
                        'top': classifier.top(scores),
                    }
                tell(number + 1, len(videos))
        if stop:
            raise stop[0]
        tell(len(videos), len(videos))

    return run()


class Classifier(Runner):
    """A video model as a function from clips to class probabilities; arguments as of `predict`."""

    def __init__(
        self,
        model: nn.Module,
        topk: int = 5,
        num_clips: int | None = None,
        num_crops: int | None = None,
    ) -> None:
        super().__init__(model, 'predict')
        self.labels, self.topk = check_classes(model, 'predict'), topk
        if topk < 1:
            raise BvtamError(f'topk must be at least 1, not {topk}')
        views = {'num_clips': num_clips, 'num_crops': num_crops}
        self.clip = replace(self.clip, **{k: v for k, v in views.items() if v is not None})

    def classify(
        self, clips: Iterable[tuple[int, Tensor]], batch_size: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Mean probabilities, float32 (num_classes,), over the views that have a number in common.

        `clips` are numbers, the same ones in a row, and uint8 views (crops, C, T, S, S); `batch_size`
        views go through the model together, whatever their number.
        """
        views = ((number, view) for number, pixels in clips for view in pixels)

        def scored() -> Iterator[tuple[int, Tensor]]:
            for batch in iter(lambda: list(islice(views, batch_size)), []):
                numbers, pixels = zip(*batch, strict=True)
                scores = self.logits(torch.stack(pixels)).softmax(1).cpu()
                yield from zip(numbers, scores, strict=True)

        for number, rows in groupby(scored(), key=itemgetter(0)):
            yield number, torch.stack([row for _, row in rows]).mean(dim=0)

    def top(self, scores: Tensor) -> list[Score]:
        """The likeliest classes, of equal ones that with the lowest index first."""
        best = scores.argsort(descending=True, stable=True)[: self.topk].tolist()
        return [
            {
                'label': self.labels[i] if self.labels else str(i),
                'index': i,
                'score': scores[i].item(),
            }
            for i in best
        ]


@contextmanager
def decoding(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that decode; what they have not begun is left when the block ends."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix='bvtam-decode')
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
