"""What a net sees in videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..data.failures import VIDEO_ERRORS, Failures, check_policy
from ..data.transforms import check_channels, normalize
from ..data.video.in_memory import is_one, source_name
from ..data.video.reader import closed_at_exit
from ..errors import BvtamError
from .clips import clip_plan, read_clips
from .eval_mode import evaluating

_LARGEST = 10_000  # beyond it a count is a mistake


def predict(
    model: nn.Module,
    video: Any,
    topk: int = 5,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    batch_size: int = 1,
    time_limit: float = 60.0,
) -> dict[str, Any]:
    """The `topk` likeliest classes of one video, over the clips and crops of `model.clip_config`.

    Each view is normalised and classified by itself, on the model's device and in its precision;
    the softmax probabilities are averaged over the views. The model is left as it came.

    Args:
        model: a video net of the zoo, with `clip_config`, `num_classes` and, where known,
            `label_names`.
        video: anything that `open_video` takes: a file, an address, '-', a folder of frames, an
            array of frames, a list of PIL images, the bytes of a file, a binary file object, a reader.
        topk: classes to return; all of them where the model has fewer.
        num_clips, num_crops: views of the video; by default those of `model.clip_config`.
        batch_size: views that go through the net together.
        time_limit: seconds without progress after which the video is given up.

    Returns:
        `{'video': path, 'model': name, 'frames': indices of all clips, one after another,
        'top': [{'label', 'index', 'score'}, ...]}`, the likeliest class first, with its index in
        place of a label where the model has none. Scores are probabilities.

    Raises:
        BvtamError: an image net, a net without classes, labels of another number than classes,
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
) -> Iterator[dict[str, Any]]:
    """What `predict` returns of each video, in their order, while the next ones are decoded.

    Views of several videos go through the net together. The scores are those of `predict`, but for
    the rounding of sums. At any time the model is as it came.

    Args:
        model, topk, num_clips, num_crops, time_limit: as of `predict`.
        videos: whatever `predict` takes, any number of them.
        batch_size: views that go through the net together, of one video or several.
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
    net = Classifier(model, topk, num_clips, num_crops)
    videos = [videos] if is_one(videos) else list(videos)
    if failures is None:
        failures = Failures(len(videos))
    tell = progress or (lambda done, total: None)

    @closed_at_exit
    def run() -> Iterator[dict[str, Any]]:
        frames, failed, stop = defaultdict(list), set(), []

        def clips() -> Iterator[tuple[int, Tensor]]:
            for number, found in read_clips(
                pool, workers, videos, clip_plan(net.clip), net.clip, time_limit
            ):
                if not isinstance(found, Exception):
                    frames[number] += found.frames.flatten().tolist()
                    yield from ((number, pixels) for pixels in found.pixels)
                    continue
                failed.add(number)
                try:
                    if on_error == 'raise':
                        raise found
                    failures.add(video_name(videos[number]), found)
                except VIDEO_ERRORS as error:  # raised when those before it are through
                    stop.append(error)
                    return

        tell(0, len(videos))
        with decoding(workers) as pool:
            for number, scores in net.classify(clips(), batch_size):
                if number not in failed:  # some clips may come before one that fails
                    yield {
                        'video': video_name(videos[number]),
                        'model': net.name,
                        'frames': frames.pop(number),
                        'top': net.top(scores),
                    }
                tell(number + 1, len(videos))
        if stop:
            raise stop[0]
        tell(len(videos), len(videos))

    return run()


class Classifier:
    """A video net as a function from clips to class probabilities.

    Args:
        model: a video net of the zoo, on the device that is to be used.
        topk: classes to name.
        num_clips, num_crops: in place of those of `model.clip_config`.

    Attributes:
        name: of the net.
        clip: the `ClipConfig`.

    Raises:
        BvtamError: as from `predict`.
    """

    def __init__(
        self,
        model: nn.Module,
        topk: int = 5,
        num_clips: int | None = None,
        num_crops: int | None = None,
    ) -> None:
        self.name = model_name(model)
        self.model, self.topk = model, topk
        clip = getattr(model, 'clip_config', None)
        if clip is None or getattr(model, 'input_kind', 'clip') == 'image':
            raise BvtamError(f'{self.name} takes single images; predict needs a video net')
        if not model.num_classes:
            raise BvtamError(f'{self.name} has no classifier (num_classes=0); predict needs one')
        if topk < 1:
            raise BvtamError(f'topk must be at least 1, not {topk}')
        self.labels = getattr(model, 'label_names', None)
        if self.labels is not None and len(self.labels) != model.num_classes:
            raise BvtamError(
                f'{self.name} has {model.num_classes} classes but {len(self.labels)} label names; '
                'give one for each class, or none'
            )
        views = {'num_clips': num_clips, 'num_crops': num_crops}
        self.clip = replace(clip, **{k: v for k, v in views.items() if v is not None})
        check_channels(self.name, clip, model)

    def __call__(self, views_BCTHW: Tensor) -> Tensor:
        """uint8 (B, C, T, S, S) -> float32 (B, num_classes) on the CPU."""
        weight = next(self.model.parameters(), torch.empty(0))
        with evaluating(self.model) as net:
            x = normalize(views_BCTHW.to(weight.device), self.clip, weight.dtype)
            return self.probabilities(net(x))

    def probabilities(self, logits: Tensor) -> Tensor:
        """float32 (B, num_classes) on the CPU; `BvtamError` where they are not finite."""
        logits = logits.float()
        if not logits.isfinite().all():
            raise BvtamError(
                f'{self.name} gave scores that are not finite; its weights may be damaged'
            )
        return logits.softmax(dim=1).cpu()

    def classify(
        self, clips: Iterable[tuple[int, Tensor]], batch_size: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Mean probabilities, float32 (num_classes,), over the views that have a number in common.

        Args:
            clips: numbers and uint8 views (crops, C, T, S, S); the same number in a row.
            batch_size: views that go through the net together, whatever their number.
        """
        views = ((number, view) for number, pixels in clips for view in pixels)
        scored = (
            (number, row)
            for batch in iter(lambda: list(islice(views, batch_size)), [])
            for (number, _), row in zip(
                batch, self(torch.stack([view for _, view in batch])), strict=True
            )
        )
        for number, rows in groupby(scored, key=itemgetter(0)):
            yield number, torch.stack([row for _, row in rows]).mean(dim=0)

    def top(self, scores: Tensor) -> list[dict[str, Any]]:
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


def check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not 1 <= value <= _LARGEST:
            raise BvtamError(f'{name} must be from 1 to {_LARGEST}, not {value}')


def model_name(model: nn.Module) -> str:
    """What a model is called in results and messages."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    name = getattr(model, 'model_name', None) or config.get('architecture')
    return name or type(model).__name__


def video_name(video: Any) -> str:
    """What a video is called in results: its path or address as given, where it has one."""
    return source_name(video)
