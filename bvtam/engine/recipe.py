"""A training run as data: typed, nested settings, read from YAML and checked before anything runs.

A recipe names every setting that moves the numbers of a run. The file is YAML with the sections
below; `key=value` overrides one setting, by its full name (`optimizer.lr=0.02`) or by its last part
where only one setting has it (`lr=0.02`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from ..clip import ClipConfig
from ..data.motion.clips import FAMILIES
from ..errors import BvtamError, nearest, shown
from ..files import read_text
from .counts import MOST_CLASSES
from .settings import list_settings, override, parse, read_yaml, setting

RECIPES = Path(__file__).parents[1] / 'recipes'


@dataclass(frozen=True)
class Motion:
    """Procedural clips (see `data/motion/`), rendered as they are needed, in place of videos."""

    family: str = setting('', "classes to render; '': train on videos", ('', *FAMILIES))
    clips: int = setting(9600, 'training clips of an epoch; none comes twice', least=1)
    val_clips: int = setting(1000, 'validation clips', least=1, most=1_000_000)
    encode: float = setting(0.0, 'share of the training clips that go through H.264', most=1)
    two_lengths: bool = setting(False, 'every other batch has half as many frames, at random')
    strokes: int = setting(1, "training clips of each class of strokes for one of every other class", least=1, most=100)  # fmt: skip
    held_out: bool = setting(False, 'motions and textures that weights in the zoo never saw')


@dataclass(frozen=True)
class Data:
    """Where the videos are, and what happens to those that cannot be read."""

    path: str = setting('', 'data set: class folders, a list or annotations, with train and val')
    train: str = setting('', 'training set by itself, instead of `path`')
    val: str = setting('', 'validation set by itself; none where `train` is given alone')
    root: str = setting('', 'where the paths in a list start (default: the folder of the list)')
    urls: bool = setting(False, 'let a list name addresses of videos, not local files alone')
    frames: str = setting('', 'frames in folders of images: img_{:05d}.jpg, img_*.jpg (default: by number)')  # fmt: skip
    fps: float = setting(0.0, 'frames a second of folders of images; 0: 25', most=1000)
    val_share: float = setting(
        0.2, 'share of each class held out, if `path` has no split', most=0.9
    )
    on_error: str = setting('substitute', 'what a damaged video does', ('substitute', 'raise'))
    max_failed: float = setting(0.1, 'share of the videos that may fail', most=1)
    time_limit: float = setting(60.0, 'seconds that a video may stall', least=0.1)
    sampler: str = setting('shuffle', 'an epoch has each video once, or as many drawn so that all classes are as frequent', ('shuffle', 'balanced'))  # fmt: skip
    workers: int = setting(2, 'decoding processes per training process', most=256)
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class Augment:
    """Random changes to a clip, one draw for all of its frames, and to a batch."""

    crop: str = setting('multi_scale', 'training crop', ('multi_scale', 'random_resized', 'random', 'center'))  # fmt: skip
    flip: str = setting('auto', 'mirror clips; auto: where the first weights were and no label names a direction, else only labels that swap', ('auto', 'on', 'off'))  # fmt: skip
    offsets: str = setting('shared', 'uniform frames: one offset for all segments, or one in each', ('shared', 'segment'))  # fmt: skip
    color_jitter: float = setting(0.0, 'strength of brightness, contrast and saturation', most=1)
    rand_augment: int = setting(0, 'RandAugment operations per clip', most=10)
    rand_augment_magnitude: int = setting(9, 'their strength', most=30)
    random_erasing: float = setting(0.0, 'probability of erasing a box', most=1)
    mixup: float = setting(0.0, 'alpha of mixup; 0: off', most=100)
    cutmix: float = setting(0.0, 'alpha of CutMix, the same box in all frames; 0: off', most=100)


# Their scenes vary enough; of augmentation only what works on batches is there.
_NOT_FOR_MOTION = {
    f'augment.{f.name}' for f in fields(Augment) if f.name not in ('mixup', 'cutmix')
}
_NOT_FOR_MOTION |= {'data.frames', 'data.fps', 'data.sampler'}


@dataclass(frozen=True)
class Optimizer:
    """By timm's factory (`sgd` has Nesterov's momentum, `momentum` the plain one)."""

    name: str = setting('sgd', "timm's name of the optimizer: sgd, momentum, adamw, ...")
    lr: float = setting(0.01, 'learning rate at the top of the schedule')
    momentum: float = setting(0.9, 'momentum of SGD', most=0.99999)
    weight_decay: float = setting(5e-4, 'weight decay')
    decay_all: bool = setting(True, 'decay norms and biases too, as the paper does')
    layer_decay: float = setting(1.0, 'learning rate factor from one layer to the one before', least=1e-3, most=1)  # fmt: skip
    head_lr: float = setting(1.0, 'learning rate factor of the classifier')
    clip_grad: float = setting(0.0, 'largest global gradient norm; 0: no clipping')


@dataclass(frozen=True)
class Schedule:
    """By timm's factory; the rate changes with every step."""

    name: str = setting('cosine', 'how the learning rate falls', ('cosine', 'step', 'constant'))
    epochs: int = setting(50, 'passes over the training set', least=1, most=100_000)
    min_steps: int = setting(0, 'optimizer steps of the run at least: small sets get more epochs; with epochs= on the command line 0', most=100_000)  # fmt: skip
    warmup_epochs: float = setting(0.0, 'epochs of linear warm-up')
    warmup_lr: float = setting(1e-6, 'learning rate at the start of the warm-up')
    min_lr: float = setting(0.0, 'learning rate at the end of a cosine')
    decay_epochs: float = setting(10.0, 'step: epochs between two drops', least=1e-3)
    decay_rate: float = setting(0.1, 'step: factor of a drop', most=1)


@dataclass(frozen=True)
class Regularize:
    label_smoothing: float = setting(0.0, 'share of the target spread over all classes', most=0.99)
    drop_path: float = setting(0.0, 'probability of dropping a block for a whole clip', most=0.99)
    ema: float = setting(0.0, 'decay of an average of the weights, which is evaluated and saved; 0: none', most=0.99999)  # fmt: skip
    ema_warmup: bool = setting(False, 'let the decay rise from 0 to `ema`, as 1 - (1 + step)^(-2/3) (timm)')  # fmt: skip
    class_weight: str | list[float] | dict[str, float] = setting('', "factor of each class in the loss: '' (1), balanced (inverse to its videos), a list, or a table by name")  # fmt: skip  # noqa: RUF009
    freeze_bn: str = setting('none', 'batch norms kept as they are: partial leaves the first one in training, auto is all with first weights, else none', ('none', 'partial', 'all', 'auto'))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Size, precision and bookkeeping."""

    batch_size: int = setting(64, 'clips of one optimizer step, over all processes', least=1)
    accumulate: int = setting(1, 'parts in which a process computes its share of a batch', least=1)
    precision: str = setting('fp32', 'of the arithmetic', ('fp32', 'bf16', 'fp16'))
    channels_last: bool = setting(True, 'weights in channels-last order')
    compile: bool = setting(False, 'run the model through torch.compile')
    checkpointing: bool = setting(False, 'recompute each stage in the backward pass: less memory')
    cheap_recompute: bool = setting(False, 'recompute all but convolutions in the backward pass')
    sync_bn: bool = setting(False, 'batch statistics over all processes')
    seed: int = setting(0, 'of every random draw')
    eval_every: int = setting(1, 'epochs between two evaluations; the last is always evaluated', least=1)  # fmt: skip
    log_every: int = setting(10, 'steps between two lines of metrics.jsonl', least=1)
    save_minutes: float = setting(10.0, 'minutes between two checkpoints inside an epoch')  # fmt: skip
    keep: int = setting(2, 'checkpoints kept', least=1)


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run is made of.

    Raises:
        BvtamError (from `load` and `from_dict`): an unknown key, a value of another type or outside
            its range, settings that contradict each other.
    """

    model: str = setting('bvtam_r50_8x2', 'ARCH or ARCH.TAG')
    init: str = setting('', "weights to start from: '' (none), pretrained (the model's own), auto (those if they are here), imagenet, a name, a run or a zoo folder")  # fmt: skip
    num_classes: int = setting(0, 'classes; 0: as the training set has', most=MOST_CLASSES)
    model_options: dict[str, Any] = setting(dict, 'options of the model, as `bvtam info` lists them')  # fmt: skip  # noqa: RUF009
    clip: dict[str, Any] = setting(dict, "changes to the model's ClipConfig")  # noqa: RUF009
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    regularize: Regularize = field(default_factory=Regularize)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        names = [f.name for f in fields(ClipConfig)]
        for key in self.clip:
            if key not in names:
                raise BvtamError(f'recipe: unknown clip setting {key!r}{nearest(str(key), names)}')
        if self.data.path and (self.data.train or self.data.val):
            raise BvtamError('recipe: give data.path, or data.train and data.val, not both')
        if self.data.val and not self.data.train:
            raise BvtamError('recipe: data.val is given without data.train')
        if self.data.motion.family:
            if self.data.path or self.data.train:
                raise BvtamError(
                    'recipe: give data.path (or train), or data.motion.family, not both'
                )
            for name, default, _ in settings():
                if name in _NOT_FOR_MOTION and attrgetter(name)(self) != default:
                    raise BvtamError(f'recipe: {name} is not for data.motion: leave it out')
        _check_class_weight(self.regularize.class_weight)
        if self.regularize.class_weight == self.data.sampler == 'balanced':
            raise BvtamError(
                'recipe: give regularize.class_weight or data.sampler as balanced, not both'
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise BvtamError(
                f'recipe: schedule.min_lr {self.schedule.min_lr:g} is above optimizer.lr '
                f'{self.optimizer.lr:g}, from which the rate falls: make it smaller'
            )
        if self.schedule.warmup_epochs and self.schedule.warmup_lr > self.optimizer.lr > 0:
            raise BvtamError(
                f'recipe: schedule.warmup_lr {self.schedule.warmup_lr:g} is above optimizer.lr '
                f'{self.optimizer.lr:g}, to which the rate rises: make it smaller'
            )
        if self.augment.mixup and self.augment.cutmix:
            raise BvtamError('recipe: give augment.mixup or augment.cutmix, not both')

    @classmethod
    def load(cls, source: str | os.PathLike[str] = '', overrides: Iterable[str] = ()) -> Recipe:
        """A recipe by the name of one that ships (`list_recipes`) or by path, with `key=value` applied.

        Without a source: the defaults.
        """
        values: Any = {}
        if source:
            path = find_recipe(source)
            try:
                values = read_yaml(read_text(path)) or {}
            except (OSError, ValueError) as error:
                raise BvtamError(f'{path} cannot be read as YAML: {error}') from None
            if not isinstance(values, dict):
                raise BvtamError(f'{path}: a recipe is a table of settings, not {shown(values)}')
            try:
                cls.from_dict(values)
            except BvtamError as error:
                raise BvtamError(f'{path}: {error}') from None
        pairs = list(overrides)
        for pair in pairs:
            override(cls, values, pair)
        keys = {pair.partition('=')[0].rpartition('.')[2] for pair in pairs}
        if 'epochs' in keys and 'min_steps' not in keys:  # who asks for epochs gets as many
            override(cls, values, 'schedule.min_steps=0')
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`; what `values` leaves out has its default."""
        return parse(cls, values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def with_data(self, path: str) -> Recipe:
        """The recipe on another dataset."""
        data = replace(self.data, path=path, train='', val='', motion=Motion())
        return replace(self, data=data)


def _check_class_weight(value: str | list | dict) -> None:
    if value in ('', 'balanced'):
        return
    numbers = [*(value.values() if isinstance(value, dict) else value)]
    if not (all(type(x) in (int, float) and 0 <= x <= 1e9 for x in numbers) and any(numbers)):
        raise BvtamError(
            "recipe: regularize.class_weight must be balanced, '', or numbers from 0 that are not all 0, "
            f'not {shown(value)}'
        )


def list_recipes() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in RECIPES.glob('*.yaml'))


def find_recipe(source: str | os.PathLike[str]) -> Path:
    """The file of a recipe that ships, by name, or of any other, by path."""
    path = Path(source)
    shipped = RECIPES / f'{source}.yaml'
    if path.suffix in ('.yaml', '.yml'):
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such recipe')
        return path
    if not shipped.is_file():
        names = list_recipes()
        raise BvtamError(
            f'no recipe is named {source!r}{nearest(str(source), names)}; '
            f'there are {", ".join(names)}, or give the path of a .yaml file'
        )
    return shipped


def settings() -> list[tuple[str, Any, str]]:
    """(full name, default, help) of every setting of a recipe."""
    return list_settings(Recipe)
