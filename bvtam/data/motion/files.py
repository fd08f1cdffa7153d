"""Procedural clips as a data set of video files."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...errors import BvtamError
from ...files import refuse_links, write_file
from .clips import MotionClips
from .h264 import check_even, write_clip

log = logging.getLogger('bvtam')

_BATCH = 1 << 24  # pixels rendered at a time, over all frames


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
    check_even(out, height, width)
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
            indices = torch.arange(start, min(start + step, count))
            paths = {
                i: out / folders[label] / f'{i:08d}.mp4'
                for i, label in zip(indices.tolist(), clips.labels(indices).tolist(), strict=True)
            }
            missing = [i for i, path in paths.items() if not path.exists()]
            videos = dict(zip(missing, clips.render(missing)[0], strict=True))
            for i, path in paths.items():
                if i in videos:
                    write_clip(path, videos[i], fps, quantiser, gop)
                rows.append((path.relative_to(out).as_posix(), path.parent.name))
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
    `python -c "from bvtam.data.motion.files import sample_clip; sample_clip('sample.mp4')"`.
    """
    clips = MotionClips(num_frames=100, size=(240, 320), family='direction')
    video, _ = clips.render([48], [clips.label_names.index('right')])
    return write_clip(path, video[0], fps=25, quantiser=29, gop=250)
