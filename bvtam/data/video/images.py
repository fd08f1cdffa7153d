"""Images as RGB, upright, and videos that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ...errors import BvtamError
from ...files import open_regular
from ..failures import machine_error, memory_is_short
from .memory import MAX_PIXELS
from .reader import Reader, VideoError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.ppm')
_STRIP_PIXELS = 1 << 22


class EvenFrames(Reader):
    """Frames that follow each other at a fixed rate."""

    def __init__(self, name: str, fps: float) -> None:
        if not 0 < fps < float('inf'):
            raise BvtamError(f'{name}: fps must be above 0, not {fps}')
        self.name, self._fps = name, float(fps)

    @property
    def fps(self) -> float:
        return self._fps

    @property
    def times(self) -> Tensor:
        return torch.arange(self.num_frames, dtype=torch.float64) / self._fps

    @property
    def duration(self) -> float:
        return self.num_frames / self._fps


class ImageFrames(EvenFrames):
    """Frames that are images, which need not be of one size: all are scaled to that of the first.

    A subclass has `num_frames`, `_size` (height and width of the first image) and `_image`.
    """

    _size: list[int]

    def _image(self, index: int) -> Tensor:
        """uint8 RGB (C, H, W)."""
        raise NotImplementedError

    def _read(self, indices: list[int]) -> Tensor:
        pictures = {}
        for index in set(indices):
            picture = self._image(index)
            if list(picture.shape[1:]) != self._size:
                picture = resize(picture, self._size)
            pictures[index] = picture
        return torch.stack([pictures[index] for index in indices])


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """An image of which the header is read; what fails then is told as a `VideoError`."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(
                    f'{path} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}; '
                    'make it smaller'
                )
            yield image
    except BvtamError as error:
        raise VideoError(error) from None
    except (
        *(OSError, ValueError, SyntaxError, EOFError, MemoryError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        # Pillow has no memory for what a damaged image asks for, either.
        if not isinstance(error, MemoryError) or memory_is_short():
            lack = machine_error(error, str(path))
            if lack is not None:
                raise lack from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VideoError(f'{path} cannot be read ({reason}); extract it again') from None


def read_image(path: Path) -> Tensor:
    """uint8 RGB (C, H, W), upright as its EXIF says."""
    with open_image(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_pixels(image)


def to_pixels(image: Image.Image) -> Tensor:
    """uint8 RGB (C, H, W)."""
    if image.mode.startswith('I;16'):  # grey, of which PIL would clip what is above 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode != 'RGB':
        image = image.convert('RGB')
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, step):  # whole, Pillow would make two copies on the way
        strip = image.crop((0, top, image.width, min(top + step, image.height)))
        pixels[top : top + step] = np.asarray(strip)
    return torch.from_numpy(pixels).permute(2, 0, 1)
