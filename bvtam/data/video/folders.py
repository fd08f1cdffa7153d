"""Videos that are folders of numbered images."""

from __future__ import annotations

import fnmatch
import glob
import logging
import math
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ExifTags
from torch import Tensor

from ...errors import BvtamError
from .images import IMAGE_SUFFIXES, ImageFrames, open_image, read_image
from .memory import frame_bytes, release_memory
from .reader import VideoError

log = logging.getLogger('bvtam')

_NO_FRAMES = re.compile(r'(?i)(^|[^a-z])(flow|mask|depth|thumb|thumbnail)s?([^a-z]|$)')


class FrameFolder(ImageFrames):
    """A folder of numbered images, in the order of their numbers.

    Args:
        template: how the images are named, with a place for the number such as `{:05d}.jpg` or
            `img_%05d.png`, or with wildcards, `img_*.jpg`; None where all the numbered images of the
            folder are named alike.
        first, last: numbers, as in the names, of the first and last frame, if not all belong to the
            video.
        num_frames: how many frames from the first on, in place of `last`.

    Raises:
        FileNotFoundError: there is no such folder.
        BvtamError: a template without wildcards or a place for one number, or `fps` not above 0.
        VideoError: from all but the constructor, if the images cannot be told, are missing or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        template: str | None = None,
        first: int | None = None,
        last: int | None = None,
        fps: float = 25.0,
        num_frames: int | None = None,
    ) -> None:
        super().__init__(os.fspath(path), fps)
        self.path, self.first, self.last, self.count = Path(path), first, last, num_frames
        self.template = template
        if not self.path.is_dir():
            raise FileNotFoundError(f'{self.path}: no such folder of frames')
        if template is not None:
            _check_template(template)

    @property
    def num_frames(self) -> int:
        return len(self.files)

    @cached_property
    def files(self) -> list[str]:
        """The names of the images, by number."""
        kinds: dict[tuple[str, str], dict[int, str]] = {}
        for name in sorted(os.listdir(self.path)):
            if match := self._numbered(name):
                numbers = kinds.setdefault(match.group(1, 3), {})
                other = numbers.setdefault(int(match[2]), name)
                if other != name:
                    raise VideoError(
                        f'{self.path}: {other} and {name} have the same number; remove one'
                    )
        if not kinds:
            sought = f'images named {self.template}' if self.template else 'numbered images'
            raise VideoError(f'{self.path} holds no {sought}; name a folder of frames')
        frames = [kind for kind in kinds if not _NO_FRAMES.search(kind[0])]
        if len(kinds) > 1 and len(frames) == 1:
            others = ', '.join(sorted(f'{a}*{b}' for a, b in kinds if (a, b) != frames[0]))
            log.warning('%s: left out, as no frames by their names: %s', self.path, others)
            kinds = {frames[0]: kinds[frames[0]]}
        if len(kinds) > 1:
            names = ', '.join(next(iter(names.values())) for names in list(kinds.values())[:3])
            one = '{:05d}'.join((frames or list(kinds))[0])
            raise VideoError(
                f'{self.path} holds images of {len(kinds)} kinds ({names}); say which are the frames, '
                f"as in --frames '{one}' (data.frames in a recipe, frames= in Python)"
            )
        (numbered,) = kinds.values()
        if self.first is None and self.last is None and self.count is None:
            return [numbered[number] for number in sorted(numbered)]
        first = min(numbered) if self.first is None else self.first
        last = max(numbered) if self.last is None else self.last
        if self.count is not None:
            last = first + self.count - 1
        for number in range(first, last + 1):
            if number not in numbered:
                raise VideoError(
                    f'{self.path} lacks frame {number} of {first} to {last}; extract them again'
                )
        if first > last:
            raise VideoError(f'{self.path}: the first frame, {first}, is after the last, {last}')
        return [numbered[number] for number in range(first, last + 1)]

    def _numbered(self, name: str) -> re.Match[str] | None:
        """The groups of a frame's name: the text before its number, the number, and the text after it."""
        parts = _around_number(self.template or '')
        if len(parts) == 2:
            start, end = map(re.escape, parts)
            return re.fullmatch(f'({start})([0-9]+)({end})', name)
        if name.startswith('.') and not (self.template or '').startswith('.'):
            return None
        if self.template is None and not name.lower().endswith(IMAGE_SUFFIXES):
            return None
        if self.template is not None and not fnmatch.fnmatchcase(name, self.template):
            return None
        return re.fullmatch(r'(.*?)([0-9]+)([^0-9]*)', name)

    @cached_property
    def _size(self) -> list[int]:
        """Height and width of the first image, upright."""
        with open_image(self.path / self.files[0]) as image:
            lies = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return [image.width, image.height] if lies else [image.height, image.width]

    @property
    def frame_pixels(self) -> int:
        return math.prod(self._size)

    def _image(self, index: int) -> Tensor:
        picture = read_image(self.path / self.files[index])
        release_memory(frame_bytes(picture[0].numel()))
        return picture


def _around_number(template: str) -> list[str]:
    """The texts before and after the number in a template; of another length if it has not one number."""
    return re.split(r'\{\w*(?::0?\d*d?)?\}|%0?\d*d', template)


def _check_template(template: str) -> None:
    if len(_around_number(template)) != 2 and not glob.has_magic(template):
        raise BvtamError(
            f'{template!r} is no template of image names; one is {{:05d}}.jpg or img_*.jpg'
        )


def check_frames(frames: str, fps: float | None, sources: Iterable[str]) -> None:
    """That a template of image names and frames a second can be meant for some of the sources.

    Raises:
        BvtamError: one of them is none, or no source is a folder, whose own times count.
    """
    given = ' and '.join(['frames'] * bool(frames) + ['fps (--frame-rate)'] * (fps is not None))
    if not given:
        return
    if frames:
        _check_template(frames)
    if fps is not None and not 0 < fps < math.inf:
        raise BvtamError(f'fps must be above 0, not {fps}')
    if not any(os.path.isdir(source) for source in sources):
        raise BvtamError(
            f'{given}: only for folders of images, and none of the videos is one; a video file has '
            'times of its own'
        )


def of_folder(source: object, frames: str, fps: float | None) -> dict[str, Any]:
    """The options of `open_video` for a source: these where it is a folder of images, else none."""
    is_folder = isinstance(source, (str, os.PathLike)) and os.path.isdir(source)
    return {'frames': frames, 'fps': fps} if is_folder else {}
