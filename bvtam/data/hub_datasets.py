"""Data sets of other libraries, `datasets` and `webdataset`, with the samples of `VideoDataset`."""

from __future__ import annotations

import json
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch.utils.data import IterableDataset

from ..clip import ClipConfig
from ..errors import BvtamError, nearest
from ..optional import library
from .datasets import ClipReader, SampleError, VideoDataset, failure, missing
from .failures import VIDEO_ERRORS, check_policy
from .records import VIDEO_SUFFIXES, Record
from .sampling import sample_seed
from .transforms import TrainTransform, check_channels
from .video.addresses import check_protocol
from .video.memory import shared_number


def from_hub_dataset(
    dataset: Any,
    clip: ClipConfig,
    *,
    video_column: str = 'video',
    label_column: str | None = 'label',
    split: str = 'train',
    urls: bool = False,
    **options: Any,
) -> VideoDataset:
    """The videos of a data set of the Hugging Face Hub, or of any other of the library `datasets`.

    Args:
        dataset: a `datasets.Dataset`, not streamed, or the name of one for `datasets.load_dataset`.
        clip: how frames are chosen and prepared.
        video_column: column of videos; they are read by this package, from their path or bytes.
        label_column: column of class indices; None where there is none.
        split: of a data set that is given by name.
        urls: whether paths in the column may be addresses.
        options: of `VideoDataset`.

    Returns:
        A `VideoDataset`, with `label_names` where the labels are of the type `ClassLabel`, else None.

    Raises:
        BvtamError: no such column, a streamed data set, or the library is missing.
    """
    if isinstance(dataset, (str, os.PathLike)):
        dataset = library('datasets', 'data', 'from_hub_dataset').load_dataset(
            os.fspath(dataset), split=split
        )
    if not hasattr(dataset, '__len__'):
        raise BvtamError('a streamed data set has no length: load it without streaming=True')
    columns = [name for name in (video_column, label_column) if name is not None]
    for name in columns:
        if name not in dataset.column_names:
            near = nearest(name, dataset.column_names)
            raise BvtamError(
                f'the data set has no column {name!r}, only {", ".join(dataset.column_names)}{near}'
            )
    dataset = dataset.select_columns(columns)  # the others would be decoded too
    if hasattr(dataset, 'with_format'):
        dataset = dataset.with_format(None)  # one for training would make tensors of labels
    if getattr(dataset.features[video_column], 'decode', False):
        undecoded = library('datasets', 'data', 'from_hub_dataset').Video(decode=False)
        dataset = dataset.cast_column(video_column, undecoded)
    return _HubVideos(dataset, clip, video_column, label_column, urls, **options)


class _HubVideos(VideoDataset):
    def __init__(
        self,
        table: Any,
        clip: ClipConfig,
        video: str,
        label: str | None,
        urls: bool,
        **options: Any,
    ) -> None:
        super().__init__(range(len(table)), clip, **options)
        self.urls = urls
        self.table, self.video, self.label = table, video, label
        self.label_names = getattr(table.features[label], 'names', None) if label else None

    def _get(self, index: int) -> tuple[Record, bytes | None]:
        row = self.table[index]
        video, label = row[self.video], row[self.label] if self.label else None
        if not isinstance(label, int | None):
            raise SampleError(
                f'the column {self.label!r} holds {label!r}, no class index: encode it with '
                f'class_encode_column({self.label!r})'
            )
        video = {'path': video} if isinstance(video, str) else video or {}
        record = Record(video.get('path') or f'row {index}', -1 if label is None else label)
        if not self.urls and video.get('bytes') is None:
            try:
                check_protocol(record.source, ())
            except BvtamError as error:
                raise SampleError(error) from None
        return record, video.get('bytes')


def webdataset_clips(
    urls: str | Sequence[str],
    clip: ClipConfig,
    *,
    train: TrainTransform | None = None,
    labels: Sequence[str] | None = None,
    shuffle: int = 100,
    offsets: str = 'shared',
    seed: int = 0,
    on_error: str = 'raise',
    time_limit: float = 60.0,
) -> IterableDataset:
    """Clips of the videos in tar files of WebDataset, in a stream.

    A sample of a shard is `KEY.mp4`, or of another ending of a video, with `KEY.cls`, or `KEY.json` with
    a field `label`: an index, or a name of `labels`. Where KEY has dots, what comes before one may name
    the label, too: `KEY.cls` is that of `KEY.left.mp4` and `KEY.right.mp4`, which are two samples. Its
    `index` is a hash of the names of shard and key, and its random draws depend on `seed`, the epoch
    (`set_epoch`) and that.

    The shards are dealt out to the processes of a distributed run and to their `DataLoader` workers:
    have as many as these, or a multiple. Each video comes once in an epoch.

    Args:
        urls: of shards, with braces (`shards/{000..099}.tar`) or as a list: files, and what
            `webdataset` opens, such as `https:` or `pipe:`.
        train: transform for random clips in a random order; None for test views in order.
        labels: names in the order of their indices.
        shuffle: videos that a worker holds in memory to mix them in training, beside its shards.
        clip, offsets, seed, time_limit: as for `VideoDataset`.
        on_error: as for `VideoDataset`; 'substitute' goes on with the next video in the stream. A shard
            that cannot be read to its end counts as a video that failed.

    Raises:
        BvtamError: the library is missing, or there is no shard.
    """
    check_channels('clip', clip)
    if not urls:
        raise BvtamError('urls names no shard')
    urls = library('webdataset', 'data', 'webdataset_clips').SimpleShardList(urls).urls
    names = {name: i for i, name in enumerate(labels or [])}
    read = ClipReader(clip, train, offsets, time_limit)
    return _ShardClips(urls, read, names, shuffle if train else 0, seed, check_policy(on_error))


class _ShardClips(IterableDataset):
    def __init__(
        self,
        urls: list[str],
        read: ClipReader,
        labels: dict[str, int],
        shuffle: int,
        seed: int,
        on_error: str,
    ) -> None:
        self.urls, self.read, self.labels = urls, read, labels
        self.shuffle, self.seed, self.on_error = shuffle, seed, on_error
        self._epoch = shared_number()

    def set_epoch(self, epoch: int) -> None:
        """Draws anew; worker processes that live on see it too."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        webdataset = library('webdataset', 'data', 'webdataset_clips')
        epoch = int(self._epoch)
        urls, rng = list(self.urls), random.Random(f'{self.seed},{epoch}')
        if self.read.train is not None:
            rng.shuffle(urls)
        urls = webdataset.split_by_worker(webdataset.split_by_node(iter(urls)))
        contents = self._contents(webdataset, urls)
        if self.shuffle:
            contents = webdataset.shuffle(self.shuffle, rng=rng)(contents)
        failed: list[tuple[str, str]] = []
        for content in contents:
            for file in _videos(content):
                index = _index(content, file)
                generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, index))
                record = Record(_name(content, file if '.' in file else ''))
                try:
                    record, video = self._parse(content, file, record.source)
                    sample = self.read(record, generator, video)
                except VIDEO_ERRORS as error:
                    failed.append(failure(record.source, error, self.on_error, len(failed)))
                    if self.on_error == 'substitute':
                        continue
                    sample = missing(record)
                yield sample | {'index': index, 'failed': failed}
                failed = []
        if failed:  # with no video after them to take their place
            yield missing(record) | {'index': index, 'failed': failed}

    @staticmethod
    def _contents(webdataset: ModuleType, urls: Iterator[str]) -> Iterator[dict[str, Any]]:
        for url in urls:
            try:
                yield from webdataset.tariterators.group_by_keys(_files(webdataset.gopen(url), url))
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                # The library puts its own objects behind the message.
                reason = getattr(error, 'strerror', None) or next(iter(error.args), 'it ends early')
                yield {'__url__': url, '__key__': '', 'error': f'{url} cannot be read: {reason}'}

    def _parse(self, content: dict[str, Any], file: str, name: str) -> tuple[Record, bytes]:
        if 'error' in content:
            raise BvtamError(content['error'])
        if not _is_video(file):
            raise BvtamError(f'{name} has no video among its files')
        try:
            kind, label = next(
                (kind, content[key])
                for stem in _stems(file)
                for kind in ('cls', 'json')
                if (key := f'{stem}{kind}') in content
            )
            label = label.decode().strip() if kind == 'cls' else json.loads(label)['label']
            label = self.labels[label] if label in self.labels else int(label)
        except (StopIteration, ValueError, KeyError, TypeError):
            raise BvtamError(
                f'{name} has no label: give an index or a known name in .cls, or as "label" in .json'
            ) from None
        return Record(_name(content, file), label), content[file]


def _is_video(file: str) -> bool:
    return file.endswith(VIDEO_SUFFIXES) or f'.{file}' in VIDEO_SUFFIXES


def _stems(file: str) -> list[str]:
    """Beginnings of the files that may belong to one, the longest first: of 5s.mp4 they are '5s.' and ''."""
    parts = file.split('.')[:-1]
    return [''.join(f'{part}.' for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _videos(content: dict[str, Any]) -> list[str]:
    """The videos of a key, each by what its name has after the first dot; of a label without a video
    its own, '' where there is nothing else."""
    videos = [file for file in content if not file.startswith('__') and _is_video(file)]
    used = {f'{stem}cls' for video in videos for stem in _stems(video)}
    alone = [file for file in content if file.endswith('.cls') and file not in used]
    return [*videos, *alone] or ['']


def _name(content: dict[str, Any], file: str) -> str:
    name = f'{content["__url__"]}/{content["__key__"]}'
    return f'{name}.{file}' if file else name


class _Member(tarfile.TarInfo):
    """Python takes a header that is cut short or damaged for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the end, marked as such
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f'{error}, as if it were cut off or damaged') from None


def _files(stream: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    with stream, tarfile.open(fileobj=stream, mode='r|*', tarinfo=_Member) as archive:
        for member in archive:
            if member.isreg():
                content = archive.extractfile(member).read()
                yield {'fname': member.name, 'data': content, '__url__': url}
            archive.members = []  # which would keep every header


def _index(content: dict[str, Any], file: str) -> int:
    """63 bits; the folder of the shard is left out, so that shards can be moved, and the ending."""
    shard, key = content['__url__'].rpartition('/')[2], content['__key__']
    plain = next((video for video in _videos(content) if '.' not in video), '')
    key = key if file in ('', plain) else f'{key}.{file}'
    digest = blake2b(f'{shard}/{key}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1
