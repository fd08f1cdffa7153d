"""For classes of which some have many more videos than others: weights in the loss, or in the draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BvtamError, nearest


def class_weights(setting: str | list | dict, dataset: Any, model: nn.Module) -> Tensor | None:
    """The factor of each class in the loss, (K,), None where all are 1.

    Args:
        setting: `regularize.class_weight`. 'balanced' gives videos / (classes * videos of the class),
            whose mean over the videos is 1; of a table by name those left out have 1.
        dataset: that is trained on.
        model: with `num_classes` and `label_names`.

    Raises:
        BvtamError: other classes than the model has; 'balanced' without records.
    """
    if not setting:
        return None
    if setting == 'balanced':
        counts = count_labels(dataset, model.num_classes)
        return counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
    if isinstance(setting, dict):
        names = model.label_names or [str(i) for i in range(model.num_classes)]
        given = {str(name): float(weight) for name, weight in setting.items()}
        for name in given:
            if name not in names:
                raise BvtamError(
                    f'recipe: regularize.class_weight: no class is named {name!r}{nearest(name, names)}'
                )
        return torch.tensor([given.get(name, 1.0) for name in names])
    if len(setting) != model.num_classes:
        raise BvtamError(
            f'recipe: regularize.class_weight has {len(setting)} numbers for {model.num_classes} classes: '
            'give one for each, in the order of the labels'
        )
    return torch.tensor([float(weight) for weight in setting])


def sample_weights(dataset: Any, num_classes: int) -> Tensor:
    """Weights (N,) of the samples of a data set in a draw that takes each class as often.

    Raises:
        BvtamError: a data set without records.
    """
    counts = count_labels(dataset, num_classes)
    return 1 / counts[torch.tensor([record.label for record in dataset.records])].double()


def count_labels(dataset: Any, num_classes: int) -> Tensor:
    """int64 (K,): samples of each class.

    Raises:
        BvtamError: a data set without records.
    """
    labels = [getattr(record, 'label', -1) for record in getattr(dataset, 'records', ())]
    if not labels or not all(0 <= label < num_classes for label in labels):
        raise BvtamError(
            'recipe: class_weight and sampler are balanced by the records of a data set, which are not '
            'here: leave them out'
        )
    return torch.bincount(torch.tensor(labels), minlength=num_classes)
