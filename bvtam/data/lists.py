"""Lists and annotations of videos, line by line."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BvtamError, nearest
from ..files import read_text
from .records import VIDEO_SUFFIXES, Record
from .video.addresses import PROTOCOLS, check_protocol, is_url

log = logging.getLogger('bvtam')

SPLITS, LABELS = ('train', 'val', 'test'), 'labels.txt'
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{'training': 'train', 'testing': 'test'},
    **dict.fromkeys(('valid', 'validate', 'validation'), 'val'),
}


def _listed(text: str) -> list[str]:
    return text.split()


def split_name(text: str) -> str:
    """'train', 'val' or 'test' for the names that data sets have for them, '' for others."""
    return _SPLIT_NAMES.get(text.strip().lower(), '')


# Headers of a CSV file that mean the same, the likeliest first.
_COLUMNS = {
    'video': _listed('video video_path path filename file file_name file_path filepath video_name'),
    'label': _listed('label class label_name class_name category action label_id class_id target'),
}


class _Row(NamedTuple):
    """What a line says about a video."""

    where: str
    files: list[str]  # names that it may have, the likeliest first
    label: str = ''
    first: int | None = None
    last: int | None = None
    start: float | None = None
    end: float | None = None
    split: str = ''
    num_frames: int | None = None
    folders: tuple[str, ...] = ('',)  # in which it may be, the likeliest first
    fps: float | None = None  # of a folder


def read_list(
    path: Path, root: Path, names: list[str] | None, urls: bool = False
) -> tuple[dict[str, list[Record]], list[str] | None]:
    """The records of each part, under '' where parts are not named, and the label names.

    Args:
        path: of a list or annotations, as `load_records` tells them.
        root: folder that its paths start from.
        names: labels in the order of their indices; None for those of the list.
        urls: whether its videos may be addresses of `PROTOCOLS`.

    Raises:
        BvtamError: a line that cannot be understood, whose video is missing, or an address.
    """
    vanish = False
    if path.suffix.lower() == '.json':
        rows = list(_something_json(path))
        beside = sorted(path.parent.glob('*labels.json'))
        if names is None and len(beside) == 1:
            names = read_labels(beside[0])
    else:
        lines = _text(path)
        header, sep = _header(lines[0][1])
        vanish = 'youtube_id' in header
        if vanish or 'video' in header:
            read = _kinetics if vanish else _table
            rows = [read(where, row) for where, row in _dicts(header, lines[1:], sep)]
        else:
            rows = list(_plain_lines(lines))
    texts = {row.label for row in rows if row.label}
    _check_single(rows, names)
    if names is None and not all(map(_is_number, texts)):
        names = sorted(texts)
    elif names is None and texts and path.with_name(LABELS).exists():  # as `prepare` writes them
        beside = read_labels(path.with_name(LABELS))
        names = beside if texts <= set(beside) else None
    label_of, files = _label_reader(names, texts), _Files(root)

    parts: dict[str, list[Record]] = defaultdict(list)
    missing = []
    for row in rows:
        found = files.find(os.path.join(x, file) for file in row.files for x in row.folders)
        if found is None:
            if not vanish:
                raise BvtamError(f'{row.where}: there is no video {root / row.files[0]}')
            missing.append(row.files[0])
            continue
        source, is_folder = found
        try:
            check_protocol(source, PROTOCOLS if urls else ())
        except BvtamError as error:
            raise BvtamError(f'{row.where}: {error}') from None
        if not is_folder and (row.first, row.last) != (None, None):
            raise BvtamError(
                f'{row.where}: first and last number the images of a folder, but {source} is a file'
            )
        count = row.num_frames if is_folder else None  # TSN's lists count the frames of files too
        span = row.first, row.last, row.start, row.end
        record = Record(source, label_of(row), *span, count, fps=row.fps)
        parts[row.split].append(record)
    if missing and len(missing) == len(rows):
        raise BvtamError(
            f'{path}: none of its {len(rows)} videos is in {root}; name their folder (root)'
        )
    if missing:
        log.warning(
            '%s: %d of %d videos are not in %s, the first is %s',
            path,
            len(missing),
            len(rows),
            root,
            missing[0],
        )
    return dict(parts) or {'': []}, names


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
            labels = _json(path)
            if isinstance(labels, dict):
                labels = labels.get('id2label', labels)  # in a config.json of transformers
        else:
            labels = [text for _, text in _text(path)]
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


def _check_single(rows: Iterable[_Row], names: list[str] | None) -> None:
    """Raises a BvtamError for a label that lists several others, or several numbers."""
    labels = {row.label for row in rows}.union(names or ())
    for row in rows:
        parts = re.split(r'\s*[;|,]\s*|(?<=\d)\s+(?=\d)', row.label.strip('[](){} '))
        several = len({*parts}) > 1 and row.label not in (names or ())
        if several and (labels.issuperset(parts) or all(map(_is_number, parts))):
            raise BvtamError(
                f'{row.where}: {row.label!r} names several classes, and a video, or a part of one '
                '(start,end), has one label: data sets of several labels each are not taken'
            )


def _label_reader(names: list[str] | None, texts: set[str]) -> Any:
    """A function from a row to the index of its label; `texts`: the labels of all rows."""
    index = {name: i for i, name in enumerate(names or [])}
    for name, i in list(index.items()):
        index.setdefault(_plain(name), i)
    if names and all(map(_is_number, (*names, *texts))):  # 7 may be written 007
        index |= {_plain_number(name): i for name, i in index.items()}
        index |= {
            text: index[_plain_number(text)] for text in texts if _plain_number(text) in index
        }
    if all(map(_is_number, texts)) and not texts <= set(index):
        index = {}  # numbers are indices, also where some of them are names of classes as well

    def label_of(row: _Row) -> int:
        text = row.label
        if not text:
            return -1
        if text in index:
            return index[text]
        if not _is_number(text):
            raise BvtamError(f'{row.where}: unknown label {text!r}{nearest(text, index)}')
        label = int(text)
        if label < 0 or (names is not None and label >= len(names)):
            most = f'to {len(names) - 1}' if names is not None else 'up'
            raise BvtamError(f'{row.where}: label {label} is out of range, from 0 {most}')
        return label

    return label_of


class _Files:
    """Finds videos in a folder; each folder in it is listed once, since asking for each file of a
    large data set takes minutes on a network drive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, tuple[str, dict[str, tuple[str, bool]]]] = {}

    def find(self, places: Iterable[str]) -> tuple[str, bool] | None:
        """The first that is there, and whether it is a folder."""
        for place in places:
            if is_url(place):
                return place, False
            head, name = os.path.split(place.rstrip('/'))
            if head not in self.folders:
                folder = os.path.normpath(self.root / head)
                self.folders[head] = folder, self._list(folder)
            folder, entries = self.folders[head]
            if name in entries:
                name, is_folder = entries[name]
                return os.path.join(folder, name), is_folder
        return None

    @staticmethod
    def _list(folder: str) -> dict[str, tuple[str, bool]]:
        """Entries by their name, videos also by their name without its ending."""
        try:
            with os.scandir(folder) as entries:
                found = {entry.name: (entry.name, entry.is_dir()) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise BvtamError(f'{folder} cannot be read: {error.strerror}') from None
        for name in sorted(found):
            stem, ending = os.path.splitext(name)
            if ending.lower() in VIDEO_SUFFIXES:
                found.setdefault(stem, (name, False))
        return found


def _text(path: Path) -> list[tuple[str, str]]:
    """Lines that are not blank, each with its place for messages."""
    try:
        lines = read_text(path, 'utf-8-sig').split('\n')
    except UnicodeDecodeError:
        raise BvtamError(
            f'{path} is not UTF-8 text; give a folder, a list or annotations'
        ) from None
    except OSError as error:
        raise BvtamError(f'{path} cannot be read: {error.strerror}') from None
    found = [(f'{path}, line {n}', text.strip()) for n, text in enumerate(lines, 1) if text.strip()]
    if not found:
        raise BvtamError(f'{path} is empty')
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads('\n'.join(text for _, text in _text(path)))
    except ValueError as error:
        raise BvtamError(f'{path} is not JSON: {error}') from None


def _header(line: str) -> tuple[list[str], str]:
    """The columns that a first line names, by the names that `_table` has for them, and what parts
    them; no header has the column 'video' or 'youtube_id'."""
    for sep in (',', ';', '\t'):
        cells = [cell.strip(' "').lower() for cell in line.split(sep)]
        known = 'youtube_id' in cells or any(cell in _COLUMNS['video'] for cell in cells)
        if known and (len(cells) > 1 or cells == ['video']):
            for name, others in _COLUMNS.items():
                found = next((other for other in others if other in cells), name)
                cells = [name if cell == found else cell for cell in cells]
            return cells, sep
    return [], ','


def _cells(where: str, text: str, sep: str = ',') -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=sep, strict=True))]
    except csv.Error as error:
        raise BvtamError(f'{where}: {error}') from None


def _dicts(
    header: list[str], lines: Iterable[tuple[str, str]], sep: str
) -> Iterator[tuple[str, dict[str, str]]]:
    for where, text in lines:
        cells = _cells(where, text, sep)
        if len(cells) != len(header):
            raise BvtamError(
                f'{where} has {len(cells)} columns, but the header {len(header)}: {",".join(header)}'
            )
        yield where, dict(zip(header, cells, strict=True))


def _table(where: str, row: dict[str, str]) -> _Row:
    """A line of a CSV file whose header names a video."""
    if not row['video']:
        raise BvtamError(f'{where} names no video')
    first, last = (_number(where, name, row.get(name, ''), int) for name in ('first', 'last'))
    start, end = (_number(where, name, row.get(name, ''), float) for name in ('start', 'end'))
    for name, low, high in (('last', first, last), ('end', start, end)):
        if low is not None and high is not None and high < low:
            raise BvtamError(f'{where}: {name} {high} lies before {low}')
    fps = _number(where, 'fps', row.get('fps', ''), float)
    if fps == 0:
        raise BvtamError(f'{where}: fps must be above 0')
    split = _split(where, row['split']) if 'split' in row else ''
    label = row.get('label', '')
    return _Row(where, [row['video']], label, first, last, start, end, split, fps=fps)


def _kinetics(where: str, row: dict[str, str]) -> _Row:
    key, label, part = row['youtube_id'], row.get('label', ''), row.get('split', '')
    start, end = (
        _number(where, f'time_{x}', row.get(f'time_{x}', ''), float) for x in ('start', 'end')
    )
    files = [key]
    if start is not None and end is not None:
        files = [f'{key}_{int(start):06d}_{int(end):06d}', key]
    split = _split(where, part) if part else ''
    return _Row(where, files, label, split=split, folders=_kinetics_folders(label, part, split))


@cache  # for its memory: few results for many lines
def _kinetics_folders(label: str, *parts: str) -> tuple[str, ...]:
    labels = ('', label, label.replace(' ', '_'))
    return tuple(dict.fromkeys(os.path.join(part, x) for part in ('', *parts) for x in labels))


def _plain_lines(lines: Sequence[tuple[str, str]]) -> Iterator[_Row]:
    """A list without a header, whose first line tells which columns it has."""
    where, text = lines[0]
    words = text.split()
    numbers = next((i for i, w in enumerate(words[::-1]) if not _is_number(w)), len(words))
    sep, columns = None, min(numbers, 3, len(words) - 1) + 1
    if ';' in text:
        sep = ';'
    elif columns == 1 and ',' in text:
        sep = ','
    elif columns == 1 and len(words) == 2:
        columns = 2

    def split(where: str, text: str) -> list[str]:
        if sep is None:
            return text.rsplit(None, columns - 1)
        return _cells(where, text) if sep == ',' else [cell.strip() for cell in text.split(';')]

    columns = len(split(where, text))
    counted = sep != ',' and columns in (3, 4) and all(map(_is_number, split(where, text)[1:-1]))
    folders = ('', 'training', 'validation') if sep == ',' else ('',)  # of Moments in Time
    for where, text in lines:
        cells = split(where, text)
        if len(cells) != columns:
            raise BvtamError(f'{where} has {len(cells)} columns, but the first line {columns}')
        first = last = count = None
        if not cells[0]:
            raise BvtamError(f'{where} names no video')
        if counted:
            bounds = [_number(where, 'frame number', cell, int) for cell in cells[1:-1]]
            if columns == 3:
                (count,) = bounds
            else:
                first, last = bounds
                if last < first:
                    raise BvtamError(f'{where}: last frame {last} lies before {first}')
        label = cells[-1] if counted else cells[1] if columns > 1 else ''
        yield _Row(where, cells[:1], label, first, last, num_frames=count, folders=folders)


def _something_json(path: Path) -> Iterator[_Row]:
    entries = _json(path)
    if not isinstance(entries, list):
        raise BvtamError(f'{path} is no list of {{id, template}} as of Something-Something')
    for number, entry in enumerate(entries, 1):
        where = f'{path}, entry {number}'
        if not isinstance(entry, dict) or not isinstance(entry.get('id'), (str, int)):
            raise BvtamError(f'{where} has no id')
        label = entry.get('template', entry.get('label', ''))
        if not isinstance(label, str):
            raise BvtamError(f'{where}: its label is no text; a video has one')
        yield _Row(where, [str(entry['id'])], _plain(label))


def _plain(label: str) -> str:
    """Something-Something's templates mark what was put in for their words by brackets."""
    return label.replace('[', '').replace(']', '')


def _plain_number(text: str) -> str:
    """Without leading zeros."""
    return str(int(text)) if _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r'-?\d+', text) is not None


def _number(where: str, name: str, text: str, kind: type) -> Any:
    """`text` as an int or float, not below 0; None where it is empty."""
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < float('inf'):
        raise BvtamError(f'{where}: {name} must be a number from 0, not {text!r}')
    return value


def _split(where: str, text: str) -> str:
    split = split_name(text)
    if not split:
        raise BvtamError(f'{where}: the split {text!r} is none of {", ".join(SPLITS)}')
    return split
