"""A training run as data: typed, nested settings, read from YAML and checked before anything runs.

A recipe names every setting that moves the numbers of a run. The file is YAML with the sections
below; `key=value` overrides one setting, by its full name (`optimizer.lr=0.02`) or by its last part
where only one setting has it (`lr=0.02`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..clip import ClipConfig
from ..data.motion.clips import FAMILIES
from ..errors import BvtamError, nearest, shown
from ..files import read_text
from .counts import MOST_CLASSES

RECIPES = Path(__file__).parents[1] / 'recipes'


def _meta(help: str, choices: tuple = (), least: float = 0, most: float = 1e9) -> dict[str, Any]:
    return {'help': help, 'choices': choices, 'least': least, 'most': most}


def _setting(default: Any, help: str, choices: tuple = (), least: float = 0, most: float = 1e9):
    return field(default=default, metadata=_meta(help, choices, least, most))


@dataclass(frozen=True)
class Motion:
    """Procedural clips (see `data/motion/`), rendered as they are needed, in place of videos."""

    family: str = _setting('', "classes to render; '': train on videos", ('', *FAMILIES))
    clips: int = _setting(9600, 'training clips of an epoch; none comes twice', least=1)
    val_clips: int = _setting(1000, 'validation clips', least=1, most=1_000_000)
    encode: float = _setting(0.0, 'share of the training clips that go through H.264', most=1)
    two_lengths: bool = _setting(False, 'every other batch has half as many frames, at random')
    held_out: bool = _setting(False, 'motions and textures that weights in the zoo never saw')


@dataclass(frozen=True)
class Data:
    """Where the videos are, and what happens to those that cannot be read."""

    path: str = _setting('', 'data set: class folders, a list or annotations, with train and val')
    train: str = _setting('', 'training set by itself, instead of `path`')
    val: str = _setting('', 'validation set by itself; none where `train` is given alone')
    root: str = _setting('', 'where the paths in a list start (default: the folder of the list)')
    urls: bool = _setting(False, 'let a list name addresses of videos, not local files alone')
    frames: str = _setting('', 'frames in folders of images: img_{:05d}.jpg, img_*.jpg (default: by number)')  # fmt: skip
    fps: float = _setting(0.0, 'frames a second of folders of images; 0: 25', most=1000)
    val_share: float = _setting(
        0.2, 'share of each class held out, if `path` has no split', most=0.9
    )
    on_error: str = _setting('substitute', 'what a damaged video does', ('substitute', 'raise'))
    max_failed: float = _setting(0.1, 'share of the videos that may fail', most=1)
    time_limit: float = _setting(60.0, 'seconds that a video may stall', least=0.1)
    sampler: str = _setting('shuffle', 'an epoch has each video once, or as many drawn so that all classes are as frequent', ('shuffle', 'balanced'))  # fmt: skip
    workers: int = _setting(2, 'decoding processes per training process', most=256)
    motion: Motion = field(default_factory=Motion)


@dataclass(frozen=True)
class Augment:
    """Random changes to a clip, one draw for all of its frames, and to a batch."""

    crop: str = _setting('multi_scale', 'training crop', ('multi_scale', 'random_resized', 'random', 'center'))  # fmt: skip
    flip: str = _setting('auto', 'mirror clips; auto: where label names name directions, swap them, or mirror no such clip', ('auto', 'on', 'off'))  # fmt: skip
    offsets: str = _setting('shared', 'uniform frames: one offset for all segments, or one in each', ('shared', 'segment'))  # fmt: skip
    color_jitter: float = _setting(0.0, 'strength of brightness, contrast and saturation', most=1)
    rand_augment: int = _setting(0, 'RandAugment operations per clip', most=10)
    rand_augment_magnitude: int = _setting(9, 'their strength', most=30)
    random_erasing: float = _setting(0.0, 'probability of erasing a box', most=1)
    mixup: float = _setting(0.0, 'alpha of mixup; 0: off', most=100)
    cutmix: float = _setting(0.0, 'alpha of CutMix, the same box in all frames; 0: off', most=100)


@dataclass(frozen=True)
class Optimizer:
    """By timm's factory (`sgd` has Nesterov's momentum, `momentum` the plain one)."""

    name: str = _setting('sgd', "timm's name of the optimizer: sgd, momentum, adamw, ...")
    lr: float = _setting(0.01, 'learning rate at the top of the schedule')
    momentum: float = _setting(0.9, 'momentum of SGD', most=0.99999)
    weight_decay: float = _setting(5e-4, 'weight decay')
    decay_all: bool = _setting(True, 'decay norms and biases too, as the paper does')
    layer_decay: float = _setting(1.0, 'learning rate factor from one layer to the one before', least=1e-3, most=1)  # fmt: skip
    head_lr: float = _setting(1.0, 'learning rate factor of the classifier')
    clip_grad: float = _setting(0.0, 'largest global gradient norm; 0: no clipping')


@dataclass(frozen=True)
class Schedule:
    """By timm's factory; the rate changes with every step."""

    name: str = _setting('cosine', 'how the learning rate falls', ('cosine', 'step', 'constant'))
    epochs: int = _setting(50, 'passes over the training set', least=1, most=100_000)
    warmup_epochs: float = _setting(0.0, 'epochs of linear warm-up')
    warmup_lr: float = _setting(1e-6, 'learning rate at the start of the warm-up')
    min_lr: float = _setting(0.0, 'learning rate at the end of a cosine')
    decay_epochs: float = _setting(10.0, 'step: epochs between two drops', least=1e-3)
    decay_rate: float = _setting(0.1, 'step: factor of a drop', most=1)


@dataclass(frozen=True)
class Regularize:
    label_smoothing: float = _setting(0.0, 'share of the target spread over all classes', most=0.99)
    drop_path: float = _setting(0.0, 'probability of dropping a block for a whole clip', most=0.99)
    ema: float = _setting(0.0, 'decay of an average of the weights, which is evaluated and saved; 0: none', most=0.99999)  # fmt: skip
    ema_warmup: bool = _setting(False, 'let the decay rise from 0 to `ema`, as 1 - (1 + step)^(-2/3) (timm)')  # fmt: skip
    class_weight: str | list[float] | dict[str, float] = _setting('', "factor of each class in the loss: '' (1), balanced (inverse to its videos), a list, or a table by name")  # fmt: skip  # noqa: RUF009
    freeze_bn: str = _setting('none', 'batch norms kept as they are: partial leaves the first one in training', ('none', 'partial', 'all'))  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Size, precision and bookkeeping."""

    batch_size: int = _setting(64, 'clips of one optimizer step, over all processes', least=1)
    accumulate: int = _setting(1, 'parts in which a process computes its share of a batch', least=1)
    precision: str = _setting('fp32', 'of the arithmetic', ('fp32', 'bf16', 'fp16'))
    channels_last: bool = _setting(True, 'weights in channels-last order')
    compile: bool = _setting(False, 'run the model through torch.compile')
    checkpointing: bool = _setting(False, 'recompute each stage in the backward pass: less memory')
    cheap_recompute: bool = _setting(False, 'recompute all but convolutions in the backward pass')
    sync_bn: bool = _setting(False, 'batch statistics over all processes')
    seed: int = _setting(0, 'of every random draw')
    eval_every: int = _setting(1, 'epochs between two evaluations; the last is always evaluated', least=1)  # fmt: skip
    log_every: int = _setting(10, 'steps between two lines of metrics.jsonl', least=1)
    save_minutes: float = _setting(10.0, 'minutes between two checkpoints inside an epoch')  # fmt: skip
    keep: int = _setting(2, 'checkpoints kept', least=1)


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run is made of.

    Raises:
        BvtamError (from `load` and `from_dict`): an unknown key, a value of another type or outside
            its range, settings that contradict each other.
    """

    model: str = _setting('bvtam_r50_8x2', 'ARCH or ARCH.TAG')
    init: str = _setting('', "weights to start from: '' (none), pretrained (the model's own), auto (those if they are here), imagenet, a name, a run or a zoo folder")  # fmt: skip
    num_classes: int = _setting(0, 'classes; 0: as the training set has', most=MOST_CLASSES)
    model_options: dict[str, Any] = field(
        default_factory=dict, metadata=_meta('options of the model, as `bvtam info` lists them')
    )
    clip: dict[str, Any] = field(
        default_factory=dict, metadata=_meta("changes to the model's ClipConfig")
    )
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
            # Their scenes vary enough; of the rest only what works on batches is there.
            unused = {f'augment.{f.name}' for f in fields(Augment)} - {
                'augment.mixup',
                'augment.cutmix',
            }
            unused |= {'data.frames', 'data.fps', 'data.sampler'}
            for name, default, _ in settings():
                section, _, key = name.rpartition('.')
                if name in unused and getattr(getattr(self, section), key) != default:
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
        for pair in overrides:
            _override(values, pair)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`; what `values` leaves out has its default."""
        return _parse(cls, values, '')

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def with_data(self, path: str) -> Recipe:
        """The recipe on another dataset."""
        data = replace(self.data, path=path, train='', val='', motion=Motion())
        return replace(self, data=data)


def _check_class_weight(value: str | list | dict) -> None:
    numbers = [*(value.values() if isinstance(value, dict) else value)]
    if isinstance(value, str):
        fits = value in ('', 'balanced')
    else:
        fits = all(type(x) in (int, float) and 0 <= x <= 1e9 for x in numbers) and any(numbers)
    if not fits:
        raise BvtamError(
            "recipe: regularize.class_weight must be balanced, '', or numbers from 0 that are not all 0, "
            f'not {shown(value)}'
        )


def read_yaml(text: str) -> Any:
    """The value of a YAML text, which may be of a stranger.

    Raises:
        ValueError: it is no YAML, too long or too deep, or its aliases stand for too much.
    """
    if len(text) > _LONGEST:
        raise ValueError(f'it has {len(text):,} characters, and a recipe at most {_LONGEST:,}')
    try:
        _written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError('its lists and tables are nested too deeply') from None


_LONGEST, _MOST_NODES = 200_000, 20_000


def _written_out(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Values in a tree of YAML, those of an alias as often as it is used; each is visited once."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES  # for an alias inside of what it stands for
        inner = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_written_out(child, sizes) for child in inner)
        if sizes[id(node)] > _MOST_NODES:
            raise ValueError(f'its aliases stand for more than {_MOST_NODES:,} values')
    return sizes[id(node)]


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


def settings(cls: type = Recipe, prefix: str = '') -> list[tuple[str, Any, str]]:
    """(full name, default, help) of every setting, for documentation and for `key=value`."""
    found = []
    for f in fields(cls):
        kind = get_type_hints(cls)[f.name]
        if is_dataclass(kind):
            found += settings(kind, f'{prefix}{f.name}.')
        else:
            default = {} if f.name in ('clip', 'model_options') else f.default
            choices = f.metadata['choices']
            text = f.metadata['help'] + (f' ({", ".join(choices)})' if choices else '')
            found.append((prefix + f.name, default, text))
    return found


def _override(values: dict[str, Any], pair: str) -> None:
    key, found, text = pair.partition('=')
    if not found or not key:
        raise BvtamError(f'{pair!r} is no setting: write KEY=VALUE, as in lr=0.01')
    names = [name for name, _, _ in settings()]
    if key not in names and key.partition('.')[0] not in ('clip', 'model_options'):
        matches = [name for name in names if name.rpartition('.')[2] == key]
        if len(matches) != 1:
            parts = [*names, *(name.rpartition('.')[2] for name in names)]
            hint = f': {" or ".join(matches)}' if matches else nearest(key, parts)
            raise BvtamError(f'unknown setting {key!r}{hint}')
        (key,) = matches
    try:
        value = read_yaml(text) if text else ''
    except ValueError:
        value = text
    *sections, last = key.split('.', 1) if key.startswith('clip.') else key.split('.')
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise BvtamError(f'recipe: {section} must be a table of settings, not {shown(inner)}')
        values = inner
    values[last] = value


def _parse(cls: type, values: Any, where: str) -> Any:
    """`values` as an instance of the dataclass `cls`; `where` is its place in the recipe."""
    if not isinstance(values, Mapping):
        raise BvtamError(
            f'recipe: {where.rstrip(".") or "it"} must be a table of settings, not {shown(values)}'
        )
    kinds = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    parsed = {}
    for key, value in values.items():
        if key not in known:
            inner = {name.rpartition('.')[2]: name for name, _, _ in settings()}
            meant = f'; did you mean {inner[key]}?' if key in inner else ''
            near = nearest(str(key), known) or meant
            raise BvtamError(f'recipe: unknown setting {where}{key}{near}')
        if is_dataclass(kinds[key]):
            parsed[key] = _parse(kinds[key], value, f'{where}{key}.')
        else:
            parsed[key] = _value(value, kinds[key], known[key].metadata, where + key)
    return cls(**parsed)


def _value(value: Any, kind: Any, meta: Mapping[str, Any], name: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML 1.1 takes 1e-3 for a string
        with suppress(ValueError):
            value = float(value)
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if kind is str and type(value) in (int, float, type(None)):  # a folder may be named 2024
        value = '' if value is None else str(value)
    if kind is str and type(value) is bool and meta['choices']:  # and off for false
        value = 'on' if value else 'off'
    if isinstance(kind, UnionType) and isinstance(
        value, tuple(get_origin(k) or k for k in get_args(kind))
    ):
        return value
    plain = dict if kind not in (str, int, float, bool) else kind
    if type(value) is not plain:
        wanted = {dict: 'a table', str: 'a string', int: 'a whole number', float: 'a number'}
        raise BvtamError(
            f'recipe: {name} must be {wanted.get(plain, "true or false")}, not {shown(value)}'
        )
    if meta['choices'] and value not in meta['choices']:
        raise BvtamError(
            f'recipe: {name} must be one of {", ".join(meta["choices"])}, not {shown(value)}'
        )
    if kind in (int, float) and not meta['least'] <= value <= meta['most']:
        raise BvtamError(
            f'recipe: {name} must be from {meta["least"]:g} to {meta["most"]:g}, not {shown(value)}'
        )
    return value
