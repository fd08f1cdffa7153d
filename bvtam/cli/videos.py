"""Commands about videos: what is in them, and networks trained on them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import Json, app, bar, print_json, table

Model = Annotated[
    str, typer.Option(help='ARCH, ARCH.TAG, local-dir:PATH, hf-hub:REPO, or the folder of a run.')
]
OnError = Annotated[
    str, typer.Option(help='A video that cannot be read: skip (and list it), or raise (stop).')
]
MaxFailed = Annotated[float, typer.Option(help='Share of the videos that may fail.')]
TimeLimit = Annotated[float, typer.Option(help='Seconds that a video may stall.')]


def _net(model: str) -> Any:
    """The net in eval mode, on this process's accelerator if there is one."""
    from ..engine.setup import model_source
    from ..factory import create_model
    from ..inference.extract import local_device

    return create_model(model_source(model), pretrained=True).eval().to(local_device())


@app.command()
def predict(
    videos: Annotated[
        list[str], typer.Argument(help='Files, folders, globs, URLs; - for a stream on stdin.')
    ],
    model: Model = 'bvtam_r50_8x2',
    topk: Annotated[int, typer.Option(help='Classes to show.')] = 5,
    clips: Annotated[
        int | None, typer.Option(help="Clips of a video (default: the model's).")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help="Crops of a clip (default: the model's).")
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help='Seconds between windows: one answer for each, not one in all.'),
    ] = None,
    length: Annotated[
        float | None, typer.Option(help='Seconds of a window (default: as --every).')
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(help='PNG of the scores over time, or a folder for several videos.'),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help='Annotated copy, .mp4 or .gif, or a folder for several videos.'),
    ] = None,
    batch_size: Annotated[int, typer.Option(help='Views that go through the net together.')] = 8,
    workers: Annotated[int, typer.Option(help='Threads that decode.')] = 4,
    on_error: OnError = 'raise',
    max_failed: MaxFailed = 0.1,
    errors: Annotated[
        Path | None, typer.Option(help='CSV of the videos that were skipped.')
    ] = None,
    time_limit: TimeLimit = 60.0,
    as_json: Json = False,
) -> None:
    """Name what videos show: the likeliest classes and their scores."""
    from ..data.datasets import find_videos
    from ..data.failures import Failures
    from ..inference.predict import predict_many
    from ..inference.render import save_annotated, save_timeline
    from ..inference.windows import windows_many

    if every is None and (length is not None or timeline is not None):
        raise typer.BadParameter('--length and --timeline are of windows: give --every SECONDS')
    names = find_videos(videos)
    if len(names) > 1:
        for option, path in (('--timeline', timeline), ('--save', save)):
            if path is not None and path.suffix:
                raise typer.BadParameter(
                    f'{option} must be a folder, since there are {len(names)} videos'
                )
    net = _net(model)
    failures = Failures(len(names), max_failed, errors)
    views = {'num_clips': clips, 'num_crops': crops, 'batch_size': batch_size}
    common = {
        'workers': workers,
        'on_error': on_error,
        'failures': failures,
        'time_limit': time_limit,
    }
    with bar('windows' if every else 'videos') as show:
        if every is None:
            found = predict_many(net, names, topk, **views, **common, progress=show)
        else:
            found = windows_many(net, names, every, length, topk, **views, **common, progress=show)
        results = []
        for result in found:
            results.append(result)
            if not as_json:
                _show_prediction(result)
            several = len(names) > 1
            if timeline is not None:
                save_timeline(result, _place(timeline, result['video'], '.png', several))
            if save is not None:
                save_annotated(
                    result, result['video'], _place(save, result['video'], '.mp4', several)
                )
    if as_json:
        print_json(results)
    if failures:
        print(failures.summary(), file=sys.stderr)


def _place(path: Path, video: str, suffix: str, several: bool) -> Path:
    """Where the picture or copy of one video goes."""
    if not several and path.suffix:
        return path
    return path / f'{Path(video).stem}{suffix}'


def _show_prediction(result: dict[str, Any]) -> None:
    if 'windows' in result:
        rows = [
            [f'{w["start"]:.2f}', f'{w["end"]:.2f}', t['label'], f'{t["score"]:.4f}']
            for w in result['windows']
            for t in w['top'][:1]
        ]
        table(['start', 'end', 'label', 'score'], rows, result['video'])
    else:
        rows = [[t['label'], t['index'], f'{t["score"]:.4f}'] for t in result['top']]
        table(['label', 'index', 'score'], rows, result['video'])


@app.command('eval')
def eval_(
    model: Annotated[
        str,
        typer.Argument(metavar='RUN_OR_NAME', help="A run's folder, or a network with weights."),
    ],
    data: Annotated[str, typer.Option(help='Class folders, a list or annotations.')],
    split: Annotated[str, typer.Option(help='train, val, test, or empty for all.')] = '',
    root: Annotated[str, typer.Option(help='Folder that the paths in a list start from.')] = '',
    clips: Annotated[
        int | None, typer.Option(help='Clips of a video (default: the published).')
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help='Crops of a clip (default: the published).')
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help='Folder for results.json, per_class.csv and confusion.png.')
    ] = None,
    batch_size: Annotated[int, typer.Option(help='Clips that go through the net together.')] = 8,
    workers: Annotated[int, typer.Option(help='Processes that decode.')] = 2,
    on_error: OnError = 'skip',
    max_failed: MaxFailed = 0.1,
    as_json: Json = False,
) -> None:
    """Measure a network's accuracy on labelled videos, or an image network's on images.

    On several GPUs or machines: accelerate launch -m bvtam eval ...
    """
    from ..data.datasets import load_images, load_records
    from ..engine.evaluate import evaluate, processes

    with processes(), bar('videos') as show:
        net = _net(model)
        load = load_images if net.input_kind == 'image' else load_records
        records, names = load(data, split, root=root or None, labels=net.label_names)
        result = evaluate(
            net,
            records,
            num_clips=clips,
            num_crops=crops,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            max_failed=max_failed,
            out=out,
            label_names=names,
            progress=show,
        )
    if as_json:
        print_json(result)
        return
    keys = ('model', 'num_videos', 'num_failed', 'top1', 'top5', 'mean_class_accuracy', 'loss')
    _print_facts({key: result[key] for key in keys} | result['views'], False)


@app.command()
def extract(
    sources: Annotated[list[str], typer.Argument(help='Videos: files, folders, globs, URLs.')],
    out: Annotated[Path, typer.Option(help='Folder of the shards.')],
    model: Model = 'bvtam_r50_8x2',
    what: Annotated[
        str, typer.Option(help='A row is a clip, a window or a pair of frames.')
    ] = 'clip',
    length: Annotated[float | None, typer.Option(help='Seconds of a window.')] = None,
    every: Annotated[float | None, typer.Option(help='Seconds between windows.')] = None,
    stage: Annotated[str, typer.Option(help='pooled, or a stage by name or number.')] = 'pooled',
    format: Annotated[str, typer.Option(help='safetensors or parquet.')] = 'safetensors',
    dtype: Annotated[str, typer.Option(help='float32 or float16.')] = 'float32',
    shard_size: Annotated[int, typer.Option(help='Videos of a shard.')] = 256,
    batch_size: Annotated[int, typer.Option(help='Clips that go through the net together.')] = 8,
    workers: Annotated[int, typer.Option(help='Threads that decode.')] = 4,
    on_error: OnError = 'skip',
    max_failed: MaxFailed = 0.1,
    time_limit: TimeLimit = 60.0,
    as_json: Json = False,
) -> None:
    """Turn videos into embeddings, in shards; the same command goes on after an interruption.

    On several GPUs or machines: accelerate launch -m bvtam extract ...
    """
    from ..inference.extract import extract as run

    with bar('videos') as show:
        result = run(
            _net(model),
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
            progress=show,
        )
    _print_facts(result, as_json)


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        table(['', ''], [[k, f'{v:,}' if type(v) is int else v] for k, v in facts.items()])


@app.command()
def prepare(
    src: Annotated[str, typer.Argument(help='A dataset, a folder of videos, or `motion`.')],
    out: Annotated[Path, typer.Argument(help='Folder to write.')],
    size: Annotated[
        int | None, typer.Option(help='Pixels of the shorter side (default 256; motion: 112).')
    ] = None,
    format: Annotated[str, typer.Option(help='video (H.264) or frames (JPEG).')] = 'video',
    gop: Annotated[int, typer.Option(help='Frames between two keyframes.')] = 12,
    quality: Annotated[
        int | None, typer.Option(help='CRF of videos (default 18), or of JPEG (default 95).')
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help='Frames a second (default: as they are).')
    ] = None,
    workers: Annotated[int | None, typer.Option(help='Processes (default: one per core).')] = None,
    split: Annotated[str, typer.Option(help='train, val, test, or all.')] = '',
    root: Annotated[str, typer.Option(help='Folder that the paths in a list start from.')] = '',
    labels: Annotated[str, typer.Option(help='File with the label names.')] = '',
    on_error: OnError = 'skip',
    max_failed: MaxFailed = 0.1,
    time_limit: TimeLimit = 60.0,
    count: Annotated[
        int, typer.Option(help='motion: videos to train on; a fifth more each for val and test.')
    ] = 1400,
    family: Annotated[str, typer.Option(help='motion: direction, order or all.')] = 'all',
    as_json: Json = False,
) -> None:
    """Resize and encode videos again, with keyframes close together, so that training reads them fast.

    SRC `motion` stands for procedural clips, made on the spot, whose classes only the order of frames
    tells apart. The same command goes on after an interruption, and leaves what is done alone.
    """
    if src == 'motion':
        from ..data.motion_files import write_data_set

        with bar('videos') as show:
            result = write_data_set(out, count, family, size or 112, progress=show)
        _print_facts(result, as_json)
        return
    from ..data.prepare import prepare as run

    with bar('videos') as show:
        result = run(
            src,
            out,
            size=size or 256,
            format=format,
            gop=gop,
            quality=quality,
            fps=fps,
            workers=workers,
            split=split,
            root=root or None,
            labels=labels or None,
            on_error=on_error,
            max_failed=max_failed,
            time_limit=time_limit,
            progress=show,
        )
    _print_facts(result, as_json)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help='Name of a recipe, path of a YAML file, or a first KEY=VALUE.')
    ] = '',
    settings: Annotated[
        list[str] | None, typer.Argument(metavar='KEY=VALUE...', help='Settings of the recipe.')
    ] = None,
    data: Annotated[str, typer.Option(help='Class folders, a list or annotations.')] = '',
    out: Annotated[
        Path | None, typer.Option(help='Folder of the run (default: runs/ and the model).')
    ] = None,
    resume: Annotated[
        str, typer.Option(help='auto goes on with the run in the folder, never refuses to.')
    ] = 'auto',
    list_settings: Annotated[
        bool, typer.Option('--settings', help='List the recipes and every setting, and end.')
    ] = False,
    as_json: Json = False,
) -> None:
    """Train or finetune a network; without a recipe, `finetune` on the videos in --data.

    On several GPUs or machines: accelerate launch -m bvtam train ...
    """
    from ..engine.recipe import Recipe, list_recipes
    from ..engine.recipe import settings as all_settings

    if list_settings:
        print(f'recipes: {", ".join(list_recipes())}\n')
        table(['setting', 'default', ''], [list(row) for row in all_settings()])
        return
    from ..engine.start import train as run

    pairs = list(settings or [])
    if '=' in recipe:
        recipe, pairs = '', [recipe, *pairs]
    chosen = Recipe.load(recipe or 'finetune', pairs)
    if data:
        chosen = chosen.with_data(data)
    logging.getLogger('bvtam').setLevel(logging.INFO)
    with bar('clips') as show:
        result = run(chosen, out, resume, show, _reporter(show))
    _print_facts(result, as_json)


def _reporter(show: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """Puts losses beside the bar; evaluations, and where there is no bar all, get a line."""

    def report(row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if k not in ('epoch', 'step', 'val_num_videos')}
        note = ' '.join(f'{key} {value:.4g}' for key, value in numbers.items())
        show(note=note)
        if 'val_loss' in row or not sys.stderr.isatty():
            print(f'epoch {row["epoch"]} step {row["step"]} {note}', file=sys.stderr)

    return report
