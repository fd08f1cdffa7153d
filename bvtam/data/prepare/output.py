"""The folder that `prepare` makes: the names of its files, and its lists.

    OUT/prepare.json      every setting that decides what the files hold
    OUT/<as in SRC>       `name.mp4`, or folders `name/00001.jpg ...`
    OUT/list.csv          video, label, of frame folders first and last frame and, where it is known,
                          frames a second, and split, as in SRC
    OUT/list.txt          of frame folders with labels: `folder first last label`, as the authors';
                          where SRC names its parts, a list for each, `train.txt`
    OUT/labels.txt        names of the labels, if they have any, in the order of their numbers
    OUT/errors.csv        video and reason of those that failed

The lists of one split bear its name, `train.csv`.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import BvtamError
from ...files import sync
from ..labels import LABELS
from ..records import Record
from ..video.addresses import is_url

SETTINGS = 'prepare.json'
SCRATCH = '.prepare'  # what is being written


def base_folder(src: Path, root: str | os.PathLike[str] | None, sources: Iterable[str]) -> Path:
    """The folder whose structure is kept: `root`, or else that of the source, if all lies in it."""
    paths = {Path(os.path.abspath(source)) for source in sources if not is_url(source)}
    for folder in (root, src if src.is_dir() else src.parent):
        if folder is not None:
            folder = Path(os.path.abspath(folder))
            if all(folder in path.parents for path in paths):
                return folder
    return Path(os.path.commonpath([path.parent for path in paths] or [Path.cwd()]))


def targets_of(parts: Sequence[Record], base: Path, format: str) -> dict[Record, Path]:
    """The path of each part of a source in the output, relative to `out`.

    Sources that differ in nothing but the ending of their names keep it: `a.avi.mp4`, `a.mov.mp4`.
    """
    ending = '.mp4' if format == 'video' else ''
    ranges = Counter(part.source for part in parts)
    short, full = [], []
    for part in parts:
        if is_url(part.source):
            url = urlsplit(part.source)
            path = Path(*(p for p in (url.netloc + url.path).split('/') if p.strip('.')))
        else:
            path = Path(os.path.relpath(part.source, base))
        name = path.name if os.path.isdir(part.source) else path.stem
        tail = _tail(part, ranges[part.source]) + ending
        short.append(path.with_name(name + tail))
        full.append(path.with_name(path.name + tail))
    taken = _taken(short)
    names = [long if taken[name] > 1 else name for name, long in zip(short, full, strict=True)]
    taken = _taken(names)
    for part, name in zip(parts, names, strict=True):
        if taken[name] > 1:
            raise BvtamError(f'{part.source} would become {name}, as would another; rename it')
    return dict(zip(parts, names, strict=True))


def _taken(names: Sequence[Path]) -> Counter[Path]:
    folders = {folder for name in names for folder in name.parents}
    return Counter([*names, *folders])


def _tail(part: Record, ranges: int) -> str:
    """End of the name, to tell the parts of a source apart; seconds as in the names of Kinetics."""
    if part.start is not None or part.end is not None:
        start, end = part.start or 0.0, part.end
        stamps = (
            'end' if s is None else f'{s:06.0f}' if s % 1 == 0 else f'{s:010.3f}'
            for s in (start, end)
        )
        return ''.join(f'_{stamp}' for stamp in stamps)
    if ranges > 1 or part.first not in (None, 1):
        return f'_{part.first}_{part.num_frames if part.last is None else part.last}'
    return ''


def check_place(out: Path, src: Path, sources: Iterable[str]) -> None:
    source = src.resolve()
    if source.is_dir() and (out == source or source in out.parents):
        raise BvtamError(f'{out} lies in the source {src}; name a folder outside of it')
    folders = {os.path.dirname(os.path.abspath(s)) for s in sources if not is_url(s)}
    for folder in map(Path, map(os.path.realpath, folders)):
        if out == folder or out in folder.parents:
            raise BvtamError(f'{out} holds videos of the source; name another folder')
    foreign = out.is_dir() and any(path.name != SCRATCH for path in out.iterdir())
    if foreign and not (out / SETTINGS).exists():
        raise BvtamError(f'{out} is not empty and has no {SETTINGS}; name another folder')


def write_lists(
    out: Path,
    name: str,
    made: Sequence[tuple[str, int, str, float | None]],
    names: Sequence[str] | None,
    format: str,
) -> Path:
    """The lists of `made`, paths in `out` with labels and parts; the path of the CSV file."""
    frames = format == 'frames'
    spans = [(1, len(os.listdir(out / path))) if frames else () for path, *_ in made]
    has_labels = any(label >= 0 for _, label, _, _ in made)
    has_parts = any(split for _, _, split, _ in made)
    has_rates = frames and any(rate is not None for *_, rate in made)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    columns = {'label': has_labels, 'first': frames, 'last': frames}
    columns |= {'fps': has_rates, 'split': has_parts}
    writer.writerow(['video', *(name for name, wanted in columns.items() if wanted)])
    for (path, label, split, rate), span in zip(made, spans, strict=True):
        fps = '' if rate is None else f'{rate:.10g}'
        cell = '' if label < 0 else label if names is None else names[label]
        writer.writerow(
            [path, *[cell] * has_labels, *span, *[fps] * has_rates, *[split] * has_parts]
        )
    write_text(out, f'{name}.csv', text.getvalue())
    if frames and has_labels:
        apart = ';' if any(' ' in path for path, *_ in made) else ' '
        lines: dict[str, str] = {}
        for (path, label, split, _), span in zip(made, spans, strict=True):
            line = apart.join(map(str, (path, *span, label)))
            lines[split] = f'{lines.get(split, "")}{line}\n'
        for split, content in lines.items():
            write_text(out, f'{split or name}.txt', content)
    if names is not None:
        write_text(out, LABELS, ''.join(f'{label}\n' for label in names))
    return out / f'{name}.csv'


def write_text(out: Path, name: str, text: str) -> None:
    new = out / SCRATCH / name
    new.write_bytes(text.encode('utf-8', 'surrogateescape'))
    sync(new)
    os.replace(new, out / name)
