"""The data of an evaluation: the test views of each video, and the model's class of each label."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..data.datasets import ImageDataset, VideoDataset
from ..data.records import Record
from ..data.transforms import check_channels
from ..errors import BvtamError
from ..inference.runner import check_classes, is_image, model_name
from .report import Views

log = logging.getLogger('bvtam')


class EvalData(NamedTuple):
    """Labelled videos as a model is evaluated on them."""

    dataset: Dataset  # of test views
    views: Views
    labels: Sequence[str]  # names of the model's classes
    class_of: Tensor  # int64 (K,): the model's class of each label of the data


def eval_data(
    model: nn.Module,
    records_or_dataset: Sequence[Record] | Dataset,
    num_clips: int | None,
    num_crops: int | None,
    on_error: str,
    label_names: Sequence[str] | None,
) -> EvalData:
    """Checks that model, data and label names fit together; arguments and errors as of `evaluate`."""
    name, labels = check_model(model)
    dataset, views = _test_views(model, records_or_dataset, num_clips, num_crops, on_error)
    label_names = label_names or getattr(dataset, 'label_names', None)
    class_of = _classes_of(name, model.num_classes, labels, label_names)
    known = [r for r in getattr(dataset, 'records', ()) if isinstance(r, Record)]
    check_labels(name, [r.label for r in known], [r.source for r in known], len(class_of))
    labels = labels or label_names or [str(i) for i in range(model.num_classes)]
    return EvalData(dataset, views, labels, class_of)


def check_model(model: nn.Module) -> tuple[str, list[str] | None]:
    """Its name, and its label names."""
    name = model_name(model)
    if getattr(model, 'clip_config', None) is None:
        raise BvtamError(
            f'{name} has no clip_config, which says how its input is made: set model.clip_config'
        )
    return name, check_classes(model, 'evaluate')


def _test_views(
    model: nn.Module,
    data: Sequence[Record] | Dataset,
    num_clips: int | None,
    num_crops: int | None,
    on_error: str,
) -> tuple[Dataset, Views]:
    """A dataset of test views, and how many there are; what was given is not changed."""
    views: dict[str, int] = {'num_clips': num_clips, 'num_crops': num_crops}
    views = {key: value for key, value in views.items() if value is not None}
    if not isinstance(data, Dataset):
        if isinstance(data, (str, os.PathLike)) or not all(isinstance(r, Record) for r in data):
            raise BvtamError('evaluate needs records, as load_records gives them, or a dataset')
        check_channels(model_name(model), model.clip_config, model)
        data = (ImageDataset if is_image(model) else VideoDataset)(data, model.clip_config)
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


def _classes_of(
    name: str, num_classes: int, labels: Sequence[str] | None, data_labels: Sequence[str] | None
) -> Tensor:
    """`EvalData.class_of`."""
    if data_labels and len(data_labels) != num_classes and not labels:
        raise BvtamError(
            f'the data has {len(data_labels)} label names, but {name} has {num_classes} classes'
        )
    if not labels or not data_labels or list(labels) == list(data_labels):
        return torch.arange(num_classes)
    index = {label: i for i, label in enumerate(labels)}
    for some, whose, others, of in (
        (data_labels, 'the data', index, name),
        (index, name, set(data_labels), 'the data'),
    ):
        missing = [repr(label) for label in dict.fromkeys(some) if label not in others]
        if missing:
            more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
            raise BvtamError(
                f'the labels of {whose} {", ".join(missing[:3])}{more} are none of {of}: evaluate on '
                "data with the model's labels (labels= of load_records)"
            )
    if not len(index) == len(data_labels) == num_classes:
        raise BvtamError(f'a label name of the data or of {name} is there twice: name each once')
    log.info('the labels of the data are those of %s in another order: matched by name', name)
    return torch.tensor([index[label] for label in data_labels])


def check_labels(
    name: str, labels: Tensor | Sequence[int], videos: Sequence[str], count: int
) -> None:
    for label, video in zip(labels, videos, strict=True):
        if not 0 <= label < count:
            what = f'its label {int(label)} is none' if label >= 0 else 'it has no label'
            raise BvtamError(f'{video}: {what} of the {count} classes of {name}')
