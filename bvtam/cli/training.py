"""Commands that take labelled videos: train a model on them, or measure one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from . import options
from .shared import app, bar, check_given, load_model, print_facts, print_json, table


@app.command()
def train(
    recipe: Annotated[
        str,
        Argument(
            metavar='RECIPE', help='Name of a recipe or path of a YAML file (default: finetune).'
        ),
    ] = '',
    settings: Annotated[
        list[str] | None,
        Argument(metavar='KEY=VALUE', help='Settings in place of those of the recipe.'),
    ] = None,
    data: Annotated[str, Option(help=f'A folder for each class, or {options.LISTS}.')] = '',
    out: Annotated[
        Path | None, Option(help='Folder of the run (default: runs/ and the model).')
    ] = None,
    frames: options.Frames = '',
    frame_rate: options.FrameRate = None,
    resume: Annotated[
        Literal['auto', 'never'],
        Option(help='What to do with a run in that folder: go on with it, or refuse to.'),
    ] = 'auto',
    list_settings: Annotated[
        bool, Option('--settings', help='List the recipes and every setting, and end.')
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train or finetune a model; the same command goes on after an interruption.

    On several GPUs or machines: `accelerate launch -m bvtam train ...`
    """
    from ..engine.recipe import Recipe, list_recipes
    from ..engine.recipe import settings as all_settings

    if list_settings:
        _show_settings(list_recipes(), all_settings(), as_json)
        return
    from ..engine.run import train as run

    pairs = list(settings or [])
    if '=' in recipe:
        recipe, pairs = '', [recipe, *pairs]
    chosen = Recipe.load(recipe or 'finetune', pairs)
    if data:
        chosen = chosen.with_data(data)
    given = {'frames': frames, 'fps': frame_rate}
    given = {key: value for key, value in given.items() if value not in ('', None)}
    chosen = replace(chosen, data=replace(chosen.data, **given))
    logging.getLogger('bvtam').setLevel(logging.INFO)
    with bar('clips') as show:
        result = run(chosen, out, resume, show, _reporter(show))
    print_facts(result, as_json)


def _show_settings(recipes: list[str], settings: list[tuple[str, Any, str]], as_json: bool) -> None:
    if as_json:
        keys = ('setting', 'default', 'help')
        rows = [dict(zip(keys, row, strict=True)) for row in settings]
        print_json({'recipes': recipes, 'settings': rows})
    else:
        print(f'recipes: {", ".join(recipes)}\n')
        table(['setting', 'default', ''], [list(row) for row in settings])


def _reporter(show: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    """Puts losses beside the bar; evaluations, and where there is no bar all, get a line."""

    def report(row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if k not in ('epoch', 'step', 'val_num_videos')}
        note = ' '.join(f'{key} {value:.4g}' for key, value in numbers.items())
        show(note=note)
        if 'val_loss' in row or not sys.stderr.isatty():
            print(f'epoch {row["epoch"]} step {row["step"]} {note}', file=sys.stderr)

    return report


_EVAL_BOTH = {'model', 'data', 'out', 'batch_size', 'workers', 'precision', 'as_json'}


@app.command('eval')
def eval_(
    context: typer.Context,
    model: options.ModelName,
    data: Annotated[
        str, Option(help=f'A folder for each class, {options.LISTS}, or the word motion.')
    ],
    split: Annotated[Literal['train', 'val', 'test'], Option(help='Part of the data.')] = 'val',
    val_share: Annotated[
        float,
        Option(
            help='Share of each class that is val, where the data does not name its parts; training '
            'holds out 0.2.'
        ),
    ] = 1.0,
    root: options.Root = '',
    allow_urls: options.AllowUrls = False,
    frames: options.Frames = '',
    frame_rate: options.FrameRate = None,
    clips: options.Clips = None,
    crops: options.Crops = None,
    out: Annotated[
        Path | None,
        Option(help='Folder for results.json, per_class.csv, confusion.png, errors.csv.'),
    ] = None,
    batch_size: options.BatchSize = 8,
    workers: Annotated[int, Option(help='Processes that decode.')] = 2,
    precision: options.Precision = 'fp32',
    on_error: options.OnError = 'skip',
    max_failed: options.MaxFailed = 0.1,
    count: Annotated[int, Option(help='Of motion: clips.')] = 2000,
    seed: Annotated[int, Option(help='Of motion: other seeds, other clips.')] = 1,
    videos: Annotated[
        bool, Option('--videos', help='Of motion: by way of H.264 files, 320x240 at 10 fps.')
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a model's accuracy on labelled videos, or an image model's on images.

    `--data motion` renders clips that no training has seen (see `bvtam prepare`).
    On several GPUs or machines: `accelerate launch -m bvtam eval ...`
    """
    from ..data.load import load_images, load_records
    from ..engine.distributed import Processes
    from ..engine.evaluate import evaluate
    from ..engine.evaluate_motion import evaluate_motion
    from ..engine.run_folder import run_seed
    from ..inference.ranks import rank_and_world_size

    if rank_and_world_size(launched=True)[1] > 1:
        Processes()  # joins the others that a launcher has started
    motion = data == 'motion'
    check_given(context, motion, {'count', 'seed', 'videos'}, _EVAL_BOTH)
    with bar('clips' if motion else 'videos') as show:
        loaded = load_model(model, precision)
        common = {'batch_size': batch_size, 'workers': workers, 'out': out, 'progress': show}
        if motion:
            result = evaluate_motion(loaded, count, seed, videos=videos, **common)
        else:
            load = load_images if loaded.input_kind == 'image' else load_records
            records, names = load(
                data,
                split,
                root=root or None,
                labels=loaded.label_names,
                val_share=val_share,
                seed=run_seed(model),
                urls=allow_urls,
                frames=frames,
                fps=frame_rate,
            )
            result = evaluate(
                loaded,
                records,
                num_clips=clips,
                num_crops=crops,
                on_error=on_error,
                max_failed=max_failed,
                label_names=names,
                **common,
            )
    keys = ('model', 'num_videos', 'num_failed', 'top1', 'top5', 'mean_class_accuracy', 'loss')
    shown = {key: result[key] for key in keys} | result['views'] | result.get('families', {})
    print_facts(result if as_json else shown, as_json)
