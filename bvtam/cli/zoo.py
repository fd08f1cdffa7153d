"""Commands about models and weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import BvtamError
from . import options
from .shared import app, bar, figures, print_facts, print_json, table, with_bar


@app.command('list')
def list_(
    pattern: Annotated[str, Argument(help="Wildcards, as in 'bvtam_r50_*'.")] = '*',
    pretrained: Annotated[
        bool, Option('--pretrained', help='Weights, and how each comes to this machine.')
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List models, or weights."""
    from ..factory import list_models, list_pretrained
    from ..weights import resolve
    from ..weights.table import entries

    if not pretrained:
        names = list_models(pattern)
        print(json.dumps(names, indent=2) if as_json else '\n'.join(names))
        return
    rows = []
    for name in list_pretrained(pattern):
        entry = entries().get(name)
        metric = entry.metrics[0] if entry else {}
        rows.append(
            {
                'name': name,
                'from': resolve.where(name),
                'dataset': entry.dataset if entry else '',
                'top1': metric.get('top1', ''),
                'views': metric.get('views', ''),
                'gmacs': round(entry.costs['conv_macs'] / 1e9, 2) if entry else '',
                'origin': entry.release if entry else '',
                'licence': entry.licence if entry else '',
            }
        )
    if as_json:
        print_json(rows)
    elif rows:
        table(list(rows[0]), [list(r.values()) for r in rows])


@app.command()
def info(name: options.ModelName, as_json: options.Json = False) -> None:
    """Show a model: parameters, features, options, ClipConfig."""
    from ..factory import describe

    print_facts(describe(name), as_json, name)


@app.command()
def flops(
    name: Annotated[
        str, Argument(help="A model, or wildcards as in 'bvtam_r50_*'; not with --check.")
    ] = '',
    frames: Annotated[int | None, Option(min=1, help='Frames T of the clip.')] = None,
    size: Annotated[int | None, Option(min=1, help='Height and width in pixels.')] = None,
    num_classes: Annotated[int | None, Option(min=0, help='Classes of the head.')] = None,
    check: Annotated[bool, Option('--check', help='Go through the whole published table.')] = False,
    as_json: options.Json = False,
) -> None:
    """Count multiply-accumulates with fvcore: as published, and as executed here."""
    from ..deploy import flops as room
    from ..factory import list_models

    if check == bool(name):
        raise typer.BadParameter('give the NAME of a model, or --check')
    if check:
        rows = list(with_bar(room.check(), len(room.published())))
        if as_json:
            print_json(rows)
        else:
            columns = ['model', 'num_frames', 'size', 'num_classes', 'ok']
            rows_shown = [
                [*(r[c] for c in columns), *(figures(r[k]) for k in ('expected', 'computed'))]
                for r in rows
            ]
            table([*columns, 'published', 'computed'], rows_shown)
        if not all(row['ok'] for row in rows):
            raise BvtamError(f'{sum(not row["ok"] for row in rows)} of {len(rows)} rows differ')
        return
    names = list_models(name) or [name]
    costs = [room.flops(n, frames, size, num_classes) for n in with_bar(names, len(names))]
    if as_json:
        print_json(costs if set('*?[') & set(name) else costs[0])
    else:
        table(list(costs[0]), [list(c.values()) for c in costs])


@app.command()
def export(
    name: options.ModelName,
    out: Annotated[
        Path, Argument(help='File to write: .onnx, .xml (OpenVINO) or .pt2 (torch.export).')
    ],
    int8: Annotated[
        str,
        Option(
            metavar='DATA',
            help='Quantise to 8-bit integers, calibrated on these videos; motion for rendered ones.',
        ),
    ] = '',
    count: Annotated[int, Option(min=1, help='Clips to calibrate on.')] = 100,
    frames: options.Frames = '',
    frame_rate: options.FrameRate = None,
    as_json: options.Json = False,
) -> None:
    """Write a model with its weights for other programs; batch, frames and size stay free."""
    from ..data.transforms import check_channels
    from ..deploy.export import calibration_clips
    from ..deploy.export import export as run
    from ..factory import create_model

    if (frames or frame_rate is not None) and not int8:
        raise typer.BadParameter('--frames and --frame-rate are of the videos of --int8')
    model = create_model(name, pretrained=True).eval()
    clips = None
    if int8:
        if model.clip_config is None:
            raise typer.BadParameter('--int8 is for video models')
        check_channels(name, model.clip_config, model)
        clips = with_bar(
            calibration_clips(int8, model.clip_config, count, frames, frame_rate), count
        )
    path = run(model, out, clips)
    print_facts({'file': str(path), 'bytes': path.stat().st_size, 'int8': bool(int8)}, as_json)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, Argument(metavar='NAME', help='Models, or wildcards.')
    ] = None,
    peers: Annotated[
        list[str] | None,
        Option(help='Models of other libraries: a name, all (that are installed), or none.'),
    ] = None,
    precision: options.Precision = 'fp32',
    batch: Annotated[list[int] | None, Option(min=1, help='Clips at a time.')] = None,
    rounds: Annotated[int, Option(min=1, help='Turns that each model takes.')] = 5,
    out: Annotated[
        Path | None, Option(help='Folder for bench.json, bench.md and bench.png.')
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Time models on this machine, beside those of other libraries that are installed."""
    from ..deploy import bench as room
    from ..factory import list_models

    names = [n for name in names or ['bvtam_r50_8x2'] for n in list_models(name) or [name]]
    chosen = {('all',): None, ('none',): []}.get(tuple(peers or ['all']), peers)
    with bar('batch sizes') as show:
        result = room.bench(
            names,
            chosen,
            precision=precision,
            batch_sizes=batch or [1],
            rounds=rounds,
            progress=show,
        )
    if out is not None:
        room.save(result, out)
    if as_json:
        print_json(result)
    else:
        print(room.markdown(result))


def _options(pairs: list[str]) -> dict[str, Any]:
    """`key=value` as options; a value is JSON where it can be, else a string."""
    options = {}
    for pair in pairs:
        key, found, value = pair.partition('=')
        if not found or not key:
            raise typer.BadParameter(f'--option wants KEY=VALUE, not {pair!r}')
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


@app.command()
def convert(
    checkpoint: Annotated[Path, Argument(help="The authors' file.")],
    name: Annotated[
        str, Option(help='ARCH.TAG of the result (default: inferred, tag `converted`).')
    ] = '',
    labels: Annotated[str, Option(help='Class names: a line each, CSV, or JSON.')] = '',
    out: Annotated[str, Option(help='Folder to write (default: in your cache).')] = '',
    sha256: Annotated[str, Option(help='That the file must have; else it is not read.')] = '',
    option: Annotated[
        list[str] | None,
        Option(metavar='KEY=VALUE', help='What weights do not tell: temporal_pool=true.'),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Turn an authors' checkpoint into a zoo folder (config.json, model.safetensors, card)."""
    from ..hub.convert import convert as run
    from ..weights.zoo import read_config

    folder = run(checkpoint, name, labels, out, sha256, **_options(option or []))
    if as_json:
        print_json({'folder': str(folder), **read_config(folder)})
    else:
        arch = read_config(folder)['architecture']
        print(f'{arch} written to {folder}\nuse it as local-dir:{folder}')


@app.command()
def verify(
    name: Annotated[str, Argument(help='ARCH.TAG, a zoo folder, or that of a run.')] = '',
    as_json: options.Json = False,
) -> None:
    """Check weights: hashes, a strict load, and the logits of a stored clip (default: all here)."""
    from ..hub.verify import verify as run
    from ..weights import resolve

    names = [name] if name else [str(folder) for folder in resolve.folders()]
    results = [run(n) for n in with_bar(names, len(names))]
    if as_json:
        print_json(results)
    elif results:
        table(list(results[0]), [list(r.values()) for r in results])
    else:
        print('no weights here', file=sys.stderr)


@app.command()
def push(
    folder: Annotated[Path, Argument(help='A zoo folder, or that of a run.')],
    repo_id: Annotated[str, Argument(help='owner/repo on the Hugging Face Hub.')],
    private: Annotated[bool, Option(help='Make a new repo private.')] = False,
    revision: Annotated[str, Option(help='Branch to push to; made if it is not there.')] = '',
    create_pr: Annotated[bool, Option(help='Open a pull request.')] = False,
    as_json: options.Json = False,
) -> None:
    """Upload a zoo folder to the Hugging Face Hub."""
    from ..hub.push import push_folder

    url = push_folder(folder, repo_id, private, revision or None, create_pr)
    print_json({'url': url}) if as_json else print(url)
