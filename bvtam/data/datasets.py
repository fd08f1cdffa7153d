"""Data sets for a `DataLoader`: from records to random clips or test views."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from ..clip import ClipConfig
from ..errors import BvtamError
from .failures import VIDEO_ERRORS, check_policy, machine_error, machine_errors
from .records import Record, open_record
from .sampling import sample_seed, train_indices, view_indices
from .transforms import TrainTransform, check_channels, read_crops
from .video.images import read_image
from .video.in_memory import CopiedFile, FrameArray
from .video.memory import shared_number
from .video.reader import Reader

log = logging.getLogger('bvtam')

_MOST_IN_A_ROW = 10  # videos that may fail, one after the other, before no other is tried


class SampleError(BvtamError):
    """A video that cannot be read.

    `DataLoader` makes it anew out of the traceback of a worker process, whose last line is kept.
    """

    def __init__(self, message: object = '') -> None:
        last = str(message).rstrip('\n').rpartition('\n')[2]
        super().__init__(last.removeprefix(f'{__name__}.{type(self).__name__}: '))


@dataclass(frozen=True)
class ClipReader:
    """Makes the clips of one video after another.

    Attributes:
        clip, train, offsets, time_limit: as of `VideoDataset`.
    """

    clip: ClipConfig
    train: TrainTransform | None = None
    offsets: str = 'shared'
    time_limit: float = 60.0

    def __call__(
        self, record: Record, generator: torch.Generator, content: bytes | None = None
    ) -> dict[str, Any]:
        """The sample of `record`, as `VideoDataset` gives it, without its index.

        `generator` is that of all that is random about it, `content` that of the video file where it is
        not on disk. Raises `VIDEO_ERRORS`.
        """
        clip, label = self.clip, record.label
        with machine_errors(record.source):
            reader = self._open(record, content).with_colors(clip.colors)
            shown = reader.frames_between(record.start, record.end)
            if self.train is None:
                clips = view_indices(clip, len(shown), shown.start)
                pixels = torch.cat(read_crops(reader, clips, clip))
            else:
                picked = train_indices(
                    len(shown),
                    clip.num_frames,
                    generator,
                    clip.sampling,
                    clip.frame_stride,
                    self.offsets,
                )
                clips = [[shown[i] for i in picked]]
                view = self.train.draw(generator)
                crops = torch.cat(reader.read_each(clips[0], view.crop))
                pixels, label = view.finish(crops, label)
        frames = [index for indices in clips for index in indices]
        return {'clip': pixels, 'label': label, 'video': record.source, 'frames': frames}

    def _open(self, record: Record, content: bytes | None) -> Reader:
        if content is not None:
            return CopiedFile(content, self.time_limit, name=record.source)
        return open_record(record, self.time_limit)


class VideoDataset(Dataset):
    """Clips of videos, of grey levels 0 to 255; `normalize` them on the device.

    A sample is a dict: `clip`, uint8 (C, T, S, S) in training and (views, C, T, S, S) else, where
    views are num_clips * num_crops, all crops of the first clip first; `label`; `index`; `video`, the
    source of its record; `frames`, the indices of its frames in the video, clip after clip; `failed`,
    a list of (video, reason).

    What is random about a sample depends on `seed`, the epoch and the index alone: the same whichever
    worker makes it, whatever it made before.

    Args:
        records: the videos.
        clip: how frames are chosen and prepared.
        train: transform for random clips; None for test views.
        offsets: of uniform sampling in training, 'shared' by all segments or for each 'segment'.
        seed: of the run.
        on_error: what a video that cannot be read does: 'raise' a `SampleError` that names it; 'skip'
            gives None as the clip, and an entry in `failed`; 'substitute' puts another video of the
            data set in its place, drawn by the sample's own generator, and an entry in `failed`.
        time_limit: seconds after which a video that yields nothing has failed.

    Raises:
        BvtamError: no records, or an unknown policy. Samples raise `SampleError`, also where ten
            videos in a row cannot be read.
    """

    def __init__(
        self,
        records: Sequence[Record],
        clip: ClipConfig,
        *,
        train: TrainTransform | None = None,
        offsets: str = 'shared',
        seed: int = 0,
        on_error: str = 'raise',
        time_limit: float = 60.0,
    ) -> None:
        if not len(records):
            raise BvtamError('a data set needs at least one video')
        check_channels('clip', clip)
        self.records = records
        self.read = ClipReader(clip, train, offsets, time_limit)
        self.seed, self.on_error = seed, check_policy(on_error)
        self._epoch = shared_number()

    def set_epoch(self, epoch: int) -> None:
        """Draws anew; worker processes that live on see it too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        times = getattr(index, 'times', 0)  # that an epoch has had it before
        index = range(len(self))[index]  # IndexError ends an iteration
        seed = sample_seed(self.seed, int(self._epoch), index + times * len(self))
        generator = torch.Generator().manual_seed(seed)
        failed: list[tuple[str, str]] = []
        place = index
        while True:
            record, content = self._get(place)
            try:
                sample = self.read(record, generator, content)
            except VIDEO_ERRORS as error:
                failed.append(failure(record.source, error, self.on_error, len(failed)))
                if self.on_error == 'substitute':
                    place = int(torch.randint(len(self), (), generator=generator))
                    continue
                sample = missing(record)
            return sample | {'index': index, 'failed': failed}

    def _get(self, index: int) -> tuple[Record, bytes | None]:
        """A record, and the content of its file where that is not on disk."""
        return self.records[index], None


def failure(video: str, error: Exception, on_error: str, before: int) -> tuple[str, str]:
    """The entry in `failed` for one more video, after `before` others in a row.

    Raises:
        SampleError: the policy is to raise, too many have failed, or it is no fault of the video.
    """
    if on_error == 'raise' or machine_error(error):
        raise SampleError(error if video in str(error) else f'{video}: {error}') from error
    if on_error == 'substitute' and before + 1 == _MOST_IN_A_ROW:
        raise SampleError(f'{_MOST_IN_A_ROW} videos in a row failed; the last: {error}') from error
    return video, str(error)


def missing(record: Record) -> dict[str, Any]:
    """The sample of a video that cannot be read, without its index."""
    return {'clip': None, 'label': record.label, 'video': record.source, 'frames': []}


class ImageDataset(VideoDataset):
    """`VideoDataset` of image files: clips of one frame, one of them in a test."""

    def __init__(self, records: Sequence[Record], clip: ClipConfig, **options: Any) -> None:
        super().__init__(records, replace(clip, num_frames=1, num_clips=1), **options)
        self.read = _ImageReader(**vars(self.read))


class _ImageReader(ClipReader):
    def _open(self, record: Record, content: bytes | None) -> FrameArray:
        return FrameArray(read_image(Path(record.source))[None], name=record.source)


class _SentByPipe(Tensor):
    """A tensor that leaves a worker process by way of its pipe, and is a plain one at the other end.

    Torch sends tensors through shared memory, of which containers may have next to none.
    """

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return torch.from_numpy, (self.as_subclass(Tensor).numpy(),)


def _by_pipe(tensor: Tensor) -> Tensor:
    return tensor if get_worker_info() is None else tensor.as_subclass(_SentByPipe)


def _stack(clips: list[Tensor]) -> Tensor:
    """In shared memory where this is a worker process, and as long as there is some."""
    try:
        return default_collate(clips)
    except RuntimeError as error:
        if get_worker_info() is None or machine_error(error) is None:
            raise
        log.debug('%s', error)
        return _by_pipe(torch.stack(clips))


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of samples, for `DataLoader(collate_fn=...)`.

    Returns:
        `clip`, stacked, or None if no sample has one; `label` and `index`, int64 (B,), and `video`, a
        list, of the B samples that have one; `failed`, the (video, reason) of all samples.
    """
    kept = [sample for sample in samples if sample['clip'] is not None]
    return {
        'clip': _stack([sample['clip'] for sample in kept]) if kept else None,
        'label': _by_pipe(torch.tensor([sample['label'] for sample in kept], dtype=torch.int64)),
        'index': _by_pipe(torch.tensor([sample['index'] for sample in kept], dtype=torch.int64)),
        'video': [sample['video'] for sample in kept],
        'failed': [failure for sample in samples for failure in sample['failed']],
    }
