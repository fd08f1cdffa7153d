"""Labels: their names in order, from a file, and the index that a label of a list stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import BvtamError, nearest
from .list_formats import Row, is_number, read_json, read_lines, without_brackets

LABELS = 'labels.txt'  # as `prepare` writes them beside a list


def read_labels(labels: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    """Label names in the order of their indices, from a file where a path is given.

    Raises:
        BvtamError: a name that is there twice, or indices that are not 0, 1, 2, and so on.
    """
    where = 'labels'
    if isinstance(labels, (str, os.PathLike)):
        path = Path(labels)
        where = str(path)
        if path.suffix.lower() == '.json':
            labels = read_json(path)
            if isinstance(labels, dict):
                labels = labels.get('id2label', labels)  # in a config.json of transformers
        else:
            labels = [text for _, text in read_lines(path)]
            pairs = [re.fullmatch(r'(.+),\s*(\d+)', text) for text in labels]
            if all(pairs) or all(
                pairs := [re.fullmatch(r'(\d+),\s*(.+)', text) for text in labels]
            ):
                labels = {match[1]: match[2] for match in pairs}
        if isinstance(labels, dict):
            pairs = labels.items()
            if all(str(index).isdecimal() for index in labels.values()):
                pairs = [(index, name) for name, index in pairs]
            try:
                order = {int(index): name for index, name in pairs}
                labels = [order[index] for index in range(len(labels))]
            except (TypeError, ValueError, KeyError):
                raise BvtamError(f'{where}: its indices are not 0, 1, 2, and so on') from None
    names = [] if isinstance(labels, (str, int, float)) else list(labels or ())
    if not names or not all(isinstance(name, str) for name in names):
        raise BvtamError(f'{where}: give a list of label names')
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise BvtamError(f'{where}: the label {double!r} is there twice')
    return names


def check_single(rows: Iterable[Row], names: list[str] | None) -> None:
    """Raises a BvtamError for a label that lists several others, or several numbers."""
    labels = {row.label for row in rows}.union(names or ())
    for row in rows:
        parts = re.split(r'\s*[;|,]\s*|(?<=\d)\s+(?=\d)', row.label.strip('[](){} '))
        several = len({*parts}) > 1 and row.label not in (names or ())
        if several and (labels.issuperset(parts) or all(map(is_number, parts))):
            raise BvtamError(
                f'{row.where}: {row.label!r} names several classes, and a video, or a part of one '
                '(start,end), has one label: data sets of several labels each are not taken'
            )


def label_index(names: list[str] | None, texts: set[str]) -> Callable[[Row], int]:
    """A function from a row to the index of its label; `texts`: the labels of all rows."""
    index = {name: i for i, name in enumerate(names or [])}
    for name, i in list(index.items()):
        index.setdefault(without_brackets(name), i)
    if names and all(map(is_number, (*names, *texts))):  # 7 may be written 007
        index |= {_plain_number(name): i for name, i in index.items()}
        index |= {
            text: index[_plain_number(text)] for text in texts if _plain_number(text) in index
        }
    if all(map(is_number, texts)) and not texts <= set(index):
        index = {}  # numbers are indices, also where some of them are names of classes as well

    def label_of(row: Row) -> int:
        text = row.label
        if not text:
            return -1
        if text in index:
            return index[text]
        if not is_number(text):
            raise BvtamError(f'{row.where}: unknown label {text!r}{nearest(text, index)}')
        label = int(text)
        if label < 0 or (names is not None and label >= len(names)):
            most = f'to {len(names) - 1}' if names is not None else 'up'
            raise BvtamError(f'{row.where}: label {label} is out of range, from 0 {most}')
        return label

    return label_of


def _plain_number(text: str) -> str:
    """Without leading zeros."""
    return str(int(text)) if is_number(text) else text
