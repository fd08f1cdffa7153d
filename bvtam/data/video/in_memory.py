"""Videos that the program holds: an array, a list of images, the bytes of a file, an open file."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import BvtamError
from ..failures import machine_error
from .file import VideoFile
from .images import EvenFrames, ImageFrames, to_pixels
from .memory import MAX_PIXELS
from .pipes import copy_to_file
from .reader import Reader, VideoError


def source_name(source: Any) -> str:
    """The name of a video in results: its path or address as given, where it has one."""
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
    """Whether this is one video, where several may be given."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or is_file(source)


class FrameArray(EvenFrames):
    """Frames in memory: uint8 RGB or grey, (T, C, H, W) or (T, H, W, C), a numpy array or a tensor.

    Raises:
        BvtamError: an array of another shape or type, or without frames.
    """

    def __init__(self, array: np.ndarray | Tensor, fps: float = 25.0, name: str = 'array') -> None:
        super().__init__(name, fps)
        if array.dtype not in (np.uint8, torch.uint8):
            raise BvtamError(f'{name}: frames must be uint8, not {array.dtype}')
        sides = (array.shape[1], array.shape[3]) if array.ndim == 4 else ()
        channels = next((count for count in (3, 1) if count in sides), None)
        if channels is None:
            raise BvtamError(
                f'{name}: frames must be uint8 of shape (T, 3, H, W) or (T, H, W, 3), or of 1 channel '
                f'in place of 3, not {tuple(array.shape)}'
            )
        if 0 in array.shape:
            raise BvtamError(f'{name} holds no frame; its shape is {tuple(array.shape)}')
        order = (0, 1, 2, 3) if sides[0] == channels else (0, 3, 1, 2)
        # A view: an array may be a file of which little fits into memory.
        self.frames = array.permute(order) if isinstance(array, Tensor) else array.transpose(order)
        height, width = self.frames.shape[2:]
        if height * width > MAX_PIXELS:
            raise BvtamError(
                f'{name}: its frames have {width}x{height} pixels, more than {MAX_PIXELS}; make '
                'them smaller'
            )

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def _read(self, indices: list[int]) -> Tensor:
        picked = self.frames[indices]
        if not isinstance(picked, Tensor):
            picked = torch.from_numpy(np.ascontiguousarray(picked))
        return picked.cpu().expand(-1, 3, -1, -1).contiguous()


class FrameList(ImageFrames):
    """Frames in memory: PIL images, or uint8 arrays, RGB (H, W, 3) or (3, H, W), or grey (H, W).

    Those of another size than the first one are scaled to that.

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
        self._size = list(self._image(0).shape[1:])
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

    def _image(self, index: int) -> Tensor:
        frame = self.frames[index]
        if isinstance(frame, Image.Image):
            return to_pixels(ImageOps.exif_transpose(frame))
        frame = torch.as_tensor(
            np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame
        )
        if frame.ndim == 2:
            return frame.cpu().expand(3, -1, -1)
        return frame.cpu() if frame.shape[0] == 3 else frame.cpu().permute(2, 0, 1)


class CopiedFile(VideoFile):
    """The bytes of a file, or an open file: all that it gives is copied to a temporary file at once.

    The file is left open.

    Raises:
        BvtamError: a file that is open for text.
        VideoError: nothing in it, more than 4 GB, or an error while it is read.
        MachineError: the temporary folder is full.
    """

    def __init__(
        self, source: Any, time_limit: float, colors: str = 'tagged', name: str = ''
    ) -> None:
        name = name or source_name(source)
        file = source if is_file(source) else io.BytesIO(source)
        if_empty = ', or was read to its end: seek(0)' if is_file(source) else ''

        def read(size: int) -> bytes:
            try:
                piece = file.read(size)
            except (OSError, ValueError) as error:
                if isinstance(error, BvtamError):
                    raise
                raise machine_error(error, name) or VideoError(
                    f'{name} cannot be read ({error}); give a binary file that is open for reading'
                ) from None
            if isinstance(piece, str):
                raise BvtamError(f"{name} is open for text; open it with open(path, 'rb')")
            return piece

        path = copy_to_file(name, read, if_empty, '; give its path')
        try:
            super().__init__(path, time_limit, (), colors)
        except BvtamError:
            os.unlink(path)
            raise
        self._is_file, self.name = False, name
        self._known.keep(path)
