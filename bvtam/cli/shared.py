"""What the commands share: the app, tables, progress, JSON. Results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..errors import BvtamError, one_line

app = typer.Typer(
    name='bvtam',
    help='A model zoo for efficient video recognition: bLVNet-TAM, bLNet, TSN, TSM, TAM-ResNet.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode='markdown',
)


def check_given(
    context: typer.Context, chosen: bool, own: set[str], both: set[str], what: str = 'motion'
) -> None:
    """Options that are only for motion clips (or for `what`), or not for them, are not ignored.

    Raises:
        typer.BadParameter: one of them was given where it does nothing.
    """
    given = {
        name for name in context.params if context.get_parameter_source(name).name != 'DEFAULT'
    }
    for name in sorted(given - both - own if chosen else given & own):
        option = name.replace('_', '-')
        raise typer.BadParameter(f'--{option} is {"not for" if chosen else "for"} {what}')


def protocol_list(protocols: str) -> list[str]:
    return [name.strip().lower() for name in protocols.split(',') if name.strip()]


def load_model(model: str, precision: str = 'fp32', inside: bool = False) -> Any:
    """The model in eval mode, on this process's accelerator if there is one, optimised.

    A file that `export` wrote is run by its own runtime, which gives scores alone; `inside` says that
    more is needed.
    """
    if model.endswith(('.onnx', '.xml')):
        if inside:
            raise BvtamError(f'{model} gives scores alone: name the model that it was made of')
        from ..deploy.runtimes import RuntimeNet

        if precision != 'fp32':
            raise typer.BadParameter(f'--precision is not for {model}, which has its own')
        return RuntimeNet(model)
    import torch

    from ..deploy.optimize import optimize
    from ..factory import create_model
    from ..inference.extract import local_device

    loaded = create_model(model, pretrained=True).eval().to(local_device())
    return optimize(loaded, {'fp32': torch.float32, 'bf16': torch.bfloat16}[precision])


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def print_facts(
    facts: dict[str, Any], as_json: bool, title: str | None = None, *, every: bool = False
) -> None:
    """One JSON document, or a row for each; those of an inner table get its name in front.

    Of the processes of a launch, the first prints, or every one.
    """
    if not every:
        from ..inference.ranks import rank_and_world_size

        if rank_and_world_size(launched=True)[0]:
            return
    if as_json:
        print_json(facts)
        return
    flat = {}
    for key, value in facts.items():
        inner = value if isinstance(value, dict) else {'': value}
        flat |= {f'{key}.{k}'.rstrip('.'): v for k, v in inner.items()}
    formats = {int: ',', float: '.4g'}
    rows = [[k, format(v, formats[type(v)]) if type(v) in formats else v] for k, v in flat.items()]
    table(['', ''], rows, title)


def table(columns: list[str], rows: list[list[Any]], title: str | None = None) -> None:
    """A table on stdout; numbers are right-aligned, and nothing is cut off where output is a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = {'markup': False, 'emoji': False, 'highlight': False}  # labels may hold [brackets]
    console = Console(**plain)
    if not console.is_terminal:
        console = Console(width=1000, **plain)
    grid = Table(box=None, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], (int, float)) for row in rows)
        grid.add_column(column, justify='right' if numeric else 'left', overflow='fold')
    for row in rows:
        grid.add_row(*(Text(f'{v:,}' if type(v) is int else one_line(v)) for v in row))
    with console.capture() as text:
        if title:  # not the table's own, which is cut to its width
            console.print(Text(one_line(title)))
        console.print(grid)
    print(text.get(), end='', flush=True)  # a console would write across a bar


def figures(values: dict[str, Any]) -> str:
    return ', '.join(f'{k} {v:,}' if type(v) is int else f'{k} {v}' for k, v in values.items())


def with_bar(items: Iterable[Any], total: int) -> Iterator[Any]:
    """The items, and a bar on a terminal's stderr."""
    with bar('') as show:
        for done, item in enumerate(items):
            show(done, total)
            yield item


@contextmanager
def bar(what: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal's stderr with counts and the time left; call it with (done, total) or a note.

    What is printed meanwhile, on stderr or on a stdout that is a terminal too, comes above it.
    """
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn('{task.description}'),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn('{task.fields[note]}', markup=False),
    )
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get('LOCAL_RANK', '0') != '0':  # one of a launch
        yield lambda done=None, total=None, note=None: None
        return
    with progress.Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else results would go to stderr
    ) as bars:
        task = bars.add_task(what, total=None, note='')

        def show(
            done: int | None = None, total: int | None = None, note: str | None = None
        ) -> None:
            given = {'completed': done, 'total': total, 'note': note}
            bars.update(task, **{key: value for key, value in given.items() if value is not None})

        yield show
