"""Accuracy of a net on labelled videos: exact counts, by one process or many."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..data.datasets import ImageDataset, Record, SampleError, VideoDataset, collate
from ..data.failures import Failures, check_policy, machine_errors, starting_processes
from ..data.transforms import check_channels, normalize
from ..data.video.memory import prefetch
from ..errors import BvtamError
from ..inference.eval_mode import evaluating
from ..inference.predict import check_counts, model_name
from .counts import Counts, place
from .distributed import quiet_worker
from .report import figure, most_confused, per_class, write_report

log = logging.getLogger('bvtam')

_MEET_EVERY = 10  # batches; then processes tell each other of failures


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
) -> dict[str, Any]:
    """Accuracy of a net on labelled videos, or of an image net on images.

    The softmax probabilities of a video are averaged over its views, as `predict` does. Where
    `torch.distributed` is initialised, process r of n takes the videos r, r + n, ..., each video once,
    and all return the same. Accuracies are ratios of counts and do not depend on `batch_size` or the
    number of processes, except where two scores are so near that the last bits of a product of
    matrices decide; the loss may differ in its last digits.

    Args:
        model: a net of the zoo; it is left as it came.
        records_or_dataset: labelled records, as `load_records` gives them (`load_images` for an image
            net), or a dataset with a length. Of a `VideoDataset` the test views are taken.
        num_clips, num_crops: views of a video; by default those of `model.clip_config`, or of the
            dataset. The views of other datasets than `VideoDataset` cannot be changed: by default
            one, and anything else must be what the dataset gives.
        batch_size: clips that go through the net at once, whatever the number of views.
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

    Returns:
        `{model, num_videos, num_failed, loss, top1, top5, mean_class_accuracy, views, per_class,
        most_confused}`. `loss` is the cross-entropy, averaged over views and videos; accuracies are
        percentages; `views` is `{num_clips, num_crops}`; `per_class` lists `{label, index,
        num_videos, correct, accuracy}`, None where a class has no video; `most_confused` lists
        `{label, predicted, num_videos, share}`, where `share` is a percentage of the videos of `label`,
        most videos first.

    Raises:
        BvtamError: a net without classes or `clip_config`, an image net on videos, a label that the net does not have,
            other label names, an option out of range, no matplotlib for `out`, more failed videos than
            allowed, none that could be read, scores that are not finite, an `out` that cannot be
            written. What goes wrong in one process is raised in all.
        SampleError: a video that cannot be read, under 'raise'.
    """
    check_policy(on_error, ('skip', 'raise'))
    check_counts(batch_size=batch_size, workers=workers or 1)
    name, labels = check_model(model)
    dataset, views = _test_views(model, records_or_dataset, num_clips, num_crops, on_error)
    label_names = label_names or getattr(dataset, 'label_names', None)
    order = _match(name, model.num_classes, labels, label_names)
    labels = labels or label_names or [str(i) for i in range(model.num_classes)]
    known = [r for r in getattr(dataset, 'records', ()) if isinstance(r, Record)]
    _check_labels(name, [r.label for r in known], [r.source for r in known], len(order))
    if out is not None:
        figure()  # fails before the work, not after it

    rank, world = place()
    total, per_video = len(dataset), views['num_clips'] * views['num_crops']
    videos = max(1, batch_size // per_video)  # of one batch
    mine = len(range(rank, total, world))
    rounds = -(-total // (world * videos))  # batches of process 0: none has more
    every = _MEET_EVERY if world > 1 else 1
    tell = progress or (lambda done, total: None)
    out = Path(out) if out is not None and rank == 0 else None
    errors = out / 'errors.csv' if out else None
    error, failures = None, None
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        failures = Failures(total, max_failed, errors)
    except (BvtamError, OSError) as cause:
        strerror = getattr(cause, 'strerror', None)
        error = BvtamError(f'{out} cannot be written: {strerror}' if strerror else cause)
    _meet(error, [])

    counts, num_failed, done = Counts(model.num_classes), 0, 0
    with (
        machine_errors(''),
        _evaluating(model, name, device) as net,
        _batches(
            dataset,
            batch_size=videos,
            sampler=range(rank, total, world),
            num_workers=workers,  # of one thread: torch sees to that
            prefetch_factor=prefetch(workers, videos * per_video * model.clip_config.num_bytes),
            collate_fn=collate,
            pin_memory=net.device.type == 'cuda',
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # or it would draw from the global one
        ) as batches,
    ):
        tell(0, mine)
        for _ in range(0, rounds, every):
            error, failed = None, []
            try:
                for batch in islice(batches, every):
                    failed += batch['failed']
                    if failed and on_error == 'raise':
                        raise SampleError(': '.join(failed[0]))
                    if batch['clip'] is not None:
                        _check_labels(name, batch['label'], batch['video'], len(order))
                        target = order[batch['label']]
                        counts.update(*net(batch['clip'], target, per_video, batch_size))
                    done = min(done + videos, mine)
                    tell(done, mine)
            except Exception as cause:  # the other processes wait to hear of it
                error = cause
            failed = _meet(error, failed)
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

    result = {
        'model': name,
        'num_failed': num_failed,
        **counts.result(),
        'views': views,
        'per_class': per_class(counts.matrix, labels),
        'most_confused': most_confused(counts.matrix, labels),
    }
    if rank == 0 and num_failed:
        where = f', listed in {errors}' if errors else ''
        log.warning('%d of %d videos failed and are not counted%s', num_failed, total, where)
    if out:
        write_report(out, result, counts.matrix, labels)
    return result


# ---- the model and the data ----


def check_model(model: nn.Module) -> tuple[str, list[str] | None]:
    """Its name, and its label names."""
    name, labels = model_name(model), getattr(model, 'label_names', None)
    if getattr(model, 'clip_config', None) is None:
        raise BvtamError(
            f'{name} has no clip_config, which says how its input is made: set model.clip_config'
        )
    if not model.num_classes:
        raise BvtamError(f'{name} has no classifier (num_classes=0); evaluate needs one')
    if labels and len(labels) != model.num_classes:
        raise BvtamError(
            f'{name} has {model.num_classes} classes but {len(labels)} label names; '
            'give one for each class, or none'
        )
    return name, labels


def _is_image(model: nn.Module) -> bool:
    return getattr(model, 'input_kind', 'clip') == 'image'


def _test_views(
    model: nn.Module,
    data: Sequence[Record] | Dataset,
    num_clips: int | None,
    num_crops: int | None,
    on_error: str,
) -> tuple[Dataset, dict[str, int]]:
    """A dataset of test views, and how many there are; what was given is not changed."""
    views = {'num_clips': num_clips, 'num_crops': num_crops}
    views = {key: value for key, value in views.items() if value is not None}
    if not isinstance(data, Dataset):
        if isinstance(data, (str, os.PathLike)) or not all(isinstance(r, Record) for r in data):
            raise BvtamError('evaluate needs records, as load_records gives them, or a dataset')
        check_channels(model_name(model), model.clip_config, model)
        data = (ImageDataset if _is_image(model) else VideoDataset)(data, model.clip_config)
    if isinstance(data, IterableDataset):
        raise BvtamError('evaluate needs a dataset with a length, not a stream')
    if not isinstance(data, VideoDataset):
        return data, {'num_clips': 1, 'num_crops': 1} | views
    if isinstance(data, ImageDataset):
        views['num_clips'] = 1
    clip = replace(data.read.clip, **views)
    data = copy.copy(data)
    data.read, data.on_error = replace(data.read, clip=clip, train=None), on_error
    return data, {'num_clips': clip.num_clips, 'num_crops': clip.num_crops}


def _match(
    name: str, num_classes: int, labels: Sequence[str] | None, of_data: Sequence[str] | None
) -> Tensor:
    """int64 (K,): the model's class of each label of the data."""
    if of_data and len(of_data) != num_classes and not labels:
        raise BvtamError(
            f'the data has {len(of_data)} label names, but {name} has {num_classes} classes'
        )
    if not labels or not of_data or list(labels) == list(of_data):
        return torch.arange(num_classes)
    index = {label: i for i, label in enumerate(labels)}
    for some, whose, others, of in (
        (of_data, 'the data', index, name),
        (index, name, set(of_data), 'the data'),
    ):
        missing = [repr(label) for label in dict.fromkeys(some) if label not in others]
        if missing:
            more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
            raise BvtamError(
                f'the labels of {whose} {", ".join(missing[:3])}{more} are none of {of}: evaluate on '
                "data with the model's labels (labels= of load_records)"
            )
    if not len(index) == len(of_data) == num_classes:
        raise BvtamError(f'a label name of the data or of {name} is there twice: name each once')
    log.info('the labels of the data are those of %s in another order: matched by name', name)
    return torch.tensor([index[label] for label in of_data])


def _check_labels(
    name: str, labels: Tensor | Sequence[int], videos: Sequence[str], count: int
) -> None:
    for label, video in zip(labels, videos, strict=True):
        if not 0 <= label < count:
            what = f'its label {int(label)} is none' if label >= 0 else 'it has no label'
            raise BvtamError(f'{video}: {what} of the {count} classes of {name}')


class _Net:
    """A model as a function from the views of videos to probabilities."""

    def __init__(self, model: nn.Module, name: str) -> None:
        weight = next(model.parameters(), torch.empty(0))
        self.model, self.name = model, name
        self.device, self.dtype = weight.device, weight.dtype

    def __call__(
        self, clips: Tensor, labels: Tensor, views: int, batch_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, V, C, T, S, S), or (B, C, T, S, S) where V = 1, and labels (B,) to the scores
        (B, K), the labels, and the losses (B,), on the CPU. At most `batch_size` clips at once."""
        clips = clips.unsqueeze(1) if clips.ndim == 5 else clips
        if clips.shape[1] != views:
            raise BvtamError(
                f'the dataset has {clips.shape[1]} views of a video, not num_clips * num_crops = {views}'
            )
        logits = [self._logits(x) for x in clips.flatten(0, 1).split(batch_size)]
        logits = torch.cat(logits).float()
        if not logits.isfinite().all():
            raise BvtamError(
                f'{self.name} gave scores that are not finite; its weights may be damaged'
            )
        each = labels.to(self.device).repeat_interleave(views)
        losses = F.cross_entropy(logits, each, reduction='none')
        scores, losses = (
            x.unflatten(0, (-1, views)).mean(1).cpu() for x in (logits.softmax(1), losses)
        )
        return scores, labels, losses

    def _logits(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        pixels = x.dtype == torch.uint8
        x = normalize(x, self.model.clip_config, self.dtype) if pixels else x.to(self.dtype)
        if _is_image(self.model):
            if x.shape[2] != 1:
                raise BvtamError(f'{self.name} takes single images: evaluate it on an ImageDataset')
            x = x.squeeze(2)
        return self.model(x)


@contextmanager
def _evaluating(model: nn.Module, name: str, device: str | torch.device | None) -> Iterator[_Net]:
    """The model on the device, in eval mode and without gradients; see `evaluating`."""
    if device is not None:
        device = _usable(device)
    with evaluating(model, device) as view:
        net = _Net(view, name)
        cuda = net.device.type == 'cuda'  # where NCCL and pinned memory look for the device
        with torch.cuda.device(net.device) if cuda else nullcontext():
            yield net


def _usable(device: str | torch.device) -> torch.device:
    """The device, with its number where it has one."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition('\n')[0]
        raise BvtamError(f'device {str(device)!r} cannot be used: {reason}') from None


@contextmanager
def _batches(dataset: Dataset, **options: Any) -> Iterator[Iterator[dict[str, Any]]]:
    with starting_processes(options['num_workers']):
        batches = iter(DataLoader(dataset, **options))
    try:
        yield batches
    finally:
        # After an error the garbage collector would do it, and take 5 seconds for each process.
        getattr(batches, '_shutdown_workers', bool)()


# ---- many processes ----


def _meet(error: Exception | None, failed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What failed in all processes together.

    Raises:
        The error, or in another process a `BvtamError` that tells of it; so none waits in vain.
    """
    world, parts = place()[1], [(None, failed)]
    if world > 1:
        parts = [None] * world
        told = f'{type(error).__name__}: {error}' if error else None
        dist.all_gather_object(parts, (told, failed))
    if error is not None:
        raise error
    for number, (told, _) in enumerate(parts):
        if told:
            raise BvtamError(f'process {number} of {world} stopped: {told}')
    return [one for _, part in parts for one in part]
