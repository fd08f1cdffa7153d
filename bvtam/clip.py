"""ClipConfig: everything that turns a video into a model's input. It travels with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import BvtamError, nearest

SAMPLINGS = ('uniform', 'dense')
INTERPOLATIONS = ('bilinear', 'bicubic')
CROPS = (1, 3, 5, 10)
COLORS = ('tagged', 'jpeg')
_LARGEST = 10_000  # frames, pixels, views: beyond it a setting is a mistake
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClipConfig:
    """How frames are chosen, resized, cropped and normalised at test time.

    Attributes:
        num_frames: frames T of one clip.
        sampling: 'uniform' (one frame from each of T segments) or 'dense' (every `frame_stride`-th).
        frame_stride: distance between frames in 'dense' sampling, in frames of the video.
        resize: the frame's shorter side after resizing, in pixels.
        crop_size: side of the square crop, in pixels.
        interpolation: 'bilinear' or 'bicubic', both antialiased.
        mean, std: per channel, for values on [0, 1]; of one channel, frames are made grey.
        flip: whether clips may be mirrored; False where labels name directions.
        num_clips, num_crops: views of one video; their class probabilities are averaged. One crop
            is the centre, 3 lie along the longer side, 5 are the corners and the centre, 10 are
            those 5 and their mirror images, which needs `flip`.
        colors: how colours of videos are seen; images are as they are. 'tagged': as the tags of the
            video say. 'jpeg': as in JPEG files that FFmpeg extracts, which keep the components of
            the video and are read by BT.601, whatever matrix the tags name: for models that
            were trained on such files.

    Raises:
        BvtamError: a value of another type or outside its range.
    """

    num_frames: int = 16
    sampling: str = 'uniform'
    frame_stride: int = 1
    resize: int = 224
    crop_size: int = 224
    interpolation: str = 'bilinear'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    flip: bool = False
    num_clips: int = 1
    num_crops: int = 1
    colors: str = 'tagged'

    def __post_init__(self) -> None:
        for name in ('num_frames', 'frame_stride', 'resize', 'crop_size', 'num_clips', 'num_crops'):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _LARGEST:
                raise BvtamError(f'clip.{name} must be from 1 to {_LARGEST}, not {value!r}')
        for name, choices in (
            ('sampling', SAMPLINGS),
            ('interpolation', INTERPOLATIONS),
            ('colors', COLORS),
        ):
            if getattr(self, name) not in choices:
                raise BvtamError(
                    f'clip.{name} must be one of {", ".join(choices)}, not {getattr(self, name)!r}'
                )
        if type(self.flip) is not bool:
            raise BvtamError(f'clip.flip must be true or false, not {self.flip!r}')
        if self.num_crops not in CROPS:
            raise BvtamError(
                f'clip.num_crops must be one of {", ".join(map(str, CROPS))}, not {self.num_crops}'
            )
        if self.num_crops == 10 and not self.flip:
            raise BvtamError(
                'clip.num_crops 10 mirrors clips, which clip.flip false forbids; take 5 crops, '
                'or set clip.flip to true if no label names a direction'
            )
        if self.crop_size > self.resize:
            raise BvtamError(
                f'clip.crop_size {self.crop_size} is larger than clip.resize {self.resize}'
            )
        for name in ('mean', 'std'):
            value = getattr(self, name)
            numbers = isinstance(value, (list, tuple)) and all(
                type(v) in (int, float) and abs(v) <= _LARGEST for v in value
            )
            if not numbers or not value or (name == 'std' and min(value) <= 0):
                raise BvtamError(f'clip.{name} must be numbers, one per channel, not {value!r}')
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if len(self.mean) != len(self.std):
            raise BvtamError('clip.mean and clip.std must have the same length')

    @property
    def num_bytes(self) -> int:
        """Size of one view, uint8 (C, T, crop_size, crop_size)."""
        return len(self.mean) * self.num_frames * self.crop_size**2

    def with_channels(self, channels: int) -> ClipConfig:
        """For a model of `channels`: if the number differs, each gets the average mean and std."""
        if channels == len(self.mean):
            return self
        mean, std = (round(sum(values) / len(values), 6) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipConfig:
        """Inverse of `to_dict`. A key that is no field is a `BvtamError`."""
        if not isinstance(values, Mapping):
            raise BvtamError(f'clip must be a table of settings, not {values!r}')
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                raise BvtamError(f'unknown clip setting {key!r}{nearest(str(key), names)}')
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `config.json` keeps them under "clip"."""
        return asdict(self)
