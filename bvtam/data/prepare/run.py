"""Videos made small and quick to read before a training, in parallel, and safe to interrupt.

`output.py` tells what the output holds. A file or folder in it gets its name when it is complete and on
disk, and is the only record that it is done. What is being written lies in `OUT/.prepare`, which a run
empties when it starts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
from filelock import FileLock, Timeout

from ...errors import BvtamError, MachineError
from ...files import read_text, refuse_links
from ..failures import VIDEO_ERRORS, Failures, check_policy
from ..load import load_parts, load_records
from ..records import Record, open_record, walk
from .encode import Encoding, encode
from .output import (
    SCRATCH,
    SETTINGS,
    base_folder,
    check_place,
    targets_of,
    write_lists,
    write_text,
)
from .workers import outcomes

ERRORS = 'errors.csv'
_LOCK = 'lock'

log = logging.getLogger('bvtam')


class OutputError(BvtamError):
    """The output cannot be written, whatever the video."""


_STOPS = (OutputError, MachineError)  # whatever the policy


def prepare(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    format: str = 'video',
    gop: int = 12,
    quality: int | None = None,
    fps: float | None = None,
    colors: str = 'tagged',
    workers: int | None = None,
    split: str = '',
    root: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    urls: bool = False,
    frames: str = '',
    frame_rate: float | None = None,
    on_error: str = 'skip',
    max_failed: float = 0.1,
    time_limit: float = 60.0,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Resizes and encodes a data set again, so that training reads it fast.

    Videos become H.264 in MP4 with a keyframe at every `gop`-th frame, no B-frames and no sound, or
    folders of JPEG files. Frames come out upright, each at the time it had (to 1/90000 s, video
    only), or at `fps`, where every frame is the one that the source shows at that time. Parts of
    videos named by an annotation are cut out. The folders of the source stay, so that `out` can take
    its place.

    A run that was interrupted goes on where it was; what is done is done again only where the
    source is newer. A script that calls this needs `if __name__ == '__main__':`, since the work is
    done by new processes.

    Args:
        src: a data set as `load_records` takes it, or videos without labels.
        out: a folder that is new, empty, or of an earlier run with the same settings.
        size: pixels of the shorter side, even; smaller videos are not enlarged. Both sides are made
            even, rounding down.
        format: 'video' or 'frames'.
        gop: frames from one keyframe of a video to the next.
        quality: of videos the constant rate factor, 0 (best) to 51, by default 18; of JPEG files 1
            to 100 (best), by default 95.
        fps: frames a second; None keeps all frames and their times.
        colors: of JPEG files: 'tagged', as players show them, or 'jpeg', as FFmpeg extracts them, see
            `ClipConfig`. Videos keep the tags of their source, so that either can be seen in them.
        workers: processes, each of one thread; None for as many as there are cores.
        split, root, labels, urls, frames: of `load_records`.
        frame_rate: frames a second of folders of images in the source, `fps` of `load_records`.
        on_error: 'skip' lists videos that cannot be read in `errors.csv`, 'raise' stops at the first.
        max_failed: share of the videos, on [0, 1], that may fail.
        time_limit: seconds without progress after which a video has failed.
        progress: called with the number of videos done and of all videos, after each.

    Returns:
        `{'out', 'list': paths, 'videos', 'written', 'kept' from earlier runs, 'failed': numbers of
        videos, 'frames': number of frames written}`.

    Raises:
        BvtamError: a setting outside its range or not that of the earlier run, `out` inside the
            source or not writable, two sources with the same place in `out`, too many failures.
    """
    encoding = Encoding(format, size, fps, gop, quality, colors=colors)
    check_policy(on_error, ('raise', 'skip'))
    if workers is None:  # from Python 3.13 on, the cores that this process may use
        workers = getattr(os, 'process_cpu_count', os.cpu_count)() or 1
    if workers < 1:
        raise BvtamError(f'workers must be at least 1, not {workers}')
    if not time_limit > 0:
        raise BvtamError(f'time_limit must be above 0 seconds, not {time_limit}')
    src, out = Path(src), Path(out).resolve()
    how = {'urls': urls, 'frames': frames, 'fps': frame_rate}
    if split:
        records, names = load_records(src, split, root=root, labels=labels, **how)
        splits = [''] * len(records)
    else:
        named, names = load_parts(src, root, labels, **how)
        records = [record for of_split in named.values() for record in of_split]
        splits = [name for name, of_split in named.items() for _ in of_split]
    parts = [replace(record, label=-1) for record in records]
    sources = {part.source for part in parts}
    base = base_folder(src, root, sources)
    targets = targets_of(list(dict.fromkeys(parts)), base, format)
    check_place(out, src, sources)
    of_folders = {'frames': frames or None, 'frame_rate': frame_rate}
    settings = {'source': str(base), **asdict(encoding), **of_folders}

    num_frames, failed, done = 0, set(), 0
    folders = {str(folder) for target in targets.values() for folder in target.parents}
    refuse_links(out, [SETTINGS, SCRATCH, f'{SCRATCH}/{_LOCK}', *map(str, targets.values())])
    refuse_links(out, sorted(folders - {'.'}))
    try:
        (out / SCRATCH).mkdir(parents=True, exist_ok=True)
        with FileLock(out / SCRATCH / _LOCK, timeout=0):
            _begin(out, settings)
            failures = Failures(len(sources), max_failed, out / ERRORS)
            jobs = [(part, out / target) for part, target in targets.items()]
            todo = [job for job in jobs if not _finished(*job, encoding.fps, out / SCRATCH)]
            done = kept = len(jobs) - len(todo)
            work = partial(_work, encoding=encoding, scratch=out / SCRATCH, time_limit=time_limit)
            with closing(outcomes(work, todo, workers)) as results:
                for (part, _), result in results:
                    if isinstance(result, VIDEO_ERRORS) and not isinstance(result, _STOPS):
                        if on_error == 'raise':
                            raise BvtamError(f'{part.source} failed: {result}')
                        failures.add(part.source, result)
                        failed.add(part)
                    elif isinstance(result, BaseException):
                        raise result
                    else:
                        num_frames += result
                    done += 1
                    if progress is not None:
                        progress(done, len(targets))
            made = []
            for record, part, of_split in zip(records, parts, splits, strict=True):
                if part not in failed:
                    # Of videos only a look into them tells it.
                    rate = fps or (part.fps if os.path.isdir(part.source) else None)
                    made.append((targets[part].as_posix(), record.label, of_split, rate))
            listed = write_lists(out, split or 'list', made, names, format)
            if not split:
                _warn_of_others(out, targets.values(), listed)
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
    except Timeout:
        raise BvtamError(
            f'another run writes to {out}; wait for it or name another folder'
        ) from None
    except OSError as error:
        raise BvtamError(f'{out} cannot be written: {error.strerror or error}') from None
    return {
        'out': str(out),
        'list': str(listed),
        'videos': len(targets),
        'written': len(todo) - len(failed),
        'kept': kept,
        'failed': len(failed),
        'frames': num_frames,
    }


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Leaves an empty scratch folder and the settings."""
    for path in (out / SCRATCH).iterdir():
        if path.name != _LOCK:
            _remove(path)
    path = out / SETTINGS
    if not path.exists():
        write_text(out, SETTINGS, json.dumps(settings, indent=1) + '\n')
        return
    try:
        before = {'colors': 'tagged', **json.loads(read_text(path))}
    except (ValueError, TypeError):
        raise BvtamError(f'{path} is damaged; name another folder') from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise BvtamError(
                f'{out} was begun with {name} {before.get(name)}, not {value}; keep to that or name '
                'another folder'
            )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _finished(part: Record, target: Path, fps: float | None, scratch: Path) -> bool:
    """Whether `target` is there, neither older than its source nor of another length; else it goes."""
    try:
        made = target.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    try:
        newer = os.stat(part.source).st_mtime_ns > made
    except OSError:
        newer = False  # a URL, or it is gone since
    counted = part.last is not None or part.num_frames is not None
    if newer or (fps is None and counted and not _same_length(part, target)):
        os.replace(target, scratch / 'old')  # or half a folder might be left, and taken for a whole
        _remove(scratch / 'old')
        return False
    return True


def _same_length(part: Record, target: Path) -> bool:
    """Whether a list names as many frames of the folder as it did when `target` was made."""
    try:
        wanted = open_record(part).num_frames
    except VIDEO_ERRORS:
        return False
    if target.is_dir():
        return len(os.listdir(target)) == wanted
    with av.open(str(target)) as container:
        return container.streams.video[0].frames == wanted


def _work(job: tuple[Record, Path], encoding: Encoding, scratch: Path, time_limit: float) -> int:
    """Makes one video or frame folder, in a process of its own; the number of its frames."""
    part, target = job
    new = scratch / f'{os.getpid()}{target.suffix}'
    try:
        frames = encode(part, new, encoding, time_limit)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(new, target)
    except OSError as error:
        raise OutputError(f'{target} cannot be written: {error.strerror or error}') from None
    finally:
        _remove(new)
    return frames


def _warn_of_others(out: Path, targets: Iterable[Path], listed: Path) -> None:
    """Tells of what earlier runs made from sources that are no longer there, or elsewhere now."""
    ours = {str(out / target) for target in targets}
    others = [path for path in walk(out) if path not in ours]
    if others:
        log.warning(
            '%s: %d videos are of no source any more, the first is %s; %s does not list them, but the '
            'folder taken as a data set has them: delete them',
            out,
            len(others),
            others[0],
            listed.name,
        )
