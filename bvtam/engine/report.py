"""What an evaluation writes: results, a table per class, the confusion matrix as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from ..files import write_file
from ..optional import library

_MOST_CONFUSED = 10  # pairs of classes in the report
_MOST_TICKS = 40  # classes whose names can be read beside a picture


class Views(TypedDict):
    """Test views of a video."""

    num_clips: int
    num_crops: int


class ClassAccuracy(TypedDict):
    """One class; `accuracy` is a percentage, None where the class has no video."""

    label: str
    index: int
    num_videos: int
    correct: int
    accuracy: float | None


class Confusion(TypedDict):
    """Videos of the class `label` taken for `predicted`; `share` is a percentage of that class."""

    label: str
    predicted: str
    num_videos: int
    share: float


class Evaluation(TypedDict):
    """What `evaluate` finds: accuracies in percent, the cross-entropy averaged over views and videos.

    `mean_class_accuracy` is over the classes that have a video; `most_confused` has those of most
    videos first.
    """

    model: str
    num_videos: int
    num_failed: int
    loss: float
    top1: float
    top5: float
    mean_class_accuracy: float
    views: Views
    per_class: list[ClassAccuracy]
    most_confused: list[Confusion]


def per_class(matrix: Tensor, labels: Sequence[str]) -> list[ClassAccuracy]:
    rows = zip(labels, matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)
    return [
        {
            'label': label,
            'index': i,
            'num_videos': count,
            'correct': correct,
            'accuracy': 100 * correct / count if count else None,
        }
        for i, (label, count, correct) in enumerate(rows)
    ]


def most_confused(matrix: Tensor, labels: Sequence[str]) -> list[Confusion]:
    videos = matrix.sum(1).tolist()
    wrong = matrix - matrix.diagonal().diag()
    order = wrong.flatten().argsort(descending=True, stable=True)[:_MOST_CONFUSED].tolist()
    pairs = [(*divmod(i, len(matrix)), int(wrong.flatten()[i])) for i in order]
    return [
        {
            'label': labels[i],
            'predicted': labels[j],
            'num_videos': count,
            'share': 100 * count / videos[i],
        }
        for i, j, count in pairs
        if count
    ]


def write_report(out: Path, result: Evaluation, matrix: Tensor, labels: Sequence[str]) -> None:
    write_file(out / 'results.json', json.dumps(result, indent=1) + '\n')
    table = io.StringIO()
    writer = csv.DictWriter(table, list(result['per_class'][0]))
    writer.writeheader()
    writer.writerows(result['per_class'])
    write_file(out / 'per_class.csv', table.getvalue())
    write_file(out / 'confusion.png', _picture(matrix, labels))


def _picture(matrix: Tensor, labels: Sequence[str]) -> bytes:
    """A PNG of the confusion matrix, each row in percent of its videos; empty rows are white."""
    count = len(matrix)
    drawing = figure()(figsize=(9, 8), layout='constrained')
    axes = drawing.subplots()
    shares = 100 * matrix.double() / matrix.sum(1, keepdim=True)
    image = axes.imshow(shares.numpy(), cmap='Blues', vmin=0, vmax=100)
    drawing.colorbar(image, ax=axes, label="% of the class's videos")
    axes.set(xlabel='predicted class', ylabel='class')
    if count <= _MOST_TICKS:
        names = [label if len(label) <= 30 else f'{label[:29]}…' for label in labels]
        plain = {'fontsize': 7, 'parse_math': False}  # a dollar sign is one
        axes.set_xticks(range(count), names, rotation=90, **plain)
        axes.set_yticks(range(count), names, **plain)
    picture = io.BytesIO()
    # At least 3 dots for a class, on axes about 6 inches wide.
    drawing.savefig(picture, format='png', dpi=min(max(120, count // 2), 600))
    return picture.getvalue()


def figure() -> Any:
    """matplotlib's class, or a `BvtamError` that says how to get it."""
    return library('matplotlib.figure', 'train', 'out').Figure
