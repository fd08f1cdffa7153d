"""Formats of lists and annotations: from a file to what each of its lines says about a video.

To add one, write a function here that makes rows of a file, and register it with the way to recognise
such a file:

    @list_format('reversed', 'lines `label: video`', lambda file: ': ' in file.lines[0][1])
    def _reversed(file: ListFile) -> Iterator[Row]:
        for where, text in file.lines:
            label, colon, video = text.partition(': ')
            if not colon:
                raise BvtamError(f'{where}: expected `label: video`, not {text!r}')
            yield Row(where, [video], label)

Every command reads it then. Of the formats that recognise a file the one registered last counts: general
ones come first here. `FORMATS` is what messages, `--help` and the documentation list.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BvtamError
from ..files import read_text

SPLITS = ('train', 'val', 'test')
_SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{'training': 'train', 'testing': 'test'},
    **dict.fromkeys(('valid', 'validate', 'validation'), 'val'),
}
# Headers of a CSV file that mean the same, the likeliest first.
_COLUMNS = {
    'video': [
        'video',
        'video_path',
        'path',
        'filename',
        'file',
        'file_name',
        'file_path',
        'filepath',
        'video_name',
    ],
    'label': [
        'label',
        'class',
        'label_name',
        'class_name',
        'category',
        'action',
        'label_id',
        'class_id',
        'target',
    ],
}


class Row(NamedTuple):
    """One line of a list: a video, or a part of one, and what is said about it.

    Attributes:
        where: file and line, for messages.
        files: names that the video may have, the likeliest first; without their ending too.
        label: a name, or a number from 0; '' where there is none.
        first, last: numbers of the first and last image of a folder.
        start, end: seconds.
        split: 'train', 'val', 'test' or ''.
        num_frames: images of a folder.
        folders: in which the video may be, the likeliest first.
        fps: images a second of a folder.
    """

    where: str
    files: list[str]
    label: str = ''
    first: int | None = None
    last: int | None = None
    start: float | None = None
    end: float | None = None
    split: str = ''
    num_frames: int | None = None
    folders: tuple[str, ...] = ('',)
    fps: float | None = None


class ListFile:
    """A file to recognise and to read; what is wrong in it is a `BvtamError` that names the line."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_json = path, path.suffix.lower() == '.json'

    @cached_property
    def lines(self) -> list[tuple[str, str]]:
        """Lines that are not blank, each with its place for messages."""
        return read_lines(self.path)

    @cached_property
    def json(self) -> Any:
        return read_json(self.path)

    @cached_property
    def _header(self) -> tuple[list[str], str]:
        for sep in (',', ';', '\t'):
            cells = [cell.strip(' "').lower() for cell in self.lines[0][1].split(sep)]
            known = {'youtube_id', *_COLUMNS['video']}.intersection(cells)
            if known and (len(cells) > 1 or cells == ['video']):
                for name, others in _COLUMNS.items():
                    found = next((other for other in others if other in cells), name)
                    cells = [name if cell == found else cell for cell in cells]
                return cells, sep
        return [], ','

    @property
    def header(self) -> list[str]:
        """Columns that the first line names, in lower case, with 'video' and 'label' for all that mean
        the same; none where it has neither a 'video' nor a 'youtube_id'."""
        return self._header[0]

    def dicts(self) -> Iterator[tuple[str, dict[str, str]]]:
        """The lines below the header: place, and cells by the names of their columns."""
        header, sep = self._header
        for where, text in self.lines[1:]:
            cells = _cells(where, text, sep)
            if len(cells) != len(header):
                raise BvtamError(
                    f'{where} has {len(cells)} columns, but the header {len(header)}: '
                    f'{",".join(header)}'
                )
            yield where, dict(zip(header, cells, strict=True))

    @cached_property
    def separator(self) -> str | None:
        """';' or ',' of a file without a header, None for spaces."""
        text = self.lines[0][1]
        if ';' in text:
            return ';'
        *others, last = text.split()
        return ',' if ',' in text and not (others and is_number(last)) else None

    @cached_property
    def _spaces(self) -> int:
        """How many spaces part columns, counted from the right: names of videos may have spaces."""
        words = self.lines[0][1].split()
        numbers = sum(1 for _ in takewhile(is_number, reversed(words)))
        return 1 if len(words) == 2 else min(numbers, 3, len(words) - 1)

    @cached_property
    def numbers(self) -> int:
        """How many numbers the first line of a file without a header has between video and label."""
        _, *between = self._split(*self.lines[0])
        counted = len(between) in (2, 3) and all(map(is_number, between[:-1]))
        return len(between) - 1 if counted and self.separator != ',' else 0

    def _split(self, where: str, text: str) -> list[str]:
        if self.separator is None:
            return text.rsplit(None, self._spaces)
        if self.separator == ',':
            return _cells(where, text)
        return [cell.strip() for cell in text.split(';')]

    def cells(self) -> Iterator[tuple[str, list[str]]]:
        """The lines of a file without a header: place and cells, of which the first is not empty."""
        columns = len(self._split(*self.lines[0]))
        for where, text in self.lines:
            cells = self._split(where, text)
            if len(cells) != columns:
                raise BvtamError(f'{where} has {len(cells)} columns, but the first line {columns}')
            if not cells[0]:
                raise BvtamError(f'{where} names no video')
            yield where, cells


Rows = Callable[[ListFile], Iterable[Row]]


class ListFormat(NamedTuple):
    """How one kind of list is recognised and read; see `list_format`."""

    name: str
    shape: str
    recognises: Callable[[ListFile], bool]
    rows: Rows
    json: bool
    may_lack: bool
    labels: str


FORMATS: list[ListFormat] = []


def list_format(
    name: str,
    shape: str,
    recognises: Callable[[ListFile], bool],
    *,
    json: bool = False,
    may_lack: bool = False,
    labels: str = '',
) -> Callable[[Rows], Rows]:
    """Registers a function from a file to its rows as one more format that every command reads.

    Args:
        name: of the format.
        shape: how it looks, in a few words.
        recognises: whether a file is of this format.
        json: whether such files are JSON, called `.json`; others are lines of text.
        may_lack: whether videos may be missing, with a warning: of public data sets, some vanish.
        labels: pattern of the file beside the list that names its labels, if there is one.
    """

    def register(rows: Rows) -> Rows:
        FORMATS.append(ListFormat(name, shape, recognises, rows, json, may_lack, labels))
        return rows

    return register


def format_of(file: ListFile) -> ListFormat:
    """The format that was registered last of those that recognise the file.

    Raises:
        BvtamError: there is none.
    """
    for form in reversed(FORMATS):
        if form.json == file.is_json and form.recognises(file):
            return form
    raise BvtamError(f'{file.path} is no list of a known format; known are {"; ".join(formats())}')


def formats() -> list[str]:
    """The formats in words, one each."""
    return [f'{form.name}: {form.shape}' for form in FORMATS]


@list_format(
    'lines',
    '`video label` or `video`, also with `;` (Something-Something V1: `id;label`)',
    lambda file: True,
)
def _lines(file: ListFile) -> Iterator[Row]:
    for where, cells in file.cells():
        yield Row(where, cells[:1], cells[1] if len(cells) > 1 else '')


@list_format(
    'CSV without header',
    '`video,label`, more columns ignored (Moments in Time)',
    lambda file: file.separator == ',',
)
def _moments(file: ListFile) -> Iterator[Row]:
    for row in _lines(file):
        yield row._replace(folders=('', 'training', 'validation'))


@list_format(
    'TSN lines',
    '`folder num_frames label`, also with `;`',
    lambda file: file.numbers == 1,
)
def _tsn(file: ListFile) -> Iterator[Row]:
    for where, (video, count, label) in file.cells():
        yield Row(where, [video], label, num_frames=_number(where, 'frame number', count, int))


@list_format(
    "authors' lines",
    '`folder first last label`, also with `;`',
    lambda file: file.numbers == 2,
)
def _authors(file: ListFile) -> Iterator[Row]:
    for where, (video, *bounds, label) in file.cells():
        first, last = (_number(where, 'frame number', bound, int) for bound in bounds)
        if last < first:
            raise BvtamError(f'{where}: last frame {last} lies before {first}')
        yield Row(where, [video], label, first, last)


@list_format(
    'CSV',
    'header with `video` (or `path`, `filename`, `file`, ...) and, where wanted, `label` (or `class`, '
    '`label_name`, `class_name`, ...), `start,end` in seconds, `first,last` image, `fps`, `split`',
    lambda file: 'video' in file.header,
)
def _table(file: ListFile) -> Iterator[Row]:
    for where, row in file.dicts():
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
        yield Row(where, [row['video']], label, first, last, start, end, split, fps=fps)


@list_format(
    'Kinetics',
    'CSV with the header `label,youtube_id,time_start,time_end,split`; videos are cut to length and '
    'called `ID_000010_000020` or `ID`, also in folders named by label, split or both',
    lambda file: 'youtube_id' in file.header,
    may_lack=True,
)
def _kinetics(file: ListFile) -> Iterator[Row]:
    for where, row in file.dicts():
        key, label, part = row['youtube_id'], row.get('label', ''), row.get('split', '')
        start, end = (
            _number(where, f'time_{x}', row.get(f'time_{x}', ''), float) for x in ('start', 'end')
        )
        files = [key]
        if start is not None and end is not None:
            files = [f'{key}_{int(start):06d}_{int(end):06d}', key]
        split = _split(where, part) if part else ''
        yield Row(where, files, label, split=split, folders=_kinetics_folders(label, part, split))


@cache  # for its memory: few results for many lines
def _kinetics_folders(label: str, *parts: str) -> tuple[str, ...]:
    labels = ('', label, label.replace(' ', '_'))
    return tuple(dict.fromkeys(os.path.join(part, x) for part in ('', *parts) for x in labels))


@list_format(
    'Something-Something V2',
    'JSON list of `{id, template}`',
    lambda file: isinstance(file.json, list),
    json=True,
    labels='*labels.json',
)
def _something(file: ListFile) -> Iterator[Row]:
    for number, entry in enumerate(file.json, 1):
        where = f'{file.path}, entry {number}'
        if not isinstance(entry, dict) or not isinstance(entry.get('id'), (str, int)):
            raise BvtamError(f'{where} has no id')
        label = entry.get('template', entry.get('label', ''))
        if not isinstance(label, str):
            raise BvtamError(f'{where}: its label is no text; a video has one')
        yield Row(where, [str(entry['id'])], without_brackets(label))


def read_lines(path: Path) -> list[tuple[str, str]]:
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


def read_json(path: Path) -> Any:
    try:
        return json.loads('\n'.join(text for _, text in read_lines(path)))
    except ValueError as error:
        raise BvtamError(f'{path} is not JSON: {error}') from None


def split_name(text: str) -> str:
    """'train', 'val' or 'test' for the names that data sets have for them, '' for others."""
    return _SPLIT_NAMES.get(text.strip().lower(), '')


def without_brackets(label: str) -> str:
    """Something-Something's templates mark what was put in for their words by brackets."""
    return label.replace('[', '').replace(']', '')


def is_number(text: str) -> bool:
    return re.fullmatch(r'-?\d+', text) is not None


def _cells(where: str, text: str, sep: str = ',') -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=sep, strict=True))]
    except csv.Error as error:
        raise BvtamError(f'{where}: {error}') from None


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
