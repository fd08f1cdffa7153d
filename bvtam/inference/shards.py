"""Embeddings on disk: a folder of shards, each whole or not there, that any number of processes fill.

    OUT/extract.json                          every setting that decides what the shards hold
    OUT/shard-00000-of-00004.safetensors      (or .parquet) of videos 0 to shard_size - 1, and so on
    OUT/errors.csv                            video, reason, shard of the videos that failed

A safetensors shard has one row an embedding, in the order of the videos:

    features (N, D)   float32 or float16
    frames   (N, F)   int64, the frames of the video that the embedding was made from
    times    (N, F)   float64, when they are shown, in seconds from the first frame of the video
    video    (N,)     int64, place of its video in the list of names of the shard

and in its metadata, under 'shard', the JSON text `{"videos": [names of all videos of the shard],
"rows": [embeddings of each], "failed": {name: reason}}`. A Parquet shard has the same columns, with the name of the video in
`video`, and the same metadata.

The shards are the only record of what is done. A shard gets its name when it is complete and on
disk, so a process killed at any moment leaves no half of one; `errors.csv` is made from them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BvtamError
from ..files import open_regular, read_text
from ..optional import library

_LARGEST = 100_000_000  # videos of an extraction
_PARQUET = 'parquet', "format='parquet'"  # the extra, and what needs it
FORMATS = ('safetensors', 'parquet')
SETTINGS, ERRORS = 'extract.json', 'errors.csv'
_TEMPORARY = '.tmp'


class Embeddings(NamedTuple):
    """The rows of one video: `features` (R, D), `frames` and `times` (R, F); R = 0 if it failed."""

    video: str
    features: Tensor
    frames: Tensor
    times: Tensor


class ShardFolder:
    """The folder of one extraction, new or with some of its shards.

    Args:
        folder: made if it is not there.
        settings: plain values, among them 'format', 'num_videos' and 'shard_size'.
        resume: go on in a folder that has been begun.

    Raises:
        BvtamError: the folder holds other things, or was made with other settings, or was begun and
            `resume` is False; a damaged shard.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: dict[str, Any], resume: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings, default=str))
        self._known: dict[Path, dict[str, Any]] = {}
        if settings['format'] == 'parquet':
            library('pyarrow.parquet', *_PARQUET)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f'.*{_TEMPORARY}'):
            path.unlink(missing_ok=True)  # of a killed process; a live one writes again
        path = self.folder / SETTINGS
        if path.exists():
            if not resume:
                raise BvtamError(f'{path} is there: name a new folder, or let it resume')
            self._check()
            return
        # Another process may be writing the settings, under a temporary name, at this moment.
        if any(p.suffix != _TEMPORARY and p.name != SETTINGS for p in self.folder.iterdir()):
            raise BvtamError(
                f'{self.folder} holds other files and no {SETTINGS}: name a new folder'
            )
        _write(path, (json.dumps(self.settings, indent=2) + '\n').encode())

    def _check(self) -> None:
        found = _read_settings(self.folder)
        found['prefix'] = found.get('prefix')
        if isinstance(found.get('clip'), dict):  # of earlier versions
            found['clip'] = {'colors': 'tagged', **found['clip']}
        self.settings['prefix'] = found['prefix']  # how the first run spelled where the videos are
        for key in [*self.settings, *found]:
            theirs, ours = found.get(key), self.settings.get(key)
            if theirs != ours:
                raise BvtamError(
                    f'{self.folder} was made with {key} {theirs!r}, not {ours!r}: '
                    'name a new folder, or give the same settings'
                )

    def path(self, k: int) -> Path:
        """Where shard `k` is or will be."""
        return _path(self.folder, self.settings, k)

    def write(
        self, k: int, tensors: dict[str, Tensor], videos: list[str], failed: dict[str, str]
    ) -> None:
        """Shard `k`, with all that belongs to it, at once; then `errors.csv` anew."""
        self._check()  # of two runs that began at the same moment, one goes no further
        rows = torch.bincount(tensors['video'], minlength=len(videos)).tolist()
        text = json.dumps({'videos': videos, 'rows': rows, 'failed': failed})
        to_bytes = _to_parquet if self.settings['format'] == 'parquet' else _to_safetensors
        _write(self.path(k), to_bytes(tensors, videos, text))
        self.write_errors()

    def done(self) -> dict[Path, dict[str, Any]]:
        """What each shard that is there says of itself: 'videos', 'rows' and 'failed'."""
        paths = (self.path(k) for k in range(_num_shards(self.settings)))
        # A shard never changes, so its head is read once.
        self._known = {
            path: self._known.get(path) or _head(path) for path in paths if path.exists()
        }
        return self._known

    def write_errors(self, more: dict[str, str] | None = None) -> None:
        """`errors.csv` from the shards, and `more` failures that may not be in one yet."""
        path, before = self.folder / ERRORS, None
        # Another process may finish a shard, and list its failures, in between.
        while before != (before := self.done()):
            rows = {
                video: (video, reason, shard.name)
                for shard, head in before.items()
                for video, reason in head['failed'].items()
            }
            for video, reason in (more or {}).items():
                rows.setdefault(video, (video, reason, ''))
            if not rows:
                path.unlink(missing_ok=True)
                continue
            text = io.StringIO()
            csv.writer(text).writerows([('video', 'reason', 'shard'), *rows.values()])
            _write(path, text.getvalue().encode(errors='surrogateescape'))


def iter_features(folder: str | os.PathLike[str], partial: bool = False) -> Iterator[Embeddings]:
    """The embeddings of an extraction, video by video in their order; one shard is in memory.

    Args:
        folder: what `extract` wrote, in either format.
        partial: take the shards that are there, where the extraction has not ended.

    Raises:
        FileNotFoundError: `folder` is not there, or no extraction.
        BvtamError: a shard is missing or damaged.
    """
    settings = _read_settings(Path(folder))
    paths = [_path(Path(folder), settings, k) for k in range(_num_shards(settings))]
    there = [path for path in paths if path.exists()]
    if len(there) < len(paths) and not partial:
        raise BvtamError(
            f'{folder} has {len(there)} of its {len(paths)} shards: run the same extraction again '
            'to complete it, or read what is there with partial=True'
        )
    for path in there:
        head, tensors = _head(path), _tensors(path)
        try:
            parts = [tensors[key].split(head['rows']) for key in ('features', 'frames', 'times')]
        except (LookupError, RuntimeError) as error:
            raise _damaged(path, error) from None
        yield from map(Embeddings, head['videos'], *parts)


def load_features(folder: str | os.PathLike[str], partial: bool = False) -> dict[str, Embeddings]:
    """All embeddings of an extraction by video, in memory; arguments and errors of `iter_features`."""
    return {rows.video: rows for rows in iter_features(folder, partial)}


def _num_shards(settings: dict[str, Any]) -> int:
    return -(-settings['num_videos'] // settings['shard_size'])


def _path(folder: Path, settings: dict[str, Any], k: int) -> Path:
    return folder / f'shard-{k:05}-of-{_num_shards(settings):05}.{settings["format"]}'


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; `bvtam extract` writes it')
    try:
        settings = json.loads(read_text(path))
        counts = [settings[key] for key in ('num_videos', 'shard_size')]
        if not all(type(n) is int and 0 <= n <= _LARGEST for n in counts) or not counts[1]:
            raise ValueError
        if settings['format'] not in FORMATS or not isinstance(settings.get('prefix'), str | None):
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise BvtamError(f'{path} is damaged: remove the folder and extract again') from None
    return settings


def _write(path: Path, data: bytes) -> None:
    """`path` with `data`, on disk before it has its name."""
    while True:
        temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}{_TEMPORARY}')
        try:
            with temporary.open('wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            return
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            # Else a process that started just now took it for a leftover.
        except OSError as error:
            raise BvtamError(f'{path} cannot be written: {error.strerror}') from None
        finally:
            temporary.unlink(missing_ok=True)


def _to_safetensors(tensors: dict[str, Tensor], _videos: list[str], text: str) -> bytes:
    # One key: safetensors writes several in any order, and equal shards shall be equal files.
    # Not `save_file`, which has temporary files of its own.
    return safetensors.torch.save(tensors, metadata={'shard': text})


def _to_parquet(tensors: dict[str, Tensor], videos: list[str], text: str) -> bytes:
    pa, parquet = library('pyarrow', *_PARQUET), library('pyarrow.parquet', *_PARQUET)
    names = [name.encode(errors='replace').decode() for name in videos]
    columns = {'video': pa.array([names[i] for i in tensors['video'].tolist()], pa.string())}
    for key in ('features', 'frames', 'times'):
        values = pa.array(tensors[key].flatten().numpy())
        columns[key] = pa.FixedSizeListArray.from_arrays(values, tensors[key].shape[1])
    table = pa.table(columns).replace_schema_metadata({'shard': text})
    parquet.write_table(table, buffer := io.BytesIO())
    return buffer.getvalue()


def _head(path: Path) -> dict[str, Any]:
    """What a shard says of itself, without its rows."""
    try:
        open_regular(path).close()
        if path.suffix == '.parquet':
            text = library('pyarrow.parquet', *_PARQUET).read_metadata(path).metadata[b'shard']
        else:
            with safe_open(path, 'pt') as file:
                text = file.metadata()['shard']
        head = json.loads(text)
        videos, rows, failed = (head[key] for key in ('videos', 'rows', 'failed'))
        fits = isinstance(videos, list) and isinstance(rows, list) and isinstance(failed, dict)
        if not fits or len(videos) != len(rows):
            raise ValueError('its videos, rows and failures do not fit together')
        if any(type(n) is not int or n < 0 for n in rows):
            raise ValueError('its numbers of rows are none')
        if not all(isinstance(name, str) for name in (*videos, *failed, *failed.values())):
            raise ValueError('its names are no text')
        return head
    except PermissionError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix != '.parquet':
            return safetensors.torch.load_file(path)
        columns = ['features', 'frames', 'times']
        table = library('pyarrow.parquet', *_PARQUET).read_table(path, columns=columns)
        return {
            key: torch.tensor(table[key].combine_chunks().flatten().to_numpy()).view(
                len(table), table.schema.field(key).type.list_size
            )
            for key in table.column_names
        }
    except _DAMAGE as error:
        raise _damaged(path, error) from None


# RecursionError is a RuntimeError.
_DAMAGE = BvtamError, SafetensorError, ValueError, LookupError, TypeError, OSError, RuntimeError


def _damaged(path: Path, error: Exception) -> BvtamError:
    return BvtamError(f'{path} is damaged ({error}): delete it and run the same extraction again')
