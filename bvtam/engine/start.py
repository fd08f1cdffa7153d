"""From a recipe to a finished run: the data read, the net built, the trainer started."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..clip import ClipConfig
from ..data.datasets import ImageDataset, Record, VideoDataset, load_images, load_records
from ..data.directions import flip_label_map, names_tell_nothing
from ..data.load import with_frames
from ..data.motion.clips import MotionClips, TwoLengths
from ..data.transforms import TrainTransform, check_channels
from ..errors import BvtamError, one_line
from ..factory import architecture, create_model
from .counts import MOST_CLASSES
from .recipe import Recipe
from .setup import build_net, model_source
from .train import Trainer

log = logging.getLogger('bvtam')


def train(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    resume: str = 'auto',
    progress: Callable[[int, int], object] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains by a recipe; what is written, and where, is told in `train.py`.

    Args:
        recipe: see `Recipe.load`.
        out: folder of the run; None: `runs/` and the name of the network.
        resume: 'auto' goes on with the run that `out` holds, 'never' refuses to.
        progress, on_log: as in `Trainer`.

    Returns:
        `{epochs, steps, best, failed, out}`; `best` is the best evaluation.

    Raises:
        BvtamError, FileNotFoundError: a recipe, data or first weights that do not fit together.
        Stopped: SIGTERM or SIGINT came; the same call goes on from there.
    """
    if recipe.data.motion.family:
        net, train_set, val_set = motion_sets(recipe)
    else:
        net, train_set, val_set = _videos(recipe)
    out = Path(out) if out is not None else Path('runs') / recipe.model
    trainer = Trainer(net, recipe, train_set, val_set, out, progress, on_log)
    return {**trainer.fit(resume), 'out': str(out)}


def _videos(recipe: Recipe) -> tuple[nn.Module, VideoDataset, VideoDataset | None]:
    train_records, val_records, names = load_data(recipe)
    num_classes = recipe.num_classes or (
        len(names) if names else 1 + max(record.label for record in train_records)
    )
    if names and len(names) != num_classes:
        raise BvtamError(
            f'recipe: num_classes is {num_classes}, but the dataset has {len(names)} classes'
        )
    if num_classes > MOST_CLASSES:
        raise BvtamError(
            f'the dataset has {num_classes:,} classes, and at most {MOST_CLASSES:,} can be evaluated: are '
            'its labels in the right column?'
        )
    for record in (*train_records, *val_records):
        if record.label >= num_classes:
            raise BvtamError(
                f'{record.source}: label {record.label} is outside the {num_classes} classes, 0 to '
                f'{num_classes - 1}; without num_classes, labels of any numbers are taken as names'
            )
    unseen = sorted({*range(num_classes)} - {record.label for record in train_records})
    if unseen:
        log.warning(
            '%d of %d classes have no training video, so the model will not learn them: %s',
            len(unseen),
            num_classes,
            one_line(', '.join(names[i] if names else str(i) for i in unseen)),
        )
    net = build_net(recipe, names, num_classes)
    return net, *datasets(recipe, net, train_records, val_records)


def motion_sets(recipe: Recipe) -> tuple[nn.Module, Dataset, MotionClips]:
    """The recipe's net, and the streams of motion clips that it is trained and validated on."""
    motion = recipe.data.motion
    # Which classes there are does not depend on the size of the clips, which the net tells.
    names = MotionClips(family=motion.family, held_out=motion.held_out).label_names
    if recipe.num_classes not in (0, len(names)):
        raise BvtamError(
            f'recipe: num_classes is {recipe.num_classes}, but these motion clips have {len(names)}'
        )
    net = build_net(recipe, names, len(names))
    clip = net.clip_config
    check_channels(recipe.model, clip, net)
    common = {
        'num_frames': clip.num_frames,
        'size': clip.crop_size,
        'family': motion.family,
        'held_out': motion.held_out,
    }
    options = {'seed': recipe.run.seed, 'length': motion.clips, 'encode': motion.encode}
    train_set = MotionClips(**common, **options)
    val_set = MotionClips(**common, split='val', length=motion.val_clips)
    return net, TwoLengths(train_set) if motion.two_lengths else train_set, val_set


def finetune(
    data: str | os.PathLike[str],
    model: str = 'bvtam_r50_8x2',
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] = 'finetune',
    resume: str = 'auto',
    **settings: Any,
) -> nn.Module:
    """Finetunes a network on videos of your own, as `bvtam train --data DATA model=MODEL` does.

    Args:
        data: a folder with a folder of videos for each class, or what `load_records` takes.
        model: name of the network; it starts from its weights where they are on this machine, unless
            `init=` says otherwise.
        out: folder of the run; None: `runs/` and the name of the network.
        recipe: name of a recipe that ships, or path of one.
        resume: 'auto' goes on with the run that `out` holds, 'never' refuses to.
        settings: of the recipe, by the last part of their names: `lr=1e-4, epochs=5`.

    Returns:
        The best net of the run, in eval mode, with its ClipConfig and label names.

    Raises:
        As `train`.
    """
    pairs = [f'{key}={"" if value is None else value}' for key, value in settings.items()]
    chosen = Recipe.load(recipe, [*pairs, f'model={model}']).with_data(os.fspath(data))
    result = train(chosen, out, resume)
    return create_model(model_source(result['out']), pretrained=True).eval()


def load_data(recipe: Recipe) -> tuple[list[Record], list[Record], list[str] | None]:
    """Training records, validation records and label names of the recipe's data.

    Raises:
        BvtamError: no data is named, it cannot be read, or the two sets have other classes.
    """
    data = recipe.data
    if not (data.path or data.train):
        raise BvtamError('no data: name a dataset with --data DIR (data.path in the recipe)')
    images = architecture(recipe.model).startswith('blresnet')
    load = load_images if images else load_records
    options = {'root': data.root or None, 'seed': recipe.run.seed, 'urls': data.urls}
    first, second, splits = data.train, data.val, ('', '')
    if data.path:
        options['val_share'] = data.val_share
        first, second, splits = data.path, data.path, ('train', 'val')
    train_records, names = load(first, splits[0], **options)
    val_records, val_names = [], names
    if second:
        val_records, val_names = load(second, splits[1], labels=names, **options)
    found = with_frames([*train_records, *val_records], data.frames, data.fps or None)
    train_records, val_records = found[: len(train_records)], found[len(train_records) :]
    if names is None and val_names:
        raise BvtamError(
            f'the labels of {first} are numbers and those of {second} names: write both alike'
        )
    for record in (*train_records, *val_records):
        if record.label < 0:
            raise BvtamError(f'{record.source} has no label: give it one, or leave it out')
    _check_single((*train_records, *val_records), names)
    if names is None and not recipe.num_classes:
        train_records, val_records, names = _numbers_named(train_records, val_records)
    return train_records, val_records, names


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


def datasets(
    recipe: Recipe, net: nn.Module, train_records: Sequence[Record], val_records: Sequence[Record]
) -> tuple[VideoDataset, VideoDataset | None]:
    """The two datasets; `augment.flip: auto` swaps labels that name directions, or mirrors no such clip."""
    check_channels(recipe.model, net.clip_config, net)
    flip, first = recipe.augment.flip, net.first_flip
    if flip == 'auto' and 'flip' in recipe.clip:
        flip, first = 'auto' if recipe.clip['flip'] else 'off', True
    clip, flips = mirroring(flip, net.clip_config, net.label_names, first)
    net.clip_config = clip
    augment, data = recipe.augment, recipe.data
    transform = TrainTransform(
        clip,
        crop=augment.crop,
        flip_labels=flips,
        color_jitter=augment.color_jitter,
        rand_augment=augment.rand_augment,
        rand_augment_magnitude=augment.rand_augment_magnitude,
        random_erasing=augment.random_erasing,
    )
    kind = ImageDataset if net.input_kind == 'image' else VideoDataset
    common = {'seed': recipe.run.seed, 'time_limit': data.time_limit}
    train_set = kind(
        train_records,
        clip,
        train=transform,
        offsets=augment.offsets,
        on_error=data.on_error,
        **common,
    )
    if not val_records:
        return train_set, None
    single = replace(clip, num_clips=1, num_crops=1)
    return train_set, kind(val_records, single, on_error='skip', **common)


def mirroring(
    flip: str,
    clip: ClipConfig,
    label_names: Sequence[str] | None,
    first_flip: bool | None = None,
) -> tuple[ClipConfig, dict[int, int] | None]:
    """The ClipConfig with its `flip` set, and the label of each mirrored clip where they change.

    Args:
        flip: 'on', 'off', or 'auto', whose decision is logged: the labels decide (see
            `flip_label_map`), and those without names are not mirrored.
        clip: of the network.
        label_names: of the data.
        first_flip: `clip.flip` of the first weights, None without. Where it is False, 'auto' mirrors
            labels that can be swapped and no others.
    """
    if flip != 'auto':
        return replace(clip, flip=flip == 'on'), None
    told, flips = 'augment.flip=on mirrors all', {}
    if not label_names or names_tell_nothing(label_names):
        why = (
            'no clip is mirrored, since numbers as labels do not tell whether they name directions'
        )
    else:
        flips = flip_label_map(label_names)
        if first_flip is False:
            flips = {label: other for label, other in flips.items() if label != other}
        same = sum(label == other for label, other in flips.items())
        swapped = f'those of {len(flips) - same} with their labels swapped'
        if same == len(label_names):
            why = 'clips are mirrored, since no label names a direction that is known'
            told = 'augment.flip=off if one does'
        elif flips:
            why = f'clips of {len(flips)} labels are mirrored, {swapped}, and no others'
        else:
            why = 'no clip is mirrored'
        if first_flip is False:
            why += ', since clip.flip of the first weights is false'
    log.warning('augment.flip: %s (%s)', why, told)
    plain = bool(flips) and all(flips.get(i) == i for i in range(len(label_names or ())))
    return replace(clip, flip=plain), None if plain or not flips else flips
