"""`Record`: one video of a data set, what is known about it, and how it is found and opened."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import BvtamError
from .video.addresses import PROTOCOLS, check_protocol, is_url
from .video.folders import FrameFolder
from .video.images import IMAGE_SUFFIXES
from .video.open import open_video
from .video.reader import Reader

VIDEO_SUFFIXES = (
    '.3g2', '.3gp', '.asf', '.avi', '.divx', '.f4v', '.flv', '.gif', '.m2ts', '.m2v', '.m4v', '.mkv',
    '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.mxf', '.ogv', '.ts', '.vob', '.webm', '.wmv', '.y4m',
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One video of a data set, or a part of one.

    Attributes:
        source: path of a file or of a folder of frames, or a URL.
        label: index of its class; -1 where there is none.
        first, last: numbers of the first and last frame, as in the file names of a frame folder.
        start, end: seconds in a video; the frames that appear from `start` on, before `end`.
        num_frames: of a frame folder how many images, from the first on.
        frames, fps: of a frame folder how its frames are named and how many a second there are, as of
            `open_video`; a video file has times of its own, whatever they are.
    """

    source: str
    label: int = -1
    first: int | None = None
    last: int | None = None
    start: float | None = None
    end: float | None = None
    num_frames: int | None = None
    frames: str = ''
    fps: float | None = None


def find_videos(
    sources: Iterable[str | os.PathLike[str]], protocols: Iterable[str] = PROTOCOLS
) -> list[str]:
    """Paths and URLs of videos, in the order of `sources`, each once.

    Args:
        sources: files, taken as they are; folders, searched with all folders in them for files with
            one of `VIDEO_SUFFIXES`, in capitals too, and for frame folders, which are folders with
            images and without such files; patterns with `*`, `?`, `[...]` and `**`, whose matches
            are searched for the same; URLs and '-' (standard input), taken as they are. Hidden files
            and folders, whose names begin with a dot, are only found by their full name.
        protocols: of URLs that are allowed.

    Raises:
        BvtamError: a source that gives no video, a folder that cannot be read, or a URL of another
            protocol.
    """
    found: dict[str, str] = {}
    for source in map(os.fspath, sources):
        check_protocol(source, protocols)
        if source == '-' or is_url(source):
            found.setdefault(source, source)
            continue
        if os.path.isdir(source):
            videos, hint = walk(source), 'holds no video and no folder of frames'
        elif os.path.exists(source):
            videos = [source]
        elif glob.has_magic(source):
            videos, hint = [], 'matches no video and no folder of frames'
            for match in sorted(glob.iglob(source, recursive=True)):
                if os.path.isdir(match):
                    videos += walk(match)
                elif match.lower().endswith(VIDEO_SUFFIXES):
                    videos.append(match)
        else:
            raise BvtamError(f'{source}: no such file or folder')
        if not videos:
            raise BvtamError(f'{source} {hint}; videos are {" ".join(VIDEO_SUFFIXES)}')
        for video in videos:
            found.setdefault(os.path.abspath(video), video)
    return list(found.values())


def walk(
    folder: str | os.PathLike[str],
    suffixes: tuple[str, ...] = VIDEO_SUFFIXES,
    images: bool = False,
    left: list[str] | None = None,
) -> list[str]:
    """Files with these endings in `folder` and below; without `images`, frame folders too.

    `left` takes the paths of the other files, where they are no images of a frame folder.
    """
    found, seen = [], set()

    def fail(error: OSError) -> None:
        raise unreadable(error)

    for path, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder further up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != '.']
        files = [name for name in files if name[0] != '.']
        wanted = [name for name in files if name.lower().endswith(suffixes)]
        found += [os.path.join(path, name) for name in wanted]
        if not wanted and not images and any(n.lower().endswith(IMAGE_SUFFIXES) for n in files):
            found.append(path)
        elif left is not None:
            left += [os.path.join(path, name) for name in sorted({*files} - {*wanted})]
    return sorted(found)


def unreadable(error: OSError) -> BvtamError:
    return BvtamError(f'{error.filename} cannot be read: {error.strerror}')


def paths_and_sizes(sources: Sequence[str]) -> list[tuple[str, int]]:
    """Path and size of each source, by which it is known wherever its data set lies.

    Returns:
        Its path in the folder that all of them have in common, a URL as it stands; and its size in
        bytes: of a folder of frames, that of its first file; -1 of a URL and of what is not there.
    """
    paths = {s: os.path.abspath(s) for s in sources if s != '-' and not is_url(s)}
    folders = {os.path.dirname(path) for path in paths.values()}
    base = os.path.commonpath(folders) if folders else ''
    return [(os.path.relpath(paths[s], base), _size(s)) if s in paths else (s, -1) for s in sources]


def _size(source: str) -> int:
    try:
        if os.path.isdir(source):
            source = os.path.join(source, min(os.listdir(source), default=''))
        return os.path.getsize(source)
    except OSError:
        return -1


def open_record(record: Record, time_limit: float = 60.0) -> Reader:
    """A reader of a record's source; of a part in seconds, too, it reads the whole video."""
    if (
        not os.path.isdir(record.source)
        and record.first is record.last is record.num_frames is None
    ):
        return open_video(record.source, time_limit)
    return FrameFolder(
        record.source,
        record.frames or None,
        record.first,
        record.last,
        25.0 if record.fps is None else record.fps,
        record.num_frames,
    )
