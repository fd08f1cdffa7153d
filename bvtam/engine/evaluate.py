"""Accuracy of a model on labelled videos: exact counts, by one process or many."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.datasets import SampleError, collate
from ..data.failures import Failures, check_policy, machine_errors, starting_processes
from ..data.records import Record
from ..data.video.memory import prefetch
from ..errors import BvtamError
from ..inference.eval_mode import evaluating
from ..inference.ranks import rank_and_world_size
from ..inference.runner import Runner, check_counts, model_name
from .counts import Counts
from .distributed import gather_failures, quiet_worker
from .eval_data import EvalData, check_labels, eval_data
from .report import Evaluation, figure, most_confused, per_class, write_report

log = logging.getLogger('bvtam')

_GATHER_EVERY = 10  # batches; then processes tell each other of failures


def evaluate(
    model: nn.Module,
    records_or_dataset: Sequence[Record] | Dataset,
    *,
    num_clips: int | None = None,
    num_crops: int | None = None,
    batch_size: int = 8,
    workers: int = 2,
    on_error: str = 'skip',
    max_failed: float = 0.1,
    out: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
    device: str | torch.device | None = None,
) -> Evaluation:
    """Accuracy of a model on labelled videos, or of an image model on images.

    The softmax probabilities of a video are averaged over its views, as `predict` does. Where
    `torch.distributed` is initialised, process r of n takes the videos r, r + n, ..., each video once,
    and all return the same. Accuracies are ratios of counts and do not depend on `batch_size` or the
    number of processes, except where two scores are so near that the last bits of a product of
    matrices decide; the loss may differ in its last digits.

    Args:
        model: of the zoo; it is left as it came.
        records_or_dataset: labelled records, as `load_records` gives them (`load_images` for an image
            model), or a dataset with a length. Of a `VideoDataset` the test views are taken.
        num_clips, num_crops: views of a video; by default those of `model.clip_config`, or of the
            dataset. The views of other datasets than `VideoDataset` cannot be changed: by default
            one, and anything else must be what the dataset gives.
        batch_size: clips that go through the model at once, whatever the number of views.
        workers: processes that decode, of one thread each; 0 to decode in this one.
        on_error: 'skip' reports a video that cannot be read, which then counts as neither right nor
            wrong; 'raise' stops there, in all processes.
        max_failed: share of the videos, on [0, 1], that may fail.
        out: folder for results.json (what is returned), per_class.csv, confusion.png and, where a
            video failed, errors.csv.
        label_names: of the data, in the order of its labels; by default those of the dataset, if it
            has any. If the model has the same in another order, labels are matched by name.
        progress: called with the numbers of videos done and to do in this process.
        device: to evaluate on; by default the model's.

    Raises:
        BvtamError: a model without classes or `clip_config`, an image model on videos, a label that the model does not have,
            other label names, an option out of range, no matplotlib for `out`, more failed videos than
            allowed, none that could be read, scores that are not finite, an `out` that cannot be
            written. What goes wrong in one process is raised in all.
        SampleError: a video that cannot be read, under 'raise'.
    """
    check_policy(on_error, ('skip', 'raise'))
    check_counts(batch_size=batch_size, workers=workers or 1)
    data = eval_data(model, records_or_dataset, num_clips, num_crops, on_error, label_names)
    if out is not None:
        figure()  # fails before the work, not after it
    rank, world_size = rank_and_world_size()
    total = len(data.dataset)
    out = Path(out) if out is not None and rank == 0 else None
    failures = _open_failures(total, max_failed, out)

    counts, num_failed, done = Counts(model.num_classes), 0, 0
    per_video = data.views['num_clips'] * data.views['num_crops']
    videos = max(1, batch_size // per_video)  # of one batch
    mine = len(range(rank, total, world_size))
    rounds = -(-total // (world_size * videos))  # batches of process 0: none has more
    every = _GATHER_EVERY if world_size > 1 else 1

    def advance() -> None:
        nonlocal done
        done = min(done + videos, mine)
        if progress:
            progress(done, mine)

    with (
        machine_errors(''),
        _scorer(model, device, per_video, batch_size) as scorer,
        _batches(
            data.dataset,
            batch_size=videos,
            sampler=range(rank, total, world_size),
            num_workers=workers,  # of one thread: torch sees to that
            prefetch_factor=prefetch(workers, videos * per_video * model.clip_config.num_bytes),
            collate_fn=collate,
            pin_memory=scorer.device.type == 'cuda',
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # or it would draw from the global one
        ) as batches,
    ):
        if progress:
            progress(0, mine)
        for _ in range(0, rounds, every):
            error, failed = None, []
            try:
                failed = _count(islice(batches, every), scorer, data, counts, on_error, advance)
            except Exception as cause:  # the other processes wait to hear of it
                error = cause
            failed = gather_failures(error, failed)
            num_failed += len(failed)
            if rank == 0:
                for video, reason in failed:
                    failures.add(video, reason)
            if num_failed > max_failed * total:
                raise BvtamError(
                    f'{num_failed} of {total} videos failed, more than the allowed share of '
                    f'{max_failed:g} (max_failed)'
                )
        counts = counts.reduce()

    result: Evaluation = {
        'model': model_name(model),
        'num_failed': num_failed,
        **counts.result(),
        'views': data.views,
        'per_class': per_class(counts.matrix, data.labels),
        'most_confused': most_confused(counts.matrix, data.labels),
    }
    if rank == 0 and num_failed:
        where = f', listed in {failures.path}' if failures.path else ''
        log.warning('%d of %d videos failed and are not counted%s', num_failed, total, where)
    if out:
        write_report(out, result, counts.matrix, data.labels)
    return result


def _open_failures(total: int, max_failed: float, out: Path | None) -> Failures:
    """The list of failures in `out`; where one process cannot write it, all raise."""
    error, failures = None, None
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        failures = Failures(total, max_failed, out / 'errors.csv' if out else None)
    except (BvtamError, OSError) as cause:
        strerror = getattr(cause, 'strerror', None)
        error = BvtamError(f'{out} cannot be written: {strerror}' if strerror else cause)
    gather_failures(error, [])
    return failures


def _count(
    batches: Iterable[dict[str, Any]],
    scorer: _Scorer,
    data: EvalData,
    counts: Counts,
    on_error: str,
    advance: Callable[[], None],
) -> list[tuple[str, str]]:
    """Adds batches to the counts, calling `advance` after each; the videos that failed, and why."""
    failures = []
    for batch in batches:
        failures += batch['failed']
        if failures and on_error == 'raise':
            raise SampleError(': '.join(failures[0]))
        if batch['clip'] is not None:
            check_labels(scorer.name, batch['label'], batch['video'], len(data.class_of))
            counts.update(*scorer(batch['clip'], data.class_of[batch['label']]))
        advance()
    return failures


class _Scorer(Runner):
    """A model as a function from the views of videos to probabilities."""

    def __init__(self, model: nn.Module, views: int, batch_size: int) -> None:
        super().__init__(model, 'evaluate', images=True)
        self.views, self.batch_size = views, batch_size

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, V, C, T, S, S), or (B, C, T, S, S) where V = 1, and labels (B,) to the scores
        (B, K), the labels, and the losses (B,), on the CPU. At most `batch_size` clips at once."""
        views = self.views
        clips = clips.unsqueeze(1) if clips.ndim == 5 else clips
        if clips.shape[1] != views:
            raise BvtamError(
                f'the dataset has {clips.shape[1]} views of a video, not num_clips * num_crops = {views}'
            )
        logits = torch.cat([self.logits(x) for x in clips.flatten(0, 1).split(self.batch_size)])
        each = labels.to(self.device).repeat_interleave(views)
        losses = F.cross_entropy(logits, each, reduction='none')
        scores, losses = (
            x.unflatten(0, (-1, views)).mean(1).cpu() for x in (logits.softmax(1), losses)
        )
        return scores, labels, losses


@contextmanager
def _scorer(
    model: nn.Module, device: str | torch.device | None, views: int, batch_size: int
) -> Iterator[_Scorer]:
    """The model on the device, in eval mode and without gradients; see `evaluating`."""
    if device is not None:
        try:
            device = torch.empty(0, device=device).device  # with its number where it has one
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition('\n')[0]
            raise BvtamError(f'device {str(device)!r} cannot be used: {reason}') from None
    with evaluating(model, device) as view:
        scorer = _Scorer(view, views, batch_size)
        cuda = scorer.device.type == 'cuda'  # where NCCL and pinned memory look for the device
        with torch.cuda.device(scorer.device) if cuda else nullcontext():
            yield scorer


@contextmanager
def _batches(dataset: Dataset, **options: Any) -> Iterator[Iterator[dict[str, Any]]]:
    with starting_processes(options['num_workers']):
        batches = iter(DataLoader(dataset, **options))
    try:
        yield batches
    finally:
        # After an error the garbage collector would do it, and take 5 seconds for each process.
        getattr(batches, '_shutdown_workers', bool)()
