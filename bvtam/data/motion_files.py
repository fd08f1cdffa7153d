"""Procedural clips as real videos: H.264 in memory and in files."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from ..errors import BvtamError
from ..files import atomic_file, refuse_links, write_file

if TYPE_CHECKING:
    from .motion import MotionClips

log = logging.getLogger('bvtam')

_BATCH = 1 << 24  # pixels rendered at a time, over all frames


def recode(clip_CTHW: Tensor, quantiser: int) -> Tensor:
    """The clip after H.264: each frame coded by itself, at a constant quantiser.

    Codecs otherwise predict frames from earlier ones, and so leave a trace of the direction in which
    time ran. This way, coding the reversed clip gives the reversed coded clip, to the last bit.

    Args:
        clip_CTHW: uint8 RGB (3, T, H, W), H and W even.
        quantiser: H.264's QP, from 0 (lossless) to 51.

    Returns:
        uint8 RGB of the same shape.
    """
    _, _, height, width = clip_CTHW.shape
    encoder = av.CodecContext.create('libx264', 'w')
    encoder.width, encoder.height, encoder.pix_fmt = width, height, 'yuv420p'
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = {'qp': str(quantiser), 'g': '1', 'preset': 'veryfast'}
    decoder = av.CodecContext.create('h264', 'r')
    decoder.thread_count = 1
    frames = [
        frame
        for picture in [*_pictures(clip_CTHW), None]
        for packet in encoder.encode(picture)
        for frame in decoder.decode(packet)
    ]
    frames += decoder.decode(None)
    reformat = (
        VideoReformatter().reformat
    )  # one for all frames: setting it up takes most of the time
    pictures = [
        torch.from_numpy(reformat(f, format='rgb24', threads=1).to_ndarray()) for f in frames
    ]
    return torch.stack(pictures).permute(3, 0, 1, 2)


def write_video(
    path: str | os.PathLike[str],
    clip_CTHW: Tensor,
    fps: float = 25.0,
    quantiser: int = 20,
    gop: int = 1,
) -> Path:
    """Writes an H.264 file, whole or not at all.

    Args:
        path: of the file, .mp4.
        clip_CTHW: uint8 RGB (3, T, H, W), H and W even.
        quantiser: H.264's QP, from 0 (lossless) to 51, for every frame: rate control would look back.
        gop: frames from one that is coded by itself to the next. 1 keeps coding free of a direction
            of time (see `recode`); 250 gives far smaller files.

    Raises:
        BvtamError: frames of an odd height or width, or a file that cannot be written.
    """
    path = Path(path)
    _, _, height, width = clip_CTHW.shape
    _check_even(path, height, width)
    with atomic_file(path) as new, av.open(f'file:{new}', 'w', format='mp4') as container:
        options = {'qp': str(quantiser), 'g': str(gop), 'preset': 'slow', 'threads': '1'}
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream('libx264', rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for picture in [*_pictures(clip_CTHW), None]:
            container.mux(stream.encode(picture))
    return path


def write_videos(
    clips: MotionClips,
    out: str | os.PathLike[str],
    count: int,
    fps: float = 25.0,
    quantiser: int = 20,
    gop: int = 1,
) -> Iterator[Path]:
    """Writes the first `count` clips as H.264 files, `out/<split>/<class>/<index>.mp4`, and the list
    `out/<split>.csv` with the columns video and label.

    A file appears whole, and one that is there is kept, so a run that was stopped goes on where it
    was when started again. Settings are in `out/<split>.json`; other ones are refused.

    For clips that are to be sampled down later, see `cut_unit` of `MotionClips`.

    Yields:
        The path of each video, as soon as it is there: the place to report progress.

    Raises:
        BvtamError: clips of an odd height or width; `out` has videos of other settings or of another
            origin, or cannot be written.
    """
    out = Path(out)
    height, width = clips.size
    _check_even(out, height, width)
    settings = {**clips.settings(), 'fps': fps, 'quantiser': quantiser, 'gop': gop}
    record = out / f'{clips.split}.json'
    folders = [f'{clips.split}/{name}' for name in clips.label_names]
    refuse_links(out, [record.name, f'{clips.split}.csv', clips.split, *folders])
    try:
        text = json.dumps(settings, indent=1) + '\n'
        if not record.exists():
            for path in (out / clips.split, out / f'{clips.split}.csv'):
                if path.exists():
                    raise BvtamError(f'{path} is not of this command: name another folder')
        elif record.read_text('utf-8') != text:
            raise BvtamError(
                f'{record} tells of other settings: name another folder or delete this'
            )
        out.mkdir(parents=True, exist_ok=True)
        write_file(record, text)
        step = max(1, _BATCH // (height * width * clips.num_frames))
        rows = []
        for start in range(0, count, step):
            indices = range(start, min(start + step, count))
            names = [clips.label_names[i % clips.num_classes] for i in indices]
            paths = [
                out / clips.split / name / f'{i:08d}.mp4'
                for i, name in zip(indices, names, strict=True)
            ]
            missing = [i for i, path in zip(indices, paths, strict=True) if not path.exists()]
            videos = dict(zip(missing, clips.render(missing)[0] if missing else (), strict=True))
            for i, path, name in zip(indices, paths, names, strict=True):
                if i in videos:
                    write_video(path, videos[i], fps, quantiser, gop)
                rows.append((path.relative_to(out).as_posix(), name))
                yield path
        table = io.StringIO(newline='')
        csv.writer(table).writerows([('video', 'label'), *rows])
        write_file(out / f'{clips.split}.csv', table.getvalue())
        if more := sum(1 for _ in (out / clips.split).rglob('*.mp4')) - count:
            log.warning('%s: %d videos of an earlier, larger count stay', out / clips.split, more)
    except OSError as error:
        raise BvtamError(f'{out} cannot be written: {error.strerror or error}') from None


def write_data_set(
    out: str | os.PathLike[str],
    count: int = 1400,
    family: str = 'all',
    size: int = 112,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """A data set of motion clips with parts: `count` videos to train, a fifth of it each to validate
    and to test; 48 frames at 25 a second. Goes on where it was stopped.

    Clips of 16 frames sampled from these videos keep both bounds of `MotionClips`, since 48 / 16 is
    odd and shots of the order family are multiples of 12 frames long.

    Returns:
        `{'out', 'videos', 'classes'}`.

    Raises:
        BvtamError: as `MotionClips` and `write_videos`, and a `count` too small for all classes.
    """
    from .motion import MotionClips

    counts = {'train': count, 'val': count // 5, 'test': count // 5}
    total, done = sum(counts.values()), 0
    num_classes = MotionClips(family=family).num_classes
    if counts['val'] < num_classes:
        raise BvtamError(
            f'count must be at least {5 * num_classes} for {num_classes} classes, not {count}'
        )
    for split, videos in counts.items():
        clips = MotionClips(48, size, family, seed, split=split, cut_unit=12)
        for _ in write_videos(clips, out, videos):
            done += 1
            if progress:
                progress(done, total)
    return {'out': os.fspath(out), 'videos': total, 'classes': num_classes}


def sample_clip(path: str | os.PathLike[str]) -> Path:
    """Writes one video to try things with: 320 x 240, 4 s, 25 fps, under 150 kB.

    `bvtam/assets/sample.mp4` comes from
    `python -c "from bvtam.data.motion_files import sample_clip; sample_clip('sample.mp4')"`.
    """
    from .motion import MotionClips

    clips = MotionClips(num_frames=100, size=(240, 320), family='direction')
    video, _ = clips.render([48], [clips.label_names.index('right')])
    return write_video(path, video[0], fps=25, quantiser=29, gop=250)


def _check_even(path: Path, height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise BvtamError(f'{path}: H.264 needs an even height and width, not {height} x {width}')


def _pictures(clip_CTHW: Tensor) -> Iterator[av.VideoFrame]:
    for number, picture in enumerate(clip_CTHW.permute(1, 2, 3, 0).contiguous().numpy()):
        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts = number
        yield frame
