"""Videos that the program holds: the bytes of a file, an open file, a list of images."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ...errors import BvtamError
from ..failures import machine_error
from .folders import _EvenFrames, _pixels
from .memory import MAX_PIXELS
from .pipes import _LONGEST, _PIECE
from .reader import Reader, VideoError


def source_name(source: Any) -> str:
    """What a video is called in results: its path or address as given, where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return 'bytes'
    if isinstance(source, (list, tuple)):
        return 'images'
    name = getattr(source, 'name', None)
    if isinstance(source, Reader) or (is_file(source) and isinstance(name, str)):
        return name
    return 'file' if is_file(source) else 'array'


def is_file(source: Any) -> bool:
    return callable(getattr(source, 'read', None)) and not isinstance(source, Reader)


def is_one(source: Any) -> bool:
    """Whether it is a video by itself where several may be given."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or is_file(source)


def copied(source: bytes | bytearray | memoryview | BinaryIO) -> str:
    """Path of a new temporary file with all bytes, of an open file those from where it stands on.

    The file is left open. Whoever calls removes the copy.

    Raises:
        BvtamError: a file that is open for text.
        VideoError: nothing in it, more than 4 GB, or an error while it is read.
        MachineError: the temporary folder is full.
    """
    name, path = source_name(source), None
    file = source if is_file(source) else io.BytesIO(source)
    try:
        target, path = tempfile.mkstemp(prefix='bvtam-')
        with open(target, 'wb') as copy:
            while piece := file.read(_PIECE):
                if isinstance(piece, str):
                    raise BvtamError(f"{name} is open for text; open it with open(path, 'rb')")
                if copy.tell() + len(piece) > _LONGEST:
                    raise VideoError(f'{name} has more than {_LONGEST >> 30} GB; give its path')
                copy.write(piece)
            if not copy.tell():
                raise VideoError(f'{name} is empty (0 bytes), or was read to its end: seek(0)')
        return path
    except BaseException as error:
        if path is not None:
            os.unlink(path)
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, BvtamError):
            raise machine_error(error, name) or VideoError(
                f'{name} cannot be read ({error}); give a binary file that is open for reading'
            ) from None
        raise


class FrameList(_EvenFrames):
    """Frames in memory: PIL images, or uint8 arrays, RGB (H, W, 3) or (3, H, W), or grey (H, W).

    Those of another size than the first one are scaled to that.

    Args:
        frames: the frames.
        fps: frames a second.
        name: for messages.

    Raises:
        BvtamError: no frame, or one of another kind.
        VideoError: from all, an image that cannot be decoded.
    """

    def __init__(self, frames: Sequence[Any], fps: float = 25.0, name: str = 'images') -> None:
        super().__init__(name, fps)
        self.frames = list(frames)
        if not self.frames:
            raise BvtamError(f'{name}: the list holds no frame')
        for number, frame in enumerate(self.frames):
            self._check(number, frame)
        self._size = list(self._frame(0).shape[1:])
        self.frame_pixels = math.prod(self._size)

    def _check(self, number: int, frame: Any) -> None:
        where = f'{self.name}: frame {number}'
        if isinstance(frame, Image.Image):
            size = frame.size
        elif (
            isinstance(frame, (np.ndarray, Tensor))
            and frame.dtype in (np.uint8, torch.uint8)
            and (frame.ndim == 2 or (frame.ndim == 3 and 3 in (frame.shape[0], frame.shape[2])))
        ):
            size = frame.shape[1:] if frame.ndim == 3 and frame.shape[0] == 3 else frame.shape[:2]
        else:
            raise BvtamError(
                f'{where} is no PIL image and no uint8 array of shape (H, W, 3), (3, H, W) or '
                f'(H, W), but {type(frame).__name__}'
            )
        if not 0 < math.prod(size) <= MAX_PIXELS:
            raise VideoError(f'{where} has {math.prod(size)} pixels, not 1 to {MAX_PIXELS}')
        if isinstance(frame, Image.Image):
            try:
                frame.load()  # here: threads cannot do it together
            except (OSError, SyntaxError, ValueError) as error:
                raise VideoError(f'{where} cannot be read ({error})') from None

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def _frame(self, index: int) -> Tensor:
        frame = self.frames[index]
        if isinstance(frame, Image.Image):
            return _pixels(ImageOps.exif_transpose(frame))
        frame = torch.as_tensor(
            np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame
        )
        if frame.ndim == 2:
            return frame.cpu().expand(3, -1, -1)
        return frame.cpu() if frame.shape[0] == 3 else frame.cpu().permute(2, 0, 1)

    def _read(self, indices: list[int]) -> Tensor:
        pictures = {}
        for index in set(indices):
            picture = self._frame(index)
            if list(picture.shape[1:]) != self._size:
                picture = resize(picture, self._size)
            pictures[index] = picture
        return torch.stack([pictures[index] for index in indices])
