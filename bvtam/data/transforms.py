"""From the frames of a video to the input of a model: test views, and random crops for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from ..clip import ClipConfig
from ..errors import BvtamError
from .directions import flip_label_map as flip_label_map
from .failures import machine_errors
from .video.memory import MAX_PIXELS
from .video.reader import Reader

TRAIN_CROPS = ('multi_scale', 'random_resized', 'random', 'center')
_SCALES = (1, 0.875, 0.75, 0.66)  # of the multi-scale crop, in shorter sides of the frame
# Its places, in quarters of the way from the top left corner to the bottom right one.
_PLACES = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]


def to_clip(frames_TCHW: Tensor, clip: ClipConfig) -> Tensor:
    """`normalize(to_crops(frames_TCHW, clip), clip)`: float32 (crops, C, T, crop_size, crop_size)."""
    return normalize(to_crops(frames_TCHW, clip), clip)


def to_crops(frames_TCHW: Tensor, clip: ClipConfig) -> Tensor:
    """Resize and crop the frames of one clip, as for a test.

    The shorter side is resized to `clip.resize` pixels and the longer one in proportion, rounded
    down (torchvision's `Resize(int)`), with antialiasing; frames of that size already stay as they
    are. One crop is the centre; three lie at start, centre and end of the longer side; five are the
    corners and the centre, in the order of torchvision's `FiveCrop`; ten are those five, then the
    mirror image of each.

    Args:
        frames_TCHW: uint8 tensor (T, C, H, W); RGB is made grey where the mean has one channel.
        clip: sizes, crops and number of channels.

    Returns:
        uint8 tensor (crops, C, T, crop_size, crop_size), of the channels of the mean.

    Raises:
        BvtamError: frames of another kind, or with another number of channels than the mean has; so
            narrow that they would be huge once resized.
    """
    _check_frames(frames_TCHW, clip)
    height, width = frames_TCHW.shape[-2:]
    longer = clip.resize * max(height, width) // min(height, width)
    if clip.resize * longer > MAX_PIXELS:
        raise BvtamError(
            f'frames of {width}x{height} pixels, resized to {clip.resize} on the shorter side, would '
            f'have {clip.resize * longer} pixels, more than {MAX_PIXELS}; crop them first'
        )
    mode = InterpolationMode(clip.interpolation)
    frames_TCHW = F.resize(frames_TCHW, [clip.resize], interpolation=mode, antialias=True)
    frames_TCHW = _in_channels(frames_TCHW, clip, 1)
    height, width = frames_TCHW.shape[-2:]
    size = clip.crop_size
    crops = torch.stack(
        [
            frames_TCHW[..., top : top + size, left : left + size].transpose(0, 1)
            for top, left in _corners(height, width, size, clip.num_crops)
        ]
    )
    return torch.cat([crops, crops.flip(-1)]) if clip.num_crops == 10 else crops


def read_crops(reader: Reader, clips: Sequence[Sequence[int]], clip: ClipConfig) -> list[Tensor]:
    """`to_crops` of each of these clips of a video, given by their frames' indices.

    A frame is cropped as soon as it is decoded: whole, one is held at a time.
    """
    frames = [index for indices in clips for index in indices]
    with machine_errors(reader.name):
        reader = reader.with_colors(clip.colors)
        crops = iter(reader.read_each(frames, partial(to_crops, clip=clip)))
        return [torch.cat(list(islice(crops, len(indices))), 2) for indices in clips]


def normalize(crops: Tensor, clip: ClipConfig, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grey levels to [0, 1], minus the mean of each channel, divided by its standard deviation.

    Args:
        crops: uint8 tensor (..., C, T, H, W), on any device; RGB is made grey where the mean has one
            channel.
        clip: `mean` and `std` of the C channels.
        dtype: of the result; computed in float32 or better, and rounded once.

    Returns:
        tensor of `dtype` and of the input's shape and device, with the channels of the mean.

    Raises:
        BvtamError: crops of another kind, or with another number of channels than the mean has.
    """
    if crops.ndim < 4 or crops.dtype != torch.uint8:
        raise BvtamError(
            f'crops must be a uint8 tensor (..., C, T, H, W), not {crops.dtype} {tuple(crops.shape)}'
        )
    crops = _in_channels(crops, clip, -4)
    mean, std = torch.tensor([clip.mean, clip.std], dtype=torch.float64)[..., None, None, None]
    # Or every batch would wait for the GPU.
    exact = {'device': crops.device, 'non_blocking': True}
    exact['dtype'] = torch.promote_types(dtype, torch.float32)
    values = crops.to(exact['dtype']).mul_((1 / (255 * std)).to(**exact))
    return values.add_((-mean / std).to(**exact)).to(dtype)


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, mirror image and colours of a clip for training; one draw for all its frames.

    Attributes:
        clip: sizes, interpolation, channels, and whether clips may be mirrored.
        crop: 'multi_scale', a crop of the authors: width and height {1, .875, .75, .66} of the
            shorter side, at most one step apart, at one of 13 fixed places; 'random_resized', of
            torchvision; 'random', of the scale of the test, anywhere; 'center', the test's.
        flip_labels: label of the mirror image of a clip, by its own label; a label that it lacks is
            never mirrored (`flip_label_map`). It takes the place of `clip.flip`.
        color_jitter: largest relative change of brightness, contrast and saturation, on [0, 1].
        rand_augment: operations of torchvision's RandAugment. Some move the picture (shear,
            translate, rotate), none mirrors it.
        rand_augment_magnitude: their strength, from 0 to 30.
        random_erasing: probability that a box, the same in all frames, takes the mean colour.
        scale: share of the frame that a 'random_resized' crop covers, smallest and largest.
        ratio: its width over its height, smallest and largest.

    Raises:
        BvtamError: a value outside its range.
    """

    clip: ClipConfig
    crop: str = 'multi_scale'
    flip_labels: Mapping[int, int] | None = None
    color_jitter: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    random_erasing: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.crop not in TRAIN_CROPS:
            raise BvtamError(f'crop must be one of {", ".join(TRAIN_CROPS)}, not {self.crop!r}')
        for name, most in (
            ('color_jitter', 1),
            ('rand_augment', 10),
            ('rand_augment_magnitude', 30),
            ('random_erasing', 1),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise BvtamError(f'{name} must be from 0 to {most}, not {getattr(self, name)!r}')
        for name, most in (('scale', 1), ('ratio', float('inf'))):
            least, largest = getattr(self, name)
            if not 0 < least <= largest <= most:
                raise BvtamError(
                    f'{name} must be two numbers above 0, the smaller first'
                    f'{", up to 1" if most == 1 else ""}, not {getattr(self, name)!r}'
                )
        if (self.color_jitter or self.rand_augment) and len(self.clip.mean) not in (1, 3):
            raise BvtamError(
                f'color_jitter and rand_augment need frames of 1 or 3 channels, not '
                f'{len(self.clip.mean)}'
            )

    def __call__(
        self, frames_TCHW: Tensor, label: int, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """One random view of a clip.

        Every draw comes from `generator`, and no other generator is touched, so that a generator in
        the same state gives the same view again.

        Args:
            frames_TCHW, label: of the clip, as of `to_crops`, in frames of any size.
            generator: on the CPU.

        Returns:
            uint8 tensor (C, T, crop_size, crop_size), contiguous, and the label of the view: that of
            `flip_labels` where it was mirrored.

        Raises:
            BvtamError: as `to_crops`.
        """
        view = self.draw(generator)
        return view.finish(view.crop(frames_TCHW), label)

    def draw(self, generator: torch.Generator) -> View:
        """The next random view, of a clip whose frames come one by one."""
        return View(self, int(torch.randint(2**63 - 1, (), generator=generator)))

    def _box(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of a random crop; None for that of the test."""
        size = self.clip.crop_size
        if self.crop == 'center':
            return None
        if self.crop == 'random_resized':
            frame = torch.empty(1, height, width, device='meta')
            return v2.RandomResizedCrop.get_params(frame, [*self.scale], [*self.ratio])
        if self.crop == 'multi_scale':
            boxes = _multi_scale_boxes(height, width, size)
            return boxes[int(torch.randint(len(boxes), ()))]
        side = max(1, round(size * min(height, width) / self.clip.resize))
        top, left = (int(torch.randint(n - side + 1, ())) for n in (height, width))
        return top, left, side, side

    @cached_property
    def _colors(self) -> Callable[[Tensor], Tensor]:
        changes = []
        if self.color_jitter:
            changes.append(v2.ColorJitter(*[self.color_jitter] * 3))
        if self.rand_augment:
            changes.append(
                v2.RandAugment(
                    self.rand_augment,
                    self.rand_augment_magnitude,
                    interpolation=InterpolationMode.BILINEAR,
                )
            )
        if self.random_erasing:
            grey = [round(255 * mean) for mean in self.clip.mean]
            changes.append(v2.RandomErasing(self.random_erasing, value=grey))
        return nn.Sequential(*changes)


class View:
    """One random view of a clip: `crop` all of its frames, at once or some at a time, then `finish`."""

    def __init__(self, transform: TrainTransform, seed: int) -> None:
        self.transform, self.seed = transform, seed
        self.size: tuple[int, int] | None = None  # of the frames that were cropped

    def crop(self, frames_TCHW: Tensor) -> Tensor:
        """(T, C, crop_size, crop_size); cropped first, so that nothing is resized in vain."""
        transform, clip = self.transform, self.transform.clip
        _check_frames(frames_TCHW, clip)
        height, width = frames_TCHW.shape[-2:]
        if self.size != (height, width):
            # torchvision draws from the global generator of the CPU, and from no other. Seeded
            # directly, since torch.manual_seed would seed the other devices too.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                self.mirror = bool(torch.rand(()) < 0.5)
                self.box = transform._box(height, width)
                self.state = torch.get_rng_state()
            self.size = height, width
            # A batch of frames stays in their order, which decides how sums in colours are rounded.
            last = frames_TCHW.stride(1) == 1
            self.order = torch.channels_last if last else torch.contiguous_format
        if self.box is None:
            return to_crops(frames_TCHW, replace(clip, num_crops=1))[0].transpose(0, 1)
        size, mode = [clip.crop_size] * 2, InterpolationMode(clip.interpolation)
        crops_TCHW = F.resized_crop(frames_TCHW, *self.box, size, mode, antialias=True)
        return _in_channels(crops_TCHW, clip, 1)

    def finish(self, crops_TCHW: Tensor, label: int) -> tuple[Tensor, int]:
        """The view of cropped frames, and its label, as `TrainTransform` gives them."""
        transform = self.transform
        if self.box is None:
            crops_TCHW = crops_TCHW.transpose(0, 1).contiguous().transpose(0, 1)
        else:
            crops_TCHW = crops_TCHW.contiguous(memory_format=self.order)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            view_TCHW = transform._colors(crops_TCHW)
        flips = transform.flip_labels
        if self.mirror and (transform.clip.flip if flips is None else label in flips):
            view_TCHW = F.horizontal_flip(view_TCHW)
            label = label if flips is None else flips[label]
        return view_TCHW.transpose(0, 1).contiguous(), label


def _multi_scale_boxes(height: int, width: int, size: int) -> list[tuple[int, int, int, int]]:
    """All (top, left, height, width) of the multi-scale crop, each as likely as any other."""
    short = min(height, width)
    sides = [max(1, int(short * scale)) for scale in _SCALES]
    # As the authors do, where it saves the resize; they then pad smaller frames, which we do not.
    sides = [size if abs(side - size) < 3 and size <= short else side for side in sides]
    return [
        (y * ((height - h) // 4), x * ((width - w) // 4), h, w)
        for i, h in enumerate(sides)
        for j, w in enumerate(sides)
        if abs(i - j) <= 1
        for y, x in _PLACES
    ]


def _corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of each crop; the centre is rounded as torchvision's `CenterCrop` does."""
    bottom, right = height - size, width - size
    top, left = round(bottom / 2), round(right / 2)
    if num_crops == 1:
        return [(top, left)]
    if num_crops == 3:
        if width >= height:
            return [(top, x) for x in (0, left, right)]
        return [(y, left) for y in (0, top, bottom)]
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (top, left)]


def _check_frames(frames_TCHW: Tensor, clip: ClipConfig) -> None:
    if frames_TCHW.ndim != 4 or frames_TCHW.dtype != torch.uint8 or not frames_TCHW.numel():
        raise BvtamError(
            'frames must be a uint8 tensor (T, C, H, W), not '
            f'{frames_TCHW.dtype} {tuple(frames_TCHW.shape)}'
        )
    _check_channels(frames_TCHW.shape[1], clip)


def _check_channels(channels: int, clip: ClipConfig) -> None:
    if (channels, len(clip.mean)) != (3, 1) and channels != len(clip.mean):
        raise BvtamError(f'clip.mean has {len(clip.mean)} channels, but the frames have {channels}')


def _in_channels(pixels: Tensor, clip: ClipConfig, dim: int) -> Tensor:
    """uint8 pixels with the channels of the mean at `dim`; grey levels are those of PIL's mode L."""
    _check_channels(pixels.shape[dim], clip)
    if pixels.shape[dim] == len(clip.mean):
        return pixels
    red, green, blue = pixels.int().split(1, dim)
    return (red * 19595 + green * 38470 + blue * 7471 + (1 << 15) >> 16).to(torch.uint8)


def check_channels(name: str, clip: ClipConfig, model: nn.Module | None = None) -> None:
    """Raises a `BvtamError` where frames of videos cannot be the input of a model.

    It takes neither three channels nor one, or `clip` makes its clips for another number. `name` is its
    name in messages.
    """
    channels = getattr(model, 'in_chans', len(clip.mean))
    if channels not in (1, 3):
        raise BvtamError(
            f'{name} takes {channels} channels, and a video has 3, or 1 where it is made grey: give '
            f'it tensors (B, {channels}, T, H, W) in Python, model(clip)'
        )
    if channels != len(clip.mean):
        raise BvtamError(
            f'{name} takes {channels} channel{"s" * (channels > 1)}, but clip.mean and clip.std are '
            f'of {len(clip.mean)}: give one number for each channel'
        )
