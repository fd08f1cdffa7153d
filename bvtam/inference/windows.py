"""The classes that a model sees in a long video, window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict

from torch import Tensor, nn

from ..data.failures import Failures, check_policy, machine_errors
from ..data.video.in_memory import is_one, source_name
from ..data.video.open import open_video
from ..data.video.reader import VideoError, closed_at_exit
from .clips import cut, read_clips, spans, window_plan
from .predict import Classifier, Score, decoding
from .runner import check_counts


class WindowScores(TypedDict):
    """The likeliest classes from `start` to `end`, in seconds; the rest as of `Prediction`."""

    start: float
    end: float
    frames: list[int]
    top: list[Score]


class WindowedVideo(TypedDict):
    """The windows of a video, `length` seconds long, that begin `every` seconds."""

    video: str
    model: str
    every: float
    length: float
    windows: list[WindowScores]


def windows(
    model: nn.Module,
    video: Any,
    every: float,
    length: float | None = None,
    topk: int = 5,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    batch_size: int = 8,
    workers: int = 2,
    time_limit: float = 60.0,
    progress: Callable[[int, int], object] | None = None,
) -> WindowedVideo:
    """The likeliest classes in each window of a video; see `cut` for what its windows are.

    A window is treated as `predict` treats a video. Some windows at a time are decoded, by threads,
    so that memory does not grow with the video.

    Args:
        model: a video model of the zoo; it is left as it came.
        video: anything that `open_video` takes.
        every: seconds from the start of a window to that of the next.
        length: seconds of a window, at least `every`, which it is by default.
        topk, num_clips, num_crops, batch_size, workers, time_limit: as of `predict_many`.
        progress: called with the numbers of windows done and of all.

    Raises:
        BvtamError: as from `predict`; `every` or `length` out of range.
        FileNotFoundError: there is no such video.
    """
    check_counts(batch_size=batch_size, workers=workers)
    classifier = Classifier(model, topk, num_clips, num_crops)
    every, length = spans(every, length)
    plan = window_plan(classifier.clip, every, length)
    reader = open_video(video, time_limit)
    with machine_errors(reader.name):
        found, rows = cut(reader.times, reader.duration, every, length), plan(reader)
    clip = classifier.clip

    def clips() -> Iterator[tuple[int, Tensor]]:
        count = 0
        for _, part in read_clips(pool, workers, [reader], lambda _: rows, clip, time_limit):
            if isinstance(part, Exception):
                raise part
            for pixels in part.pixels:
                yield count // clip.num_clips, pixels
                count += 1

    tell = progress or (lambda done, total: None)
    tell(0, len(found))
    results = []
    with decoding(workers) as pool:
        for number, scores in classifier.classify(clips(), batch_size):
            mine = rows[number * clip.num_clips : (number + 1) * clip.num_clips]
            results.append(
                {
                    'start': found[number].start,
                    'end': found[number].end,
                    'frames': [index for indices in mine for index in indices],
                    'top': classifier.top(scores),
                }
            )
            tell(len(results), len(found))
    return {
        'video': source_name(video),
        'model': classifier.name,
        'every': float(every),
        'length': float(length),
        'windows': results,
    }


@closed_at_exit
def windows_many(
    model: nn.Module,
    videos: Iterable[Any],
    every: float,
    length: float | None = None,
    topk: int = 5,
    *,
    on_error: str = 'raise',
    failures: Failures | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Iterator[WindowedVideo]:
    """The result of `windows` for each video, in their order.

    Args:
        model, every, length, topk, options: of `windows`.
        on_error, failures: as of `predict_many`.
        progress: called with the numbers of windows done and of all, of the video at hand.

    Raises:
        BvtamError, FileNotFoundError: as from `predict_many`.
    """
    check_policy(on_error, ('raise', 'skip'))
    videos = [videos] if is_one(videos) else list(videos)
    failures = Failures(len(videos)) if failures is None else failures
    for video in videos:
        try:
            result = windows(model, video, every, length, topk, progress=progress, **options)
        except (VideoError, OSError) as error:
            if on_error == 'raise':
                raise
            failures.add(source_name(video), error)
        else:
            yield result
