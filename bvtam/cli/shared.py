"""What the commands share: the app, tables, progress, JSON. Results on stdout, the rest on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    name='bvtam',
    help='A model zoo for efficient video recognition: bLVNet-TAM, bLNet, TSN, TSM, TAM-ResNet.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option('--json', help='Print one JSON document instead of a table.')]


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def table(columns: list[str], rows: list[list[Any]], title: str | None = None) -> None:
    """A table on stdout; numbers are right-aligned, and nothing is cut off where output is a file."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = {'markup': False, 'emoji': False, 'highlight': False}  # labels may hold [brackets]
    console = Console(**plain)
    if not console.is_terminal:
        console = Console(width=1000, **plain)
    grid = Table(title=title and Text(title), title_justify='left', box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], (int, float)) for row in rows)
        grid.add_column(column, justify='right' if numeric else 'left')
    for row in rows:
        grid.add_row(*(Text(f'{v:,}' if type(v) is int else str(v)) for v in row))
    console.print(grid)


def figures(values: dict[str, Any]) -> str:
    return ', '.join(f'{k} {v:,}' if type(v) is int else f'{k} {v}' for k, v in values.items())


def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """A bar on stderr, where that is a terminal and there is more than one item."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        return items
    return track(items, total=total, console=console, transient=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal's stderr with counts and the time left; call it with (done, total) or a note."""
    from rich.console import Console
    from rich.progress import (  # fmt: skip
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:  # fmt: skip
        task = bars.add_task(what, total=None, note='')

        def show(
            done: int | None = None, total: int | None = None, note: str | None = None
        ) -> None:
            given = {'completed': done, 'total': total, 'note': note}
            bars.update(task, **{key: value for key, value in given.items() if value is not None})

        yield show
