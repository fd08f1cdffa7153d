"""Records of the videos that a list or annotations name: each is found on disk, its label is checked.

How the lines of each kind of list are understood is in `list_formats.py`.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ..errors import BvtamError
from .labels import LABELS, check_single, label_index, read_labels
from .list_formats import ListFile, format_of, is_number
from .records import VIDEO_SUFFIXES, Record
from .video.addresses import PROTOCOLS, check_protocol, is_url

log = logging.getLogger('bvtam')


def read_list(
    path: Path, root: Path, names: list[str] | None, urls: bool = False
) -> tuple[dict[str, list[Record]], list[str] | None]:
    """The records of each part, under '' where parts are not named, and the label names.

    `names` are the labels in the order of their indices, None for those of the list; the rest is as of
    `load_records`.

    Raises:
        BvtamError: a line that cannot be understood, whose video is missing, or an address.
    """
    file = ListFile(path)
    form = format_of(file)
    rows = list(form.rows(file))
    if names is None and form.labels:
        beside = sorted(path.parent.glob(form.labels))
        names = read_labels(beside[0]) if len(beside) == 1 else None
    texts = {row.label for row in rows if row.label}
    check_single(rows, names)
    if names is None and not all(map(is_number, texts)):
        names = sorted(texts)
    elif names is None and texts and path.with_name(LABELS).exists():  # as `prepare` writes them
        beside = read_labels(path.with_name(LABELS))
        names = beside if texts <= set(beside) else None
    label_of, files = label_index(names, texts), _Files(root)

    parts: dict[str, list[Record]] = defaultdict(list)
    missing = []
    for row in rows:
        found = files.find(os.path.join(x, file) for file in row.files for x in row.folders)
        if found is None:
            if not form.may_lack:
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
