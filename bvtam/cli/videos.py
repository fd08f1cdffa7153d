"""Commands about many videos: their embeddings, and smaller copies to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from . import options
from .shared import app, bar, check_given, load_model, print_facts, protocol_list


@app.command()
def extract(
    sources: Annotated[list[str], Argument(metavar='VIDEO', help='Files, folders, globs, URLs.')],
    out: Annotated[Path, Option(help='Folder of the shards.')],
    model: options.Model = 'bvtam_r50_8x2',
    what: Annotated[
        Literal['clip', 'window', 'pair'], Option(help='What one embedding is of.')
    ] = 'clip',
    length: Annotated[
        float | None, Option(help='Seconds of a window; --what window needs it.')
    ] = None,
    every: Annotated[
        float | None, Option(help='Seconds from one window to the next (default: as --length).')
    ] = None,
    stage: Annotated[
        str, Option(help='pooled (what the classifier takes), or a stage by name or number.')
    ] = 'pooled',
    format: Annotated[
        Literal['safetensors', 'parquet'], Option(help='Of the shards.')
    ] = 'safetensors',
    dtype: Annotated[
        Literal['float32', 'float16'], Option(help='Of the embeddings on disk.')
    ] = 'float32',
    shard_size: Annotated[int, Option(help='Videos of a shard.')] = 256,
    batch_size: options.BatchSize = 8,
    workers: options.Threads = 4,
    precision: options.Precision = 'fp32',
    on_error: options.OnError = 'skip',
    max_failed: options.MaxFailed = 0.1,
    time_limit: options.TimeLimit = 60.0,
    protocols: options.Protocols = 'http,https,rtsp',
    frames: options.Frames = '',
    frame_rate: options.FrameRate = None,
    shard: Annotated[
        str,
        Option(
            metavar='env|all|R/N',
            help='Share of this process: by RANK and WORLD_SIZE, all, or that of process R of N.',
        ),
    ] = 'env',
    as_json: options.Json = False,
) -> None:
    """Turn videos into embeddings, in shards; the same command goes on after an interruption.

    On several GPUs or machines: `accelerate launch -m bvtam extract ...` Each process ends by itself;
    the first tells what the folder holds by then.
    """
    from ..inference.extract import extract as run

    share = {'env': 'env', 'all': None}.get(shard, shard)
    if share == shard != 'env':
        rank, _, world_size = shard.partition('/')
        if not (rank.isdecimal() and world_size.isdecimal()):
            raise typer.BadParameter(f'--shard is env, all or R/N such as 0/2, not {shard}')
        share = int(rank), int(world_size)
    with bar('videos') as show:
        result = run(
            load_model(model, precision, inside=True),
            sources,
            out,
            what=what,
            length=length,
            every=every,
            stage=int(stage) if stage.isdecimal() else stage,
            format=format,
            dtype=dtype,
            shard_size=shard_size,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            max_failed=max_failed,
            time_limit=time_limit,
            protocols=protocol_list(protocols),
            frames=frames,
            fps=frame_rate,
            shard=share,
            progress=show,
        )
    print_facts(result, as_json, every=share != 'env')


@app.command()
def prepare(
    context: typer.Context,
    src: Annotated[
        str,
        Argument(
            metavar='SRC',
            help=f'Folder of videos, for each class or of all; {options.LISTS}; or motion.',
        ),
    ],
    out: Annotated[Path, Argument(metavar='OUT', help='Folder to write.')],
    size: Annotated[
        int | None, Option(help='Pixels of the shorter side (default: 256, of motion 112).')
    ] = None,
    format: Annotated[
        Literal['video', 'frames'], Option(help='H.264 in MP4, or folders of JPEG files.')
    ] = 'video',
    gop: Annotated[int, Option(help='Frames from one keyframe to the next.')] = 12,
    quality: Annotated[
        int | None, Option(help='CRF of videos (default: 18), or quality of JPEG (default: 95).')
    ] = None,
    fps: Annotated[
        float | None, Option(help='Frames a second that are written (default: as they are).')
    ] = None,
    frames: options.Frames = '',
    frame_rate: options.FolderRate = None,
    colors: Annotated[
        Literal['tagged', 'jpeg'],
        Option(help='Of JPEG files: by the tags of the video, or as FFmpeg extracts them.'),
    ] = 'tagged',
    workers: Annotated[int | None, Option(help='Processes (default: one per core).')] = None,
    split: Annotated[
        Literal['train', 'val', 'test'] | None, Option(help='One part only (default: all).')
    ] = None,
    root: options.Root = '',
    labels: Annotated[str, Option(help='File with the label names (default: found).')] = '',
    allow_urls: options.AllowUrls = False,
    on_error: options.OnError = 'skip',
    max_failed: options.MaxFailed = 0.1,
    time_limit: options.TimeLimit = 60.0,
    count: Annotated[
        int, Option(help='Of motion: videos to train on; a fifth more each for val and test.')
    ] = 1400,
    family: Annotated[
        Literal['direction', 'order', 'stroke', 'shapes', 'all'],
        Option(help='Of motion: which classes.'),
    ] = 'all',
    as_json: options.Json = False,
) -> None:
    """Resize and encode videos again, with keyframes close together, so that training reads them fast.

    The same command goes on after an interruption, and leaves what is done alone. The word `motion`
    as SRC stands for procedural clips, made on the spot, whose classes only the order of their frames
    tells apart; a folder of that name is `./motion`.
    """
    from ..data.motion.files import write_data_set
    from ..data.prepare.run import prepare as run

    motion = src == 'motion'
    check_given(context, motion, {'count', 'family'}, {'src', 'out', 'size', 'as_json'})
    if size is None:
        size = 112 if motion else 256
    with bar('videos') as show:
        if motion:
            result = write_data_set(out, count, family, size, progress=show)
        else:
            result = run(
                src,
                out,
                size=size,
                format=format,
                gop=gop,
                quality=quality,
                fps=fps,
                colors=colors,
                workers=workers,
                split=split or '',
                root=root or None,
                labels=labels or None,
                urls=allow_urls,
                frames=frames,
                frame_rate=frame_rate,
                on_error=on_error,
                max_failed=max_failed,
                time_limit=time_limit,
                progress=show,
            )
    print_facts(result, as_json)
