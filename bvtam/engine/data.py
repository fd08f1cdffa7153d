"""The data of a run: records and their classes, the two data sets, and the batches of each step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from ..clip import ClipConfig
from ..data.datasets import ImageDataset, VideoDataset
from ..data.directions import flip_label_map, names_tell_nothing
from ..data.load import load_images, load_records, with_frames
from ..data.motion.clips import MotionClips, TwoLengths
from ..data.records import Record
from ..data.sampling import sample_seed
from ..data.transforms import TrainTransform, check_channels
from ..errors import BvtamError, one_line
from ..factory import input_kind
from .counts import MOST_CLASSES
from .recipe import Recipe

log = logging.getLogger('bvtam')


# ---- records and classes ----


class RunData(NamedTuple):
    """Labelled videos and their classes; there are no records of motion clips, which are rendered."""

    train: list[Record]
    val: list[Record]
    label_names: list[str] | None
    num_classes: int


def load_data(recipe: Recipe) -> RunData:
    """Reads the lists or folders that the recipe names; the videos themselves stay closed.

    Raises:
        BvtamError: no data is named, it cannot be read, or its classes do not fit together or the
            recipe.
    """
    motion, wanted = recipe.data.motion, recipe.num_classes
    if motion.family:
        # Which classes there are does not depend on the size of the clips, which the model tells.
        names = MotionClips(family=motion.family, held_out=motion.held_out).label_names
        if wanted not in (0, len(names)):
            raise BvtamError(
                f'recipe: num_classes is {wanted}, but these motion clips have {len(names)}'
            )
        return RunData([], [], names, len(names))
    train, val, names = _load_videos(recipe)
    num_classes = wanted or (len(names) if names else 1 + max(record.label for record in train))
    _check_classes(train, val, names, num_classes)
    return RunData(train, val, names, num_classes)


def _load_videos(recipe: Recipe) -> tuple[list[Record], list[Record], list[str] | None]:
    data = recipe.data
    if not (data.path or data.train):
        raise BvtamError('no data: name a dataset with --data DIR (data.path in the recipe)')
    load = load_images if input_kind(recipe.model) == 'image' else load_records
    options = {'root': data.root or None, 'seed': recipe.run.seed, 'urls': data.urls}
    first, second, splits = data.train, data.val, ('', '')
    if data.path:
        options['val_share'] = data.val_share
        first, second, splits = data.path, data.path, ('train', 'val')
    train, names = load(first, splits[0], **options)
    val, val_names = [], names
    if second:
        val, val_names = load(second, splits[1], labels=names, **options)
    found = with_frames([*train, *val], data.frames, data.fps or None)
    train, val = found[: len(train)], found[len(train) :]
    if names is None and val_names:
        raise BvtamError(
            f'the labels of {first} are numbers and those of {second} names: write both alike'
        )
    for record in (*train, *val):
        if record.label < 0:
            raise BvtamError(f'{record.source} has no label: give it one, or leave it out')
    _check_single((*train, *val), names)
    if names is None and not recipe.num_classes:
        train, val, names = _numbers_named(train, val)
    return train, val, names


def _check_single(records: Iterable[Record], names: list[str] | None) -> None:
    """Raises a BvtamError for a video that is there with two labels."""
    seen: dict[Record, int] = {}
    for record in records:
        other = seen.setdefault(replace(record, label=-1), record.label)
        if other != record.label:
            two = [names[i] if names else str(i) for i in (other, record.label)]
            raise BvtamError(
                f'{record.source} has two labels, {two[0]} and {two[1]}: training takes one for each video, or '
                'part of one (start,end); data sets of several labels each are not taken'
            )


def _numbers_named(*sets: list[Record]) -> tuple[list[Record], list[Record], list[str] | None]:
    """Two sets of records whose labels are numbers, and label names: where the numbers are no
    indices from 0 without a gap, they are names."""
    found = sorted({record.label for records in sets for record in records})
    if found == list(range(len(found))):
        return *sets, None
    names = [str(number) for number in found]
    log.warning(
        'the labels of the videos are numbers, but not 0, 1, 2, and so on: taken as the names of %d '
        'classes (%s); num_classes=%d would take them as indices',
        len(names),
        one_line(', '.join(names)),
        found[-1] + 1,
    )
    index = {number: i for i, number in enumerate(found)}
    return *([replace(r, label=index[r.label]) for r in records] for records in sets), names


def _check_classes(
    train: Sequence[Record], val: Sequence[Record], names: Sequence[str] | None, num_classes: int
) -> None:
    if names and len(names) != num_classes:
        raise BvtamError(
            f'recipe: num_classes is {num_classes}, but the dataset has {len(names)} classes'
        )
    if num_classes > MOST_CLASSES:
        raise BvtamError(
            f'the dataset has {num_classes:,} classes, and at most {MOST_CLASSES:,} can be evaluated: are '
            'its labels in the right column?'
        )
    for record in (*train, *val):
        if record.label >= num_classes:
            raise BvtamError(
                f'{record.source}: label {record.label} is outside the {num_classes} classes, 0 to '
                f'{num_classes - 1}; without num_classes, labels of any numbers are taken as names'
            )
    unseen = sorted({*range(num_classes)} - {record.label for record in train})
    if unseen:
        log.warning(
            '%d of %d classes have no training video, so the model will not learn them: %s',
            len(unseen),
            num_classes,
            one_line(', '.join(names[i] if names else str(i) for i in unseen)),
        )


# ---- data sets ----


def build_datasets(
    recipe: Recipe, model: nn.Module, data: RunData
) -> tuple[Dataset, Dataset | None]:
    """The data sets to train and to validate on; the second is None without validation videos.

    Sets `model.clip_config.flip` by `augment.flip`, see `mirroring`.
    """
    check_channels(recipe.model, model.clip_config, model)
    if recipe.data.motion.family:
        return _motion_sets(recipe, model.clip_config)
    flip, first = recipe.augment.flip, model.first_flip
    if flip == 'auto' and 'flip' in recipe.clip:
        flip, first = 'auto' if recipe.clip['flip'] else 'off', True
    clip, flips = mirroring(flip, model.clip_config, model.label_names, first)
    model.clip_config = clip
    augment = recipe.augment
    transform = TrainTransform(
        clip,
        crop=augment.crop,
        flip_labels=flips,
        color_jitter=augment.color_jitter,
        rand_augment=augment.rand_augment,
        rand_augment_magnitude=augment.rand_augment_magnitude,
        random_erasing=augment.random_erasing,
    )
    kind = ImageDataset if model.input_kind == 'image' else VideoDataset
    common = {'seed': recipe.run.seed, 'time_limit': recipe.data.time_limit}
    train_options = {
        'train': transform,
        'offsets': augment.offsets,
        'on_error': recipe.data.on_error,
    }
    train_set = kind(data.train, clip, **train_options, **common)
    if not data.val:
        return train_set, None
    single = replace(clip, num_clips=1, num_crops=1)
    return train_set, kind(data.val, single, on_error='skip', **common)


def _motion_sets(recipe: Recipe, clip: ClipConfig) -> tuple[Dataset, MotionClips]:
    motion = recipe.data.motion
    common = {'family': motion.family, 'held_out': motion.held_out}
    options = {'seed': recipe.run.seed, 'length': motion.clips, 'encode': motion.encode}
    options['strokes'] = motion.strokes
    train_set = MotionClips(clip.num_frames, clip.crop_size, **common, **options)
    options = {'split': 'val', 'length': motion.val_clips}
    val_set = MotionClips(clip.num_frames, clip.crop_size, **common, **options)
    return TwoLengths(train_set) if motion.two_lengths else train_set, val_set


def mirroring(
    flip: str, clip: ClipConfig, label_names: Sequence[str] | None, first_flip: bool | None
) -> tuple[ClipConfig, dict[int, int] | None]:
    """The ClipConfig with its `flip` set, and the label of each mirrored clip where they change.

    Args:
        flip: 'on', 'off', or 'auto', whose decision is logged: clips are mirrored where the first
            weights were trained that way and no label names a direction (see `flip_label_map`).
            Elsewhere nobody knows whether the mirror image of a clip means the same, as with a tick
            or a circle, so only labels that can be swapped are: left and right.
        clip: of the model.
        label_names: of the data.
        first_flip: `clip.flip` of the first weights, None without.
    """
    if flip != 'auto':
        return replace(clip, flip=flip == 'on'), None
    advice, flips = 'augment.flip=on mirrors all', {}
    if not label_names or names_tell_nothing(label_names):
        why = (
            'no clip is mirrored, since numbers as labels do not tell whether they name directions'
        )
    else:
        flips = flip_label_map(label_names)
        plain = len(flips) == sum(label == other for label, other in flips.items())
        plain = plain and len(flips) == len(label_names)
        if plain and first_flip:
            why = 'clips are mirrored, since no label names a direction that is known'
            advice = 'augment.flip=off if one does'
        else:
            flips = {label: other for label, other in flips.items() if label != other}
            why = 'no clip is mirrored'
            if flips:
                why = f'clips of {len(flips)} labels are mirrored with their labels swapped, and no others'
            if not plain:
                why += ', since labels name directions'
            elif first_flip is False:
                why += ', since clip.flip of the first weights is false'
            else:
                why += ', since no first weights tell that it does no harm'
    log.warning('augment.flip: %s (%s)', why, advice)
    plain = bool(flips) and all(flips.get(i) == i for i in range(len(label_names or ())))
    return replace(clip, flip=plain), None if plain or not flips else flips


# ---- batches ----


class Draw(int):
    """Index of a sample that was drawn `times` times before in the epoch, which gives it other views."""

    def __new__(cls, index: int, times: int = 0) -> Draw:
        self = super().__new__(cls, index)
        self.times = times
        return self


class Part(list[int]):
    """Indices of the samples of one part of a step; `first` is the first of the whole step."""

    def __init__(self, indices: Iterable[int], first: int) -> None:
        super().__init__(indices)
        self.first = first


class Batches(Sampler[list[int]]):
    """The indices of each part of each step of an epoch, for one process.

    A step takes `batch_size` samples of a permutation that (seed, epoch) gives; every process takes
    its share of them, in `accumulate` parts. So one process and several see the same batches. The
    last step of an epoch is smaller; where its samples do not divide by the number of processes, some
    processes end theirs with a padding sample: one of the step again, with zero loss weight.

    Args:
        weights: (num_samples,), for draws with replacement in proportion to them; None: each sample
            once.

    Raises:
        BvtamError: a batch that cannot be shared out evenly.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise BvtamError(
                f'recipe: run.batch_size {batch_size} cannot be shared by {world_size} processes with '
                f'run.accumulate {accumulate}: make it a multiple of {world_size * accumulate}'
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.weights = rank, world_size, weights
        self.part = batch_size // (world_size * accumulate)
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.num_samples // self.batch_size)

    def samples(self, step: int) -> int:
        """Samples of one step, over all processes."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def parts(self, step: int) -> int:
        """Parts in which this process computes its share of one step."""
        return -(-self.samples(step) // (self.world_size * self.part))

    def __len__(self) -> int:
        return sum(self.parts(step) for step in range(self.start, self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator)
            draws = range(self.num_samples)
        else:
            order = torch.multinomial(self.weights, self.num_samples, True, generator=generator)
            seen = Counter()
            draws = []
            for index in order.tolist():
                draws.append(Draw(index, seen[index]))
                seen[index] += 1
            order = torch.arange(self.num_samples)
        for step in range(self.start, self.steps):
            first = step * self.batch_size
            batch = order[first : first + self.samples(step)]
            share = -(-len(batch) // self.world_size)
            mine = batch[(self.rank + torch.arange(share) * self.world_size) % len(batch)]
            for part in mine.split(self.part):
                yield Part([draws[i] for i in part.tolist()], draws[int(batch[0])])
