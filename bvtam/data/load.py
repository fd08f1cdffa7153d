"""A data set as records: class folders or a list, and which of its videos are of which split."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import BvtamError, nearest
from .labels import read_labels
from .list_formats import SPLITS, split_name
from .lists import read_list
from .records import VIDEO_SUFFIXES, Record, find_videos, unreadable, walk
from .video.folders import check_frames
from .video.images import IMAGE_SUFFIXES

log = logging.getLogger('bvtam')


def load_records(
    data: str | os.PathLike[str],
    split: str = '',
    root: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    urls: bool = False,
    frames: str = '',
    fps: float | None = None,
    *,
    images: bool = False,
) -> tuple[list[Record], list[str] | None]:
    """The videos of one part of a data set.

    What `data` may be, where a video is a file or a folder of images:

    =========================================  =====================================================
    folder `train/LABEL/...`, `val/LABEL/...`  class folders with parts (`test/`, with labels or not)
    folder `LABEL/...`                         class folders; `val_share` of each class is 'val'
    folder of videos, or one video             without labels, for `split=''`
    list or annotations                        any of `list_formats.FORMATS`
    =========================================  =====================================================

    A label of a list is a name or a number from 0. Where a list names a video by an id, it is found with
    any ending. Since many videos of Kinetics have vanished, those that are not there are counted in a
    warning; in other lists a missing video is an error.

    Args:
        data: folder, list or annotations.
        split: 'train', 'val', 'test', or '' for all. A data set that does not name its parts has
            'train' and 'val', which are drawn from each class.
        root: folder that the paths of a list start from; None for the folder of the list.
        labels: names in the order of their indices, or a file with them: a line each, lines
            `name,index`, or JSON (a list, or an index for each name). None: the sorted names of the
            class folders, or of the labels in a list unless they are numbers; for Something-Something
            V2 those of a file `*labels.json` beside it, if there is one.
        val_share: share of the videos of each class that is 'val', at least one and not all; 0 for
            none, 1 for all.
        seed: of that draw. It depends on the path of a video in `root` and on nothing else.
        urls: whether the videos of a list may be addresses; those that are opened are of http, https
            and rtsp.
        frames: how the frames of its folders are named, as of `open_video`.
        fps: frames a second of its folders, 25 where it is left out; other videos have times of
            their own.
        images: whether it is a data set of images, not of videos.

    Returns:
        Records, those of folders sorted by label and path, those of lists in their order; and the
        label names, or None for numbers without names.

    Raises:
        BvtamError: a class folder without videos, or with one that cannot be parted; a line that is
            malformed, with a label that is unknown or a video that is missing; no video in the part.
        FileNotFoundError: there is no `data`.
    """
    if split not in ('', *SPLITS):
        raise BvtamError(f'split must be one of {", ".join(SPLITS)} or empty, not {split!r}')
    if not 0 <= val_share <= 1:
        raise BvtamError(f'val_share must be a share from 0 to 1, not {val_share}')
    data = Path(data)
    parts, names = load_parts(data, root, labels, split, images, urls, frames, fps)
    if not split:
        records = [record for part in parts.values() for record in part]
    elif set(parts) == {''}:
        base = data if data.is_dir() else root if root is not None else data.parent
        records = _draw_split(parts[''], split, names, val_share, seed, Path(base), data)
        if not records and val_share in (0, 1):
            return [], names
    else:
        records = parts.get(split, [])
    if not records and split:
        has = [part for part in SPLITS if parts.get(part)]
        only = f', only of {" and ".join(has)}{_other_parts(has, split)}' if has else ''
        raise BvtamError(f'{data} has no video of the split {split!r}{only}')
    if not records:
        raise BvtamError(f'{data} is empty')
    return records, names


def load_images(
    data: str | os.PathLike[str], split: str = '', **options: Any
) -> tuple[list[Record], list[str] | None]:
    """`load_records` for images: class folders hold image files, and so do lists `video label`."""
    return load_records(data, split, images=True, **options)


def load_parts(
    data: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    split: str = '',
    images: bool = False,
    urls: bool = False,
    frames: str = '',
    fps: float | None = None,
) -> tuple[dict[str, list[Record]], list[str] | None]:
    """The videos of each part that a data set names, of all under '' if it names none.

    As `load_records`, but for `split`: a part without which there is an error; the others may be left out.
    """
    data = Path(data)
    if not data.exists():
        raise FileNotFoundError(f'{data}: no such folder or list of videos')
    names = read_labels(labels) if labels is not None else None
    if data.is_dir():
        parts, names = _class_folders(data, split, names, images)
    elif data.suffix.lower() in VIDEO_SUFFIXES:
        parts = {'': [Record(str(data))]}
    else:
        base = Path(root) if root is not None else data.parent
        parts, names = read_list(data, base, names, urls)
    found = [record for records in parts.values() for record in records]
    told = iter(with_frames(found, frames, fps))
    return {part: list(islice(told, len(records))) for part, records in parts.items()}, names


def with_frames(records: Sequence[Record], frames: str, fps: float | None) -> list[Record]:
    """The records, with these names and rate of the frames of folders, where they are given.

    Raises:
        BvtamError: they are given, but no record is a folder.
    """
    check_frames(frames, fps, (record.source for record in records))
    given = {'frames': frames} if frames else {}
    given |= {'fps': fps} if fps is not None else {}
    return [replace(record, **given) for record in records] if given else list(records)


def _class_folders(
    data: Path, split: str, names: list[str] | None, images: bool
) -> tuple[dict[str, list[Record]], list[str] | None]:
    """The records of each part, under '' where parts are not named, and the label names."""
    folders = _subfolders(data)
    named = {}
    for folder in folders:
        part = split_name(folder.name)
        if part and part in named:
            raise BvtamError(f'{named[part]} and {folder.name} mean the same: keep one of the two')
        if part:
            named[part] = folder
    others = [folder for folder in folders if folder not in named.values()]
    if not named or (others and not ('train' in named and len(named) > 1)):
        named, others = {'': data}, []
    elif split and split not in named:
        raise BvtamError(
            f'{data} has no folder {split}, only {", ".join(sorted(named))}{_other_parts(named, split)}'
        )
    classes = {part: _subfolders(folder) for part, folder in named.items()}
    flat = '' in named and not images and all(_holds(f, IMAGE_SUFFIXES) for f in folders)
    if flat and not split:
        return {'': [Record(video) for video in find_videos([data])]}, names
    if names is None:
        names = sorted({f.name for part in classes if part != 'test' for f in classes[part]})
    index = {name: label for label, name in enumerate(names)}
    suffixes, kind = (IMAGE_SUFFIXES, 'image') if images else (VIDEO_SUFFIXES, 'video')

    parts: dict[str, list[Record]] = {}
    left: list[str] = [os.path.join(folder, '') for folder in others]
    for part in sorted(named, key=('', *SPLITS).index):
        if split and part and part != split:
            continue
        if part == 'test' and not classes[part]:  # its labels may be secret
            parts[part] = [Record(source) for source in walk(named[part], suffixes, images)]
            continue
        if not classes[part]:
            raise BvtamError(
                f'{named[part]} holds no class folders: LABEL/{kind}, one folder a class'
            )
        if _holds(named[part], suffixes):
            raise BvtamError(
                f'{named[part]} holds {kind}s beside class folders: move them into one'
            )
        parts[part] = []
        for folder in classes[part]:
            if folder.name not in index:
                raise BvtamError(
                    f'{folder} is none of the {len(names)} labels{nearest(folder.name, names)}'
                )
            found = walk(folder, suffixes, images, left)
            if not found:
                raise BvtamError(f'the class folder {folder} holds no {kind}: fill or remove it')
            if found == [str(folder)]:
                raise BvtamError(
                    f'the class folder {folder} holds images: make a folder of them for each video'
                )
            parts[part] += [Record(source, index[folder.name]) for source in found]
    if left:
        log.warning(
            '%s: %d files and folders are left out, as their names are of no %s and no part; the '
            'first is %s',
            data,
            len(left),
            kind,
            left[0],
        )
    return parts, names


def _other_parts(named: Iterable[str], split: str) -> str:
    """Advice for a data set that lacks a part."""
    if {*named} == {'train', 'test'} and split == 'val':
        return '; rename test to val, or hold some of train out: give the part train alone as the data set'
    if {*named} == {'train'}:
        return '; give the part train alone as the data set, of which some is held out then'
    return f'; name {split} so, or choose another split'


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith('.'))
    except OSError as error:
        raise unreadable(error) from None


def _holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    names = (f.name for f in folder.iterdir())
    return any(name.lower().endswith(suffixes) and name[0] != '.' for name in names)


def _draw_split(
    records: Sequence[Record],
    split: str,
    names: Sequence[str] | None,
    val_share: float,
    seed: int,
    base: Path,
    data: Path,
) -> list[Record]:
    """The records of 'train' or 'val', in their order; parts of one video of a class stay together."""
    if split == 'test':
        raise BvtamError(f'{data} does not name its parts: it has a train and a val split, no test')
    if val_share in (0, 1):
        return list(records) if (split == 'val') == bool(val_share) else []
    classes: dict[int, set[str]] = defaultdict(set)
    for record in records:
        classes[record.label].add(record.source)

    def draw(source: str) -> bytes:
        return blake2b(f'{seed},{source.removeprefix(prefix)}'.encode()).digest()

    in_val, prefix = set(), os.path.join(base, '')
    for label, sources in classes.items():
        if len(sources) < 2:
            if label < 0:
                raise BvtamError(f'{sources.pop()} has no label: give it one, or leave it out')
            name = repr(names[label]) if names else label
            raise BvtamError(
                f'{data}: the class {name} has one video, too few for a train and a val split; add '
                'another, or name the two sets by themselves'
            )
        count = min(max(1, round(val_share * len(sources))), len(sources) - 1)
        in_val |= {(label, source) for source in sorted(sources, key=draw)[:count]}
    return [r for r in records if ((r.label, r.source) in in_val) == (split == 'val')]
