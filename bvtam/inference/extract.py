"""Videos to embeddings, any number of them: resumable, and dealt to any number of processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from ..data.failures import Failures, check_policy
from ..data.records import find_videos, paths_and_sizes
from ..data.video.addresses import PROTOCOLS
from ..data.video.folders import check_frames
from ..errors import BvtamError
from .clips import Clips, clip_plan, read_clips, spans, window_plan
from .features import Embedder
from .predict import decoding
from .ranks import rank_and_world_size
from .runner import check_counts
from .shards import FORMATS, ShardFolder

log = logging.getLogger('bvtam')

WHAT = ('clip', 'window', 'pair')
DTYPES = ('float32', 'float16')


class Extraction(TypedDict):
    """The folder of an extraction, and how much it holds now."""

    out: str
    videos: int
    rows: int
    failed: int
    shards: int


def extract(
    model: nn.Module,
    sources: str | os.PathLike[str] | Iterable[str],
    out: str | os.PathLike[str],
    *,
    what: str = 'clip',
    length: float | None = None,
    every: float | None = None,
    stage: str | int = 'pooled',
    format: str = 'safetensors',
    dtype: str = 'float32',
    shard_size: int = 256,
    batch_size: int = 8,
    workers: int = 4,
    on_error: str = 'skip',
    max_failed: float = 0.1,
    time_limit: float = 60.0,
    protocols: Iterable[str] = PROTOCOLS,
    frames: str = '',
    fps: float | None = None,
    resume: bool = True,
    shard: tuple[int, int] | str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Extraction:
    """Writes the embeddings of videos to a folder of shards (`shards.py` has its layout).

    The same call goes on where a killed one stopped; a shard that is there is not made again, its
    failed videos included. Videos are sorted by name, and shard k has those from k * shard_size on,
    so that killed or not, by one process or many, the folder comes out the same, byte for byte on
    the same machine and with the same `batch_size`. Process r of n, also on several machines with
    one file system, takes the shards r, r + n, ... where `shard` says so, and needs to hear nothing
    of the others.

    Args:
        model: a video model of the zoo, on the device that is to be used (see `local_device`); it is
            left as it came.
        sources: video files, folders, patterns, URLs.
        out: the folder, new or of the same call.
        what: what a row is. 'clip': one test clip of `model.clip_config`. 'window': a clip of
            `length` seconds, beginning every `every` seconds. 'pair': one step in time of a test
            clip at `stage`, which is a pair of frames in bLVNet and a frame in ResNets. Rows are
            averaged over the crops.
        length, every: of windows, in seconds, as of `windows`; `every` is `length` where it is left
            out.
        stage: 'pooled' is what the classifier takes; else the name or the number of a stage in
            `model.feature_info`, averaged over height and width, and over time but for pairs.
        format: 'safetensors' or 'parquet'.
        dtype: of the rows on disk, 'float32' or 'float16'.
        shard_size: videos of one shard; its rows are in memory at once.
        batch_size: clips that go through the model together, each with all of its crops.
        workers: threads that decode.
        on_error: 'skip' lists a video that cannot be read in `errors.csv`; 'raise' stops there.
        max_failed: share of the videos, on [0, 1], that may fail.
        time_limit: seconds without progress after which a video is given up.
        protocols: of URLs that may be opened, as of `open_video`.
        frames, fps: of folders of images, as of `open_video`; times in the rows follow `fps`.
        resume: False refuses a folder in which an extraction has begun.
        shard: (r, n) for the share of process r of n, all of which are given the same sources and
            `out`; 'env' for that of RANK and WORLD_SIZE, as torchrun and `accelerate launch` set them;
            None for all of the sources, whatever the environment says.
        progress: called with the numbers of videos done and to do in this process, the latter being
            the same every time; the first call tells what was done before.

    Raises:
        BvtamError: an image model, an option out of range, a folder of other settings or other things,
            more failed videos than allowed, features that are not finite.
        VideoError, OSError: a video that cannot be read, under 'raise'.
    """
    choices = {'what': (what, WHAT), 'format': (format, FORMATS), 'dtype': (dtype, DTYPES)}
    for name, (value, known) in choices.items():
        if value not in known:
            raise BvtamError(f'{name} must be one of {", ".join(known)}, not {value!r}')
    check_policy(on_error, ('skip', 'raise'))
    check_counts(shard_size=shard_size, batch_size=batch_size, workers=workers)
    if (length is None) == (what == 'window') or (every is not None and what != 'window'):
        raise BvtamError(
            "what='window' needs length, in seconds; length and every are for it alone"
        )
    embedder = Embedder(model, stage, by_step=what == 'pair')
    if what == 'window':
        every, length = spans(every, length)
        plan = window_plan(replace(embedder.clip, num_clips=1), every, length)
    else:
        plan = clip_plan(embedder.clip)
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    protocols = tuple(protocols)
    videos = sorted({*find_videos([os.fspath(source) for source in sources], protocols)})
    check_frames(frames, fps, videos)
    rank, world_size = _share(shard, len(videos))
    failures = Failures(len(videos), max_failed)
    # A video may be mended between two runs: their places alone, not their sizes.
    places = [place for place, _ in paths_and_sizes(videos)]
    settings = {
        'what': what,
        'length': length,
        'every': every,
        'format': format,
        'dtype': dtype,
        'shard_size': shard_size,
        'num_videos': len(videos),
        'videos_sha256': hashlib.sha256(json.dumps(places).encode()).hexdigest(),
        'prefix': _prefix(videos, places),
        **embedder.identity(),
        **({'frames': frames} if frames else {}),
        **({'fps': float(fps)} if fps is not None else {}),
    }
    folder = ShardFolder(out, settings, resume)
    folder.write_errors()

    # The names of the first run, also where the data have moved since.
    prefix, named = folder.settings['prefix'], dict(zip(videos, videos, strict=True))
    if prefix is not None and settings['prefix'] is not None:
        named = {video: prefix + place for video, place in zip(videos, places, strict=True)}

    starts = dict(enumerate(range(0, len(videos), shard_size)))
    mine = {k: videos[i : i + shard_size] for k, i in starts.items() if k % world_size == rank}
    todo = {k: names for k, names in mine.items() if not folder.path(k).exists()}
    total = sum(map(len, mine.values()))
    done = total - sum(map(len, todo.values()))
    tell = progress or (lambda done, total: None)
    tell(done, total)

    try:
        with decoding(workers) as pool:
            for k, names in todo.items():
                for head in folder.done().values():  # those of other processes count too
                    failures.reasons.update(head['failed'])
                shard = _Shard(embedder, batch_size)
                reading = read_clips(
                    pool, workers, names, plan, embedder.clip, time_limit, protocols, frames, fps
                )
                names = [named[name] for name in names]
                for i, clips in reading:
                    tell(done + i, total)
                    if not isinstance(clips, Exception):
                        shard.add(i, clips)
                    elif on_error == 'raise':
                        raise clips
                    else:
                        failures.add(names[i], clips)
                failed = {
                    name: failures.reasons[name] for name in names if name in failures.reasons
                }
                kept = torch.tensor([name not in failed for name in names])
                folder.write(k, shard.tensors(kept, getattr(torch, dtype)), names, failed)
                done += len(names)
                tell(done, total)
    except BvtamError:
        folder.write_errors(failures.reasons)  # with those of the shard that is not finished
        raise
    heads = folder.done().values()
    return {
        'out': os.fspath(out),
        'videos': sum(len(head['videos']) for head in heads),
        'rows': sum(sum(head['rows']) for head in heads),
        'failed': sum(len(head['failed']) for head in heads),
        'shards': len(heads),
    }


def _prefix(videos: list[str], places: list[str]) -> str | None:
    """What stands before the place of each video in its name, where it is the same for all."""
    found = {
        video.removesuffix(place) if video.endswith(place) else None
        for video, place in zip(videos, places, strict=True)
    }
    return found.pop() if len(found) == 1 else None


def local_device() -> torch.device:
    """The accelerator of this process, by LOCAL_RANK where several were started; else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device('cpu')
    index = int(os.environ.get('LOCAL_RANK', '0')) % torch.accelerator.device_count()
    return torch.device(torch.accelerator.current_accelerator().type, index)


def _share(shard: tuple[int, int] | str | None, num_videos: int) -> tuple[int, int]:
    """The rank whose shards this process extracts, and the world size."""
    match shard:
        case None | 'env':
            rank, world_size = rank_and_world_size(launched=True)
            consequence = f': this process takes every shard k with k % {world_size} = {rank}'
            if shard is None:
                consequence = (
                    f' are set, but this process extracts all of its {num_videos} videos: '
                    "shard='env' would take its share of them"
                )
            if world_size > 1:
                log.warning('RANK=%d and WORLD_SIZE=%d%s', rank, world_size, consequence)
            return (rank, world_size) if shard else (0, 1)
        case (int(rank), int(world_size)) if 0 <= rank < world_size:
            return rank, world_size
    raise BvtamError(f"shard must be (rank, world_size), 'env' or None, not {shard!r}")


class _Shard:
    """Collects the clips of one shard, in order, and turns them into its tensors.

    Batches go on from one video to the next and end with the shard, so that the same clips go
    through the model together however often the extraction was killed in between.
    """

    def __init__(self, embedder: Embedder, batch_size: int) -> None:
        self.embedder, self.batch_size = embedder, batch_size
        self.waiting: list[Tensor] = []
        self.videos: list[int] = []
        shape = 0, embedder.clip.num_frames  # for a shard in which all videos failed
        self.frames = [torch.zeros(shape, dtype=torch.int64)]
        self.times = [torch.zeros(shape, dtype=torch.float64)]
        self.features = [torch.zeros(0, embedder.rows, embedder.width)]

    def add(self, video: int, clips: Clips) -> None:
        self.videos += [video] * len(clips.pixels)
        self.frames.append(clips.frames)
        self.times.append(clips.times)
        self.waiting += clips.pixels
        while len(self.waiting) >= self.batch_size:
            self._run()

    def _run(self) -> None:
        self.features.append(self.embedder(self.waiting[: self.batch_size]))
        del self.waiting[: self.batch_size]

    def tensors(self, kept: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """What `ShardFolder.write` takes: the rows of the videos that are `kept`, bool (videos,)."""
        if self.waiting:
            self._run()
        videos = torch.tensor(self.videos, dtype=torch.int64)
        kept = kept[videos]  # a video that fails in its middle has left clips behind
        places = self.embedder.places(self.embedder.clip.num_frames)
        features = torch.cat(self.features)[kept].flatten(0, 1)
        if not features.isfinite().all():
            raise BvtamError(
                f'{self.embedder.name} gave features that are not finite; its weights may be damaged'
            )
        if not features.to(dtype).isfinite().all():
            raise BvtamError(f"features up to {features.abs().max():g} need dtype='float32'")
        return {
            'features': features.to(dtype),
            'frames': torch.cat(self.frames)[kept][:, places].flatten(0, 1),
            'times': torch.cat(self.times)[kept][:, places].flatten(0, 1),
            'video': videos[kept].repeat_interleave(self.embedder.rows),
        }
