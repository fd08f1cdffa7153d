"""The folder of a run: its recipe, which a resumed run must share, its metrics and their curves."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import filelock

from ..errors import BvtamError
from ..files import append_own, read_text, recover, refuse_links, write_file
from ..optional import library
from .recipe import Recipe, settings
from .settings import read_yaml

log = logging.getLogger('bvtam')

RECIPE, METRICS, RESULTS = 'recipe.yaml', 'metrics.jsonl', 'results.json'
CURVES = 'curves.png'

# What a run writes, replaces or removes in its folder.
_OWN = ('.lock', RECIPE, METRICS, RESULTS, CURVES, 'errors.csv')
_OWN += ('best', 'last', 'checkpoints', 'tensorboard')

# Settings that do not move the numbers of a run: a resumed one may change them.
# Where the data lie is free too: what they are is compared by itself (see `Trainer.data`).
FREE = {'run.save_minutes', 'run.keep', 'data.workers', 'data.time_limit', 'data.max_failed'}
FREE |= {'data.path', 'data.train', 'data.val', 'data.root'}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Makes the folder, if need be, and keeps it to this process.

    Raises:
        BvtamError: another process has it, or it cannot be written.
    """
    lock = filelock.FileLock(out / '.lock', timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        refuse_links(out, _OWN)
        refuse_links(out / 'checkpoints', [p.name for p in (out / 'checkpoints').glob('step-*')])
        lock.acquire()
    except filelock.Timeout:
        raise BvtamError(f'{out} is being written by another process') from None
    except OSError as error:
        raise BvtamError(f'{out} cannot be written: {error.strerror}') from None
    try:
        yield
    finally:
        lock.release()


def open_run(out: Path, recipe: Recipe, resume: str) -> None:
    """Makes the folder of a run and writes its recipe, or checks that of the run that is there.

    Raises:
        BvtamError: `resume` is 'never' and a run is there, it has another recipe, the folder holds
            other things, or it cannot be written.
    """
    if resume not in ('auto', 'never'):
        raise BvtamError(f'resume must be auto or never, not {resume!r}')
    path = out / RECIPE
    for name in ('best', 'last'):  # what a killed run left behind
        recover(out / name)
    for name in (RECIPE, RESULTS, CURVES):
        for left in out.glob(f'.{name}.*'):
            left.unlink()
    if not path.exists():
        others = [p.name for p in out.iterdir() if not p.name.startswith('.')]
        if others:
            raise BvtamError(f'{out} holds {others[0]} and no run: name another folder with --out')
        write_file(path, recipe.to_yaml())
        return
    before = _read_recipe(path)
    if not _begun(out) and read_text(path) == before.to_yaml():  # not one that a user put there
        write_file(path, recipe.to_yaml())  # the run failed before anything was worth keeping
        return
    if resume == 'never':
        raise BvtamError(f'{out} holds a run: name another folder with --out, or resume it')
    pairs = ((name, *map(attrgetter(name), (before, recipe))) for name, _, _ in settings())
    changed = [pair for pair in pairs if pair[1] != pair[2] and pair[0] not in FREE]
    if changed:
        what = ', '.join(f'{key} was {was!r} and is {now!r}' for key, was, now in changed[:3])
        raise BvtamError(
            f'{out} holds a run with another recipe ({what}): name another folder with --out'
        )


def _begun(out: Path) -> bool:
    """Whether a run left anything to go on from, or to keep."""
    kept = (out / name for name in ('best', 'last', RESULTS))
    return any(map(os.path.lexists, kept)) or any((out / 'checkpoints').glob('step-*'))


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.from_dict(read_yaml(read_text(path)))
    except (OSError, ValueError, BvtamError) as error:
        raise BvtamError(
            f'{path} cannot be read: {error}; name another folder with --out'
        ) from None


def run_seed(model: str) -> int:
    """The seed of the run that `model` is the folder of, or whose best/ or last/; of others 0."""
    folder = Path(model.removeprefix('local-dir:'))
    path = (folder.parent if folder.name in ('best', 'last') else folder) / RECIPE
    return _read_recipe(path).run.seed if path.is_file() else 0


class MetricsLog:
    """Lines of metrics.jsonl, for TensorBoard and for `on_log` too; without a folder for that alone.

    The file holds nothing that the clock measured: two runs of one recipe write the same bytes.
    """

    def __init__(self, out: Path | None, on_log: Callable[[dict[str, Any]], None] | None) -> None:
        self.path = out / METRICS if out else None
        self.on_log, self.board = on_log, None
        self.first_step = 0

    def cut(self, size: int, step: int) -> None:
        """Drops what lies behind the first `size` bytes, written after `step`; called before a line."""
        self.first_step = step + 1
        if self.path:
            with self._file() as file:
                if file.tell() > size:
                    file.truncate(size)

    def write(self, row: dict[str, Any], measured: dict[str, float] | None = None) -> None:
        """Adds a line; what was `measured` by the clock goes to the screen and to TensorBoard."""
        if self.path:
            with self._file() as file:
                file.write(f'{json.dumps(row)}\n'.encode())
        row = row | (measured or {})
        board = self._board()
        if board:
            for key, value in row.items():
                board.add_scalar(key, value, row['step'])
        if self.on_log:
            self.on_log(row)

    def sync(self) -> int:
        """Bytes of the file, all of them on disk."""
        with self._file() as file:
            os.fsync(file.fileno())
            return file.tell()

    def close(self) -> None:
        if self.board:
            self.board.close()

    @contextmanager
    def _file(self) -> Iterator[Any]:
        try:
            with append_own(self.path) as file:
                yield file
        except OSError as error:
            raise BvtamError(f'{self.path} cannot be written: {error.strerror}') from None

    def _board(self) -> Any:
        if self.path and self.board is None:
            with suppress(ImportError):  # tensorboard is optional
                from torch.utils.tensorboard import SummaryWriter

                folder = self.path.parent / 'tensorboard'
                self.board = SummaryWriter(folder, purge_step=self.first_step)
        return self.board


def save_curves(out: Path) -> None:
    """`curves.png` from metrics.jsonl: losses, accuracy and learning rate over the steps."""
    try:
        figures = library('matplotlib.figure', 'train', 'curves.png')
    except BvtamError as error:
        log.warning('%s; it is left out', error)
        return
    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    train = [row for row in rows if 'loss' in row]
    val = [row for row in rows if 'val_loss' in row]
    figure = figures.Figure(figsize=(11, 3.2), layout='constrained')
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot([r['step'] for r in train], [r['loss'] for r in train], label='training')
    loss.set(title='loss', xlabel='step')
    rate.plot([r['step'] for r in train], [r['lr'] for r in train])
    rate.set(title='learning rate', xlabel='step')
    if val:
        steps = [r['step'] for r in val]
        loss.plot(steps, [r['val_loss'] for r in val], 'o-', label='validation')
        for key, label in (('val_top1', 'top-1'), ('val_top5', 'top-5')):
            accuracy.plot(steps, [r[key] for r in val], 'o-', label=label)
        accuracy.legend()
    accuracy.set(title='validation accuracy (%)', xlabel='step', ylim=(0, 101))
    loss.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=120)
    write_file(out / CURVES, picture.getvalue())
