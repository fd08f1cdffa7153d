"""Commands about videos: what is in them, their embeddings, and smaller copies to train on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

import typer

from ..errors import one_line
from .shared import (
    AllowUrls,
    FolderRate,
    FrameRate,
    Frames,
    Json,
    MaxFailed,
    OnError,
    Precision,
    Protocols,
    Root,
    TimeLimit,
    app,
    bar,
    check_given,
    load_net,
    print_facts,
    print_json,
    table,
)

Model = Annotated[
    str, typer.Option(help='ARCH, ARCH.TAG, local-dir:PATH, hf-hub:REPO, or the folder of a run.')
]


@app.command()
def predict(
    context: typer.Context,
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar='VIDEO', help='Files, folders, globs, URLs; - for a stream on stdin.'
        ),
    ],
    model: Model = 'bvtam_r50_8x2',
    topk: Annotated[
        int, typer.Option(help='Classes to show; of windows, the table has the first.')
    ] = 5,
    clips: Annotated[
        int | None, typer.Option(help="Clips of a video (default: the model's).")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help="Crops of a clip: 1, 3, 5 or 10 (default: the model's).")
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help='Answer for windows of the video, one beginning every so many seconds.'),
    ] = None,
    length: Annotated[
        float | None, typer.Option(help='Seconds of a window (default: as --every).')
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(help='Draw the scores of the windows: a .png file, or a folder of them.'),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help='Copy the video with the labels drawn on it: a .mp4 or .gif file, or a folder.'
        ),
    ] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(help='Draw where and when the net sees it: a .png file, or a folder of them.'),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            '--stream', help='Answer while one video comes: a file, a pipe, a URL, /dev/video0.'
        ),
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(
            help='Frames a second that --stream looks at (default: all); else as --frame-rate.'
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(help='Steps that an answer of --stream is of (default: all so far).'),
    ] = None,
    batch_size: Annotated[int, typer.Option(help='Views that go through the net together.')] = 8,
    workers: Annotated[int, typer.Option(help='Threads that decode.')] = 4,
    precision: Precision = 'fp32',
    runtime: Annotated[
        Literal['torch', 'onnx', 'openvino'],
        typer.Option(help='What runs the network; --model is a file from `export` then.'),
    ] = 'torch',
    on_error: OnError = 'raise',
    max_failed: MaxFailed = 0.1,
    errors: Annotated[
        Path | None, typer.Option(help='CSV file to list the videos in that were skipped.')
    ] = None,
    frames: Frames = '',
    frame_rate: FolderRate = None,
    time_limit: TimeLimit = 60.0,
    protocols: Protocols = 'http,https,rtsp',
    as_json: Annotated[
        bool, typer.Option('--json', help='Print one JSON document; with --stream, one a line.')
    ] = False,
) -> None:
    """Name what videos show: the likeliest classes and their scores."""
    from ..data.datasets import find_videos
    from ..data.failures import Failures
    from ..data.video.addresses import is_url
    from ..data.video.folders import check_frames
    from ..data.video.open import open_video
    from ..data.video.reader import VideoError
    from ..inference.evidence import evidence as find_evidence
    from ..inference.evidence import save_evidence
    from ..inference.predict import predict_many, video_name
    from ..inference.render import SUFFIXES, save_annotated, save_timeline
    from ..inference.windows import windows_many

    suffix = {'torch': '', 'onnx': '.onnx', 'openvino': '.xml'}[runtime]
    if not model.endswith(suffix):
        raise typer.BadParameter(
            f'--runtime {runtime} needs --model FILE{suffix}, which `bvtam export NAME FILE{suffix}` writes'
        )
    both = {'videos', 'model', 'topk', 'precision', 'time_limit', 'protocols', 'as_json'}
    both |= {'fps', 'frames', 'frame_rate'}
    check_given(context, stream, {'stream', 'last'}, both, '--stream')
    if stream:
        if len(videos) > 1:
            raise typer.BadParameter('--stream is of one video')
        from ..inference.stream import predict_stream

        answers = predict_stream(
            load_net(model, precision, inside=True),
            open_video(videos[0], time_limit, _names(protocols), frames=frames, fps=frame_rate),
            topk,
            fps=fps,
            last=last,
            time_limit=time_limit,
        )
        _show_answers(answers, as_json)
        return
    if fps is not None and frame_rate is not None:
        raise typer.BadParameter('--fps is as --frame-rate without --stream: give one of them')
    frame_rate = fps if frame_rate is None else frame_rate
    if every is None and (length is not None or timeline is not None):
        raise typer.BadParameter('--length and --timeline are of windows: give --every SECONDS')
    if every is not None and evidence is not None:
        raise typer.BadParameter('--evidence is of the whole video: leave out --every')
    names = find_videos(videos, _names(protocols))
    several = len(names) > 1
    _check_output('--evidence', evidence, ('.png',), several)
    _check_output('--timeline', timeline, ('.png',), several)
    _check_output('--save', save, SUFFIXES, several)
    check_frames(frames, frame_rate, names)
    readers: list[Any] = list(names)
    for place, name in enumerate(names):
        # What can be read once is kept by its reader for the annotated copy.
        if name == '-' or is_url(name):
            readers[place] = open_video(name, time_limit, _names(protocols))
        elif os.path.isdir(name):
            readers[place] = open_video(name, frames=frames, fps=frame_rate)
    sources = {video_name(reader): reader for reader in readers}
    stems = _stems(list(sources))
    failures = Failures(len(names), max_failed, errors)
    options = {
        'num_clips': clips,
        'num_crops': crops,
        'batch_size': batch_size,
        'workers': workers,
        'on_error': on_error,
        'failures': failures,
        'time_limit': time_limit,
    }
    results = []
    with bar('videos' if every is None else 'windows') as show:
        options['progress'] = show
        net = load_net(model, precision, inside=evidence is not None)
        if every is None:
            found = predict_many(net, readers, topk, **options)
        else:
            found = windows_many(net, readers, every, length, topk, **options)
        for result in found:
            results.append(result)
            if not as_json:
                _show_prediction(result)
            video = result['video']
            if timeline is not None:
                save_timeline(result, _output(timeline, f'{stems[video]}.png'))
            try:
                if evidence is not None:
                    seen = find_evidence(net, sources[video], topk, time_limit=time_limit)
                    save_evidence(seen, _output(evidence, f'{stems[video]}.png'))
                if save is not None:
                    path = _output(save, f'{stems[video]}.mp4')
                    show(note=f'writing {path.name}')
                    save_annotated(result, sources[video], path, time_limit=time_limit)
            except VideoError as error:  # damage between the frames that were predicted from
                if on_error == 'raise':
                    raise
                failures.add(video, error)
            show(note=f'video {len(results)} of {len(names)}' if several and every else '')
    if as_json:
        print_json(results)
    if failures:
        print(failures.summary(), file=sys.stderr)


@app.command()
def demo(
    model: Model = 'bvtam_r50_8x2',
    port: Annotated[int, typer.Option(help='Of the page, on this machine.')] = 7860,
    share: Annotated[
        bool, typer.Option('--share', help="Let others see it, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        str,
        typer.Option(
            metavar='USER:PASSWORD', help='Ask for these (default: --share makes a password).'
        ),
    ] = '',
    max_size: Annotated[int, typer.Option(min=1, help='MB of an upload.')] = 200,
) -> None:
    """Open a page to drop or record a video on: what it shows, when, and where the evidence is."""
    from ..inference.demo import build, launch

    user, _, password = auth.partition(':')
    if auth and not (user and password):
        raise typer.BadParameter('--auth wants USER:PASSWORD')
    page = build(load_net(model, inside=True))
    login = launch(page, port, share, (user, password) if auth else None, max_size)
    print(f'open {page.share_url or page.local_url} (Ctrl-C ends it)', flush=True)
    if login and not auth:
        print(f'log in as {login[0]} with the password {login[1]}', flush=True)
    try:
        Event().wait()
    finally:
        page.close(verbose=False)


def _show_answers(answers: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Each as soon as it is there: a line when the likeliest class is another, or a JSON object."""
    shown = None
    for number, answer in enumerate(answers):
        if as_json:
            print(',\n' if number else '[', json.dumps(answer), sep='', end='', flush=True)
            continue
        label, score = answer['top'][0]['label'], answer['top'][0]['score']
        if label != shown:
            print(f'{answer["time"]:8.2f} s  {score:.4f}  {one_line(label)}', flush=True)
        shown = label
    if as_json:
        print(']')


def _names(protocols: str) -> list[str]:
    return [name.strip().lower() for name in protocols.split(',') if name.strip()]


def _check_output(option: str, path: Path | None, suffixes: tuple[str, ...], several: bool) -> None:
    if path is None or _is_folder(path):
        return
    if several:
        raise typer.BadParameter(f'{option} must be a folder, since there are several videos')
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(
            f'{option} must be a folder or end in {" or ".join(suffixes)}, not {path.name}'
        )


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _output(path: Path, name: str) -> Path:
    return path / name if _is_folder(path) else path


def _stems(videos: list[str]) -> dict[str, str]:
    """A name for what is made of each video: its own, with the folders that they do not share."""
    from ..data.video.addresses import is_url

    paths = [os.path.abspath(f'/{v.partition("://")[2]}' if is_url(v) else v) for v in videos]
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, base) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    if len(set(stems)) < len(stems):  # a.mp4 beside a.avi
        stems = names
    return dict(zip(videos, stems, strict=True))


def _show_prediction(result: dict[str, Any]) -> None:
    if 'windows' in result:
        rows = [
            [f'{w["start"]:.2f}', f'{w["end"]:.2f}', t['label'], t['index'], f'{t["score"]:.4f}']
            for w in result['windows']
            for t in w['top'][:1]
        ]
        table(['start', 'end', 'label', 'index', 'score'], rows, result['video'])
    else:
        rows = [[t['label'], t['index'], f'{t["score"]:.4f}'] for t in result['top']]
        table(['label', 'index', 'score'], rows, result['video'])


@app.command()
def extract(
    sources: Annotated[
        list[str], typer.Argument(metavar='VIDEO', help='Files, folders, globs, URLs.')
    ],
    out: Annotated[Path, typer.Option(help='Folder of the shards.')],
    model: Model = 'bvtam_r50_8x2',
    what: Annotated[
        Literal['clip', 'window', 'pair'], typer.Option(help='What one embedding is of.')
    ] = 'clip',
    length: Annotated[
        float | None, typer.Option(help='Seconds of a window; --what window needs it.')
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help='Seconds from one window to the next (default: as --length).'),
    ] = None,
    stage: Annotated[
        str,
        typer.Option(help='pooled (what the classifier takes), or a stage by name or number.'),
    ] = 'pooled',
    format: Annotated[
        Literal['safetensors', 'parquet'], typer.Option(help='Of the shards.')
    ] = 'safetensors',
    dtype: Annotated[
        Literal['float32', 'float16'], typer.Option(help='Of the embeddings on disk.')
    ] = 'float32',
    shard_size: Annotated[int, typer.Option(help='Videos of a shard.')] = 256,
    batch_size: Annotated[int, typer.Option(help='Clips that go through the net together.')] = 8,
    workers: Annotated[int, typer.Option(help='Threads that decode.')] = 4,
    precision: Precision = 'fp32',
    on_error: OnError = 'skip',
    max_failed: MaxFailed = 0.1,
    time_limit: TimeLimit = 60.0,
    protocols: Protocols = 'http,https,rtsp',
    frames: Frames = '',
    frame_rate: FrameRate = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar='env|all|R/N',
            help='Share of this process: by RANK and WORLD_SIZE, all, or that of process R of N.',
        ),
    ] = 'env',
    as_json: Json = False,
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
            load_net(model, precision, inside=True),
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
            protocols=_names(protocols),
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
        str, typer.Argument(metavar='SRC', help='A data set, a folder of videos, or motion.')
    ],
    out: Annotated[Path, typer.Argument(metavar='OUT', help='Folder to write.')],
    size: Annotated[
        int | None,
        typer.Option(help='Pixels of the shorter side (default: 256, of motion 112).'),
    ] = None,
    format: Annotated[
        Literal['video', 'frames'], typer.Option(help='H.264 in MP4, or folders of JPEG files.')
    ] = 'video',
    gop: Annotated[int, typer.Option(help='Frames from one keyframe to the next.')] = 12,
    quality: Annotated[
        int | None,
        typer.Option(help='CRF of videos (default: 18), or quality of JPEG (default: 95).'),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help='Frames a second that are written (default: as they are).')
    ] = None,
    frames: Frames = '',
    frame_rate: FolderRate = None,
    colors: Annotated[
        Literal['tagged', 'jpeg'],
        typer.Option(help='Of JPEG files: by the tags of the video, or as FFmpeg extracts them.'),
    ] = 'tagged',
    workers: Annotated[int | None, typer.Option(help='Processes (default: one per core).')] = None,
    split: Annotated[
        Literal['train', 'val', 'test'] | None, typer.Option(help='One part only (default: all).')
    ] = None,
    root: Root = '',
    labels: Annotated[str, typer.Option(help='File with the label names (default: found).')] = '',
    allow_urls: AllowUrls = False,
    on_error: OnError = 'skip',
    max_failed: MaxFailed = 0.1,
    time_limit: TimeLimit = 60.0,
    count: Annotated[
        int,
        typer.Option(help='Of motion: videos to train on; a fifth more each for val and test.'),
    ] = 1400,
    family: Annotated[
        Literal['direction', 'order', 'all'], typer.Option(help='Of motion: which classes.')
    ] = 'all',
    as_json: Json = False,
) -> None:
    """Resize and encode videos again, with keyframes close together, so that training reads them fast.

    The same command goes on after an interruption, and leaves what is done alone. The word `motion`
    as SRC stands for procedural clips, made on the spot, whose classes only the order of their frames
    tells apart; a folder of that name is `./motion`.
    """
    motion = src == 'motion'
    check_given(context, motion, {'count', 'family'}, {'src', 'out', 'size', 'as_json'})
    if motion:
        from ..data.motion.files import write_data_set

        with bar('videos') as show:
            side = 112 if size is None else size
            result = write_data_set(out, count, family, side, progress=show)
        print_facts(result, as_json)
        return
    from ..data.prepare.run import prepare as run

    with bar('videos') as show:
        result = run(
            src,
            out,
            size=256 if size is None else size,
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
