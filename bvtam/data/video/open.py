"""One way to open any kind of video."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from ...errors import BvtamError
from .addresses import PROTOCOLS
from .colors import check_colors
from .file import VideoFile
from .folders import FrameFolder, check_frames
from .in_memory import CopiedFile, FrameArray, FrameList, is_file
from .reader import Reader


def open_video(
    source: object,
    time_limit: float = 60.0,
    protocols: Iterable[str] = PROTOCOLS,
    colors: str | None = None,
    *,
    frames: str = '',
    fps: float | None = None,
) -> Reader:
    """A reader of any kind of video.

    Args:
        source: a path, an address such as `https://...`, '-' for standard input, a folder of
            images, an array or tensor of frames, a list of PIL images or of arrays, one a frame, the
            bytes of a file, a binary file object, which is read from where it stands and stays
            open, or a reader, which is returned as it is, or with other `colors`.
        time_limit: seconds without progress after which a source is given up.
        protocols: of addresses that may be opened, themselves and by redirects and playlists; none
            for local files alone. A path is always one, whatever is before a colon in it.
        colors: 'tagged' or 'jpeg', of `ClipConfig`; None for 'tagged', or as a reader has them. A
            model that is given the reader sees those of its own ClipConfig all the same.
        frames: how the frames of a folder are named, `img_{:05d}.jpg` or `img_*.jpg`; not needed
            where all of its numbered images are named alike.
        fps: frames a second of a folder, an array or a list, 25 where it is left out. Other videos
            have times of their own.

    Raises:
        FileNotFoundError: there is no such file.
        BvtamError: a source of another kind, an empty file, an address of another protocol, or
            unknown `colors`; `frames` or `fps` of a video that they are not for.
    """
    if colors is not None:
        check_colors(colors)
    rate = 25.0 if fps is None else fps
    is_path = isinstance(source, (str, os.PathLike))
    if is_path and os.path.isdir(source):
        return FrameFolder(source, frames or None, fps=rate)
    if is_path:
        video = VideoFile(source, time_limit, protocols, colors or 'tagged')
        check_frames(frames, fps, ())
        return video
    check_frames(frames, None, ())
    if isinstance(source, (np.ndarray, Tensor)):
        return FrameArray(source, rate)
    if isinstance(source, (list, tuple)):
        return FrameList(source, rate)
    check_frames('', fps, ())
    if isinstance(source, Reader):
        return source if colors is None else source.with_colors(colors)
    colors = colors or 'tagged'
    if isinstance(source, (bytes, bytearray, memoryview)) or is_file(source):
        return CopiedFile(source, time_limit, colors)
    raise BvtamError(
        'a video is a path, an address, a binary file, its bytes, a list of images or an array of '
        f'frames, not {type(source).__name__}'
    )
