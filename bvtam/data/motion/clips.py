"""Procedural clips in which the order of the frames is everything.

Each clip shows textured objects on a textured background, with swinging distractors, a shaking camera,
changing light and sensor noise (`scene.py`), or a hand in front of something like a photograph
(`stroke.py`). Its class is a motion (family 'direction'), two motions, one after the other in two shots of
independent scenes (family 'order'), or a path that the hand draws (family 'stroke').

**What the classes are bounded by.** A frame is a pure function of its scene and of its number within
the shot, and a class only decides in which order frames are played:

- The reverse of a motion, or of a path, plays the frames of a shot from the last to the first. A model that classifies
  frames one by one and averages, as TSN does, sees the same set in both cases: it gives both clips
  the same scores, and is right for one of the two at most.
- The classes 'a_then_b' and 'b_then_a' play the same two shots, and swap them. The cut lies between
  pairs of frames (2k, 2k + 1), and the lengths of the two shots are exchanged with them, so both clips
  consist of the same pairs. bLVNet without a temporal operator (`temporal='none'`) sees each pair by
  itself and averages: it knows 'a' and 'b' at best, but never which came first.

Motion, speed and phase run over the frames of a shot, whatever its place. Everything else (shake, light,
noise, distractors) is as likely forwards as backwards and independent of the class, so that no drift
gives the direction away. `MotionClips.bound` gives the highest accuracy that is left.

The bounds hold for models that see every frame, or frames chosen symmetrically about the middle of the
clip. A clip sampled from a longer one of V frames needs V / T odd for the first, and `cut_unit` a
multiple of 2V / T for the second.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import BvtamError, nearest
from ..list_formats import SPLITS
from ..video.memory import shared_number
from .h264 import CODECS, check_even, recode
from .paint import SHAPES, TEXTURES, child, mix, uniform
from .scene import PAIRS, Frames, Renderer, Shots
from .stroke import STROKES, StrokeRenderer

FAMILIES = ('direction', 'order', 'stroke', 'shapes', 'all')
MOTIONS = tuple(name for pair in PAIRS for name in pair)
_NAMES = MOTIONS + tuple(name for pair in STROKES for name in pair)
HELD_OUT_MOTIONS = MOTIONS[16:]
HELD_OUT_TEXTURES = TEXTURES[4:]
_INDICES, _SEEDS = 1 << 32, 1 << 29


class MotionClips(Dataset):
    """Clips rendered on demand, each a pure function of the settings, the seed and its index.

    The same index gives the same bytes, alone and in any batch. With another label it gives the same
    scenes, moved as that label says. Clips of different seeds or splits never share a scene: seed, split
    and index make up one 64-bit number, from which all else follows by a bijection.

    Args:
        num_frames: frames T of a clip, even.
        size: side of the frames, or (height, width), in pixels; 16 or more.
        family: 'direction', 'order' or 'stroke'; 'shapes' for the classes of the first two, 'all' for
            those of all three.
        seed: from 0 to 2**29 - 1.
        split: 'train', 'val' or 'test': three streams of clips without a common scene.
        length: clips in one epoch of the dataset; `set_epoch` moves on to the next ones.
        motions: motions of the direction family, names out of `MOTIONS`, in whole pairs.
        order_motions: motions of which the order family takes all pairs of two different ones.
        textures, shapes: names out of `TEXTURES` and `SHAPES` that scenes may use.
        held_out: by default, `HELD_OUT_MOTIONS` and `HELD_OUT_TEXTURES` are left out; with
            `held_out=True` these are the ones used, to study transfer to what was never seen.
        encode: share of clips that go through a codec, each frame by itself (see `recode`): H.264, and
            MPEG-4 or Motion JPEG for some of the family 'stroke'.
        cut_unit: both shots of the order family are a multiple of this many frames long, even.
        strokes: clips of each class of the family 'stroke' for one of every other class.

    Attributes:
        label_names: names of the K classes, sorted, as they are when read from class folders.
        partner: for each class the one that it is told from by the order of frames alone: the
            reverse motion, or the two shots swapped.

    Raises:
        BvtamError: a setting outside its range, or an unknown name.
    """

    def __init__(
        self,
        num_frames: int = 16,
        size: int | tuple[int, int] = 64,
        family: str = 'direction',
        seed: int = 0,
        *,
        split: str = 'train',
        length: int = 10_000,
        motions: Sequence[str] | None = None,
        order_motions: Sequence[str] | None = None,
        textures: Sequence[str] | None = None,
        shapes: Sequence[str] = SHAPES,
        held_out: bool = False,
        encode: float = 0.0,
        cut_unit: int = 2,
        strokes: int = 1,
    ) -> None:
        if motions is None:
            motions = HELD_OUT_MOTIONS if held_out else MOTIONS[:16]
        if order_motions is None:
            order_motions = (
                ('orbit_clockwise', 'orbit_anticlockwise', 'open', 'close')
                if held_out
                else ('right', 'left', 'grow', 'shrink')
            )
        if textures is None:
            textures = HELD_OUT_TEXTURES if held_out else TEXTURES[:4]
        height, width = (size, size) if isinstance(size, int) else size
        for name, value, choices in (('family', family, FAMILIES), ('split', split, SPLITS)):
            if value not in choices:
                raise BvtamError(f'{name} must be one of {", ".join(choices)}, not {value!r}')
        for name, value, low, high in (
            ('num_frames', num_frames, 2, 10_000),
            ('size', min(height, width), 16, 10_000),
            ('seed', seed, 0, _SEEDS - 1),
            ('length', length, 1, _INDICES),
            ('encode', encode, 0, 1),
            ('cut_unit', cut_unit, 2, 10_000),
            ('strokes', strokes, 1, 100),
        ):
            if not low <= value <= high:
                raise BvtamError(f'{name} must be from {low} to {high}, not {value}')
        if num_frames % 2 or cut_unit % 2:
            raise BvtamError(
                f'num_frames and cut_unit must be even, not {num_frames} and {cut_unit}'
            )
        if encode:
            check_even('encode', height, width)
        self._options = {
            'size': size, 'family': family, 'seed': seed, 'split': split, 'length': length,
            'motions': motions, 'order_motions': order_motions, 'textures': textures,
            'shapes': shapes, 'held_out': held_out, 'encode': encode, 'cut_unit': cut_unit,
            'strokes': strokes,
        }  # fmt: skip
        self.num_frames, self.size, self.family = num_frames, [height, width], family
        self.seed, self.split, self.length = seed, split, length
        self.encode, self.cut_unit, self.strokes = encode, cut_unit, strokes

        played, ordered, drawn = [], [], []
        if family in ('direction', 'shapes', 'all'):
            played = _positions('motions', motions, MOTIONS)
        for motion in played:
            if motion ^ 1 not in played:
                raise BvtamError(
                    f'motions has {MOTIONS[motion]!r} but not its reverse {MOTIONS[motion ^ 1]!r}'
                )
        if family in ('order', 'shapes', 'all'):
            parts = _positions('order_motions', order_motions, MOTIONS)
            ordered = [(a, b) for a in parts for b in parts if a != b]
            if not ordered:
                raise BvtamError('order_motions must have two motions or more')
            if num_frames < 2 * cut_unit or num_frames % cut_unit:
                raise BvtamError(
                    f'num_frames {num_frames} must be a multiple of cut_unit {cut_unit}, '
                    'twice of it or more'
                )
        if family in ('stroke', 'all'):
            drawn = list(range(len(MOTIONS), len(_NAMES)))
        named = {
            '_then_'.join(_NAMES[motion] for motion in shots if motion >= 0): shots
            for shots in [(motion, -1) for motion in played + drawn] + ordered
        }
        self.label_names = sorted(named)  # as class folders are
        classes = [named[name] for name in self.label_names]
        partners = [(a ^ 1, b) if b < 0 else (b, a) for a, b in classes]
        self.partner = [classes.index(shots) for shots in partners]
        self._classes = torch.tensor(classes)
        by_hand = self._classes[:, 0] >= len(MOTIONS)
        self._cycle = torch.cat(
            [torch.arange(len(classes)), *[by_hand.nonzero()[:, 0]] * (strokes - 1)]
        )
        _positions('textures', textures, TEXTURES)
        _positions('shapes', shapes, SHAPES)
        self.textures, self.shapes = list(textures), list(shapes)
        self._renderer = Renderer(height, width, self.textures, self.shapes)
        self._strokes = StrokeRenderer(height, width) if drawn else None
        self._epoch = shared_number()  # workers see it change

    def of_length(self, num_frames: int) -> MotionClips:
        """The same clips in another number of frames."""
        return MotionClips(num_frames, **self._options)

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    def bound(self, view: str) -> float:
        """The highest expected accuracy, on [0, 1] and with equally many clips of every class, of a model
        that averages scores over parts seen one by one: `view` is 'frame' or 'pair'."""
        if view not in ('frame', 'pair'):
            raise BvtamError(f'view must be frame or pair, not {view!r}')
        shown = self._classes.sort(1).values
        if view == 'frame':
            shown = shown.div(2, rounding_mode='floor')
        return len(shown.unique(dim=0)) / self.num_classes

    def labels(self, indices: Tensor) -> Tensor:
        """The classes (B,) that the clips at `indices` (B,) have unless others are asked of `render`."""
        return self._cycle[indices % len(self._cycle)]

    def render(
        self, indices: Sequence[int] | Tensor, labels: Sequence[int] | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Renders the clips at `indices`, in one go.

        Args:
            indices: B numbers from 0 to 2**32 - 1.
            labels: their classes; by default index % K, so that successive clips have all classes (with
                `strokes`, those of strokes come again before the next round).

        Returns:
            uint8 RGB tensor (B, C, T, H, W), and int64 labels (B,).

        Raises:
            BvtamError: an index or a label out of range, or labels of another number.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if labels is None:
            labels = self.labels(indices)
        labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        if len(labels) != len(indices):
            raise BvtamError(f'{len(labels)} labels for {len(indices)} clips')
        for name, values, end in (
            ('index', indices, _INDICES),
            ('label', labels, self.num_classes),
        ):
            if len(values) and not 0 <= values.min() <= values.max() < end:
                raise BvtamError(f'every {name} must be from 0 to {end - 1}')
        keys = mix((self.seed << 34 | SPLITS.index(self.split) << 32) + indices)
        shots, frames = self._play(keys, labels)
        clips = self._draw(shots, frames)
        clips = clips.unflatten(0, (len(indices), self.num_frames)).transpose(1, 2).contiguous()
        if self.encode:
            chance, quality, other = uniform(child(keys, 2), 3).unbind(1)
            codec = torch.where(self._classes[labels, 0] < len(MOTIONS), 0, (other * 4).long() - 1)
            for i in (chance < self.encode).nonzero()[:, 0].tolist():
                clips[i] = recode(clips[i], 20 + int(16 * quality[i]), CODECS[codec[i].clamp(0)])
        return clips, labels

    def _draw(self, shots: Shots, frames: Frames) -> Tensor:
        """uint8 (F, 3, H, W): each shot by the renderer that knows its motion."""
        if self._strokes is None:
            return self._renderer.render(shots, frames)
        by_hand = shots.pairs >= len(PAIRS)
        out = torch.empty(len(frames.shot), 3, *self.size, dtype=torch.uint8)
        for renderer, own, first in (
            (self._renderer, ~by_hand, 0),
            (self._strokes, by_hand, len(PAIRS)),
        ):
            if own.any():
                shown = own[frames.shot]
                shot, number, phase = (column[shown] for column in frames)
                part = Frames((own.cumsum(0) - 1)[shot], number, phase)
                chosen = Shots(shots.keys[own], shots.pairs[own] - first)
                out[shown] = renderer.render(chosen, part)
        return out

    def _play(self, keys: Tensor, labels: Tensor) -> tuple[Shots, Frames]:
        """The shots of all clips, and their frames in the order in which they are shown."""
        motions = self._classes[labels]
        single, swapped = motions[:, 1] < 0, motions[:, 0] > motions[:, 1]
        # A shot belongs to its motion, not to its place: 0 is that of the lower number.
        motions = torch.where((swapped & ~single)[:, None], motions.flip(1), motions)
        first = (swapped & ~single).long()
        units = self.num_frames // self.cut_unit
        least = max(1, units // 2 - units // 8)
        span = units - 2 * least + 1  # symmetric about the middle
        cut = self.cut_unit * (least + (uniform(child(keys, 3), 1)[:, 0] * span).long())
        lengths = torch.stack([cut, self.num_frames - cut], 1)
        lengths[single] = torch.tensor([self.num_frames, 0])

        clip = torch.arange(len(keys))[:, None]
        place = torch.arange(self.num_frames)[None]
        opening = lengths[clip[:, 0], first][:, None]
        shot = torch.where(place < opening, first[:, None], 1 - first[:, None])
        place = torch.where(place < opening, place, place - opening)
        length = lengths[clip, shot]
        number = torch.where(motions[clip, shot] % 2 == 1, length - 1 - place, place)
        used = motions >= 0
        row = used.flatten().cumsum(0).view(-1, 2) - 1
        shots = Shots(child(keys[:, None], torch.arange(2))[used], (motions // 2)[used])
        phase = (number + 0.5).double() / length
        return shots, Frames(row[clip, shot].flatten(), number.flatten(), phase.flatten())

    def settings(self) -> dict[str, Any]:
        """All that the clips depend on, as plain values."""
        names = ('num_frames', 'size', 'family', 'seed', 'split', 'label_names')
        names += ('textures', 'shapes', 'encode', 'cut_unit', 'strokes')
        return {name: getattr(self, name) for name in names}

    def set_epoch(self, epoch: int) -> None:
        """Epoch e of the dataset holds the clips from e * length on; worker processes see it too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a training video, as `VideoDataset` gives it: 'clip' is uint8 (C, T, H, W)."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The samples of one batch, rendered together; a `DataLoader` calls this by itself."""
        indices = list(indices)
        if any(not 0 <= i < self.length for i in indices):
            raise IndexError(f'the dataset has clips 0 to {self.length - 1}')
        start = self._epoch.item() * self.length
        clips, labels = self.render([start + i for i in indices])
        return [
            {
                'clip': clip,
                'label': label,
                'index': i,
                'video': f'motion/{self.split}/{self.seed}/{start + i}',
                'frames': list(range(self.num_frames)),
                'failed': [],
            }
            for clip, label, i in zip(clips, labels.tolist(), indices, strict=True)
        ]


class TwoLengths(Dataset):
    """Motion clips of which every other batch, at random, has half as many frames.

    Weights trained on them serve both lengths: a motion takes twice as many frames of the longer one,
    and a model that has seen one speed alone does not know the other.

    `clips` are of the longer length, a multiple of 4 frames.
    """

    def __init__(self, clips: MotionClips) -> None:
        self.clips = [clips, clips.of_length(clips.num_frames // 2)]

    def set_epoch(self, epoch: int) -> None:
        for clips in self.clips:
            clips.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.clips[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        indices, first = list(indices), getattr(indices, 'first', None)
        # Not by the index itself: labels repeat by the number of classes, and its remainder tells them.
        draw = random.Random(
            f'{self.clips[0]._epoch.item()},{indices[0] if first is None else first}'
        )
        return draw.choice(self.clips).__getitems__(indices)


def _positions(option: str, names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            raise BvtamError(f'{option} has the unknown name {name!r}{nearest(str(name), known)}')
    if not names or len(set(names)) < len(names):
        raise BvtamError(f'{option} must have names, each once, not {", ".join(names) or "none"}')
    return [known.index(name) for name in names]
