"""How fast models are on this machine, beside others of the field at their published inputs.

All of them take turns, so that a busy minute of the machine hits all alike, and a product of matrices
takes its turn with them: the share of its speed that a model reaches tells how far it is from what
the machine can do. Weights are random, which makes no difference to the time.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from timeit import timeit
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BvtamError, nearest
from ..factory import create_model, list_models
from ..files import atomic_file, write_file
from ..optional import library
from ..weights.table import entries
from .flops import count, count_any
from .optimize import optimize

_SIDE = 2048  # of the matrices
_DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}
_KINETICS = 'Kinetics-400'
_PAPER = {'bvtam_r50_8x2': (71.0, 'as in the paper')}  # of which no weights were published


class _Called(nn.Module):
    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def _per_frame(model: nn.Module, x: Tensor) -> Tensor:
    """An image model on every frame, scores averaged: TSN."""
    frames = x.transpose(1, 2)
    return model(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1)


def _two_paths(model: nn.Module, x: Tensor) -> Tensor:
    """SlowFast takes every fourth frame beside all of them."""
    return model([x[:, :, ::4], x])


@dataclass(frozen=True)
class Peer:
    """A model of another library at its published input.

    Attributes:
        top1: on Kinetics-400 as its library states it, in percent, and `views` behind the figure.
        call: how it takes one clip, where not as it is.
    """

    package: str
    module: str
    name: str
    frames: int
    size: int
    top1: float
    views: str
    call: Callable[[nn.Module, Tensor], Tensor] | None = None

    def build(self) -> nn.Module:
        model = getattr(import_module(self.module), self.name)()
        return _Called(model, self.call) if self.call else model


_VISION, _PTV = 'torchvision.models.video', 'pytorchvideo.models.hub'
PEERS = {
    'resnet50 per frame': Peer(
        'timm', 'timm.models', 'resnet50', 8, 224, 68.8, '1 clip, TSN', _per_frame
    ),
    'r2plus1d_18': Peer('torchvision', _VISION, 'r2plus1d_18', 16, 112, 67.46, '5 clips'),
    's3d': Peer('torchvision', _VISION, 's3d', 128, 224, 68.37, '1 clip'),
    'mvit_v2_s': Peer('torchvision', _VISION, 'mvit_v2_s', 16, 224, 80.76, '5 clips'),
    'swin3d_t': Peer('torchvision', _VISION, 'swin3d_t', 32, 224, 77.72, '12 clips'),
    'slow_r50': Peer('pytorchvideo', _PTV, 'slow_r50', 8, 256, 74.58, '10 clips, 3 crops'),
    'slowfast_r50': Peer(
        'pytorchvideo', _PTV, 'slowfast_r50', 32, 256, 76.94, '10 clips, 3 crops', _two_paths
    ),
    'x3d_m': Peer('pytorchvideo', _PTV, 'x3d_m', 16, 224, 75.94, '10 clips, 3 crops'),
}


class BenchRow(TypedDict):
    """A model on a clip; times are medians with the quartiles, None where a figure is not known."""

    model: str
    library: str
    frames: int
    size: int
    gmacs: float
    top1: float | None  # published, on Kinetics-400, in percent
    views: str  # behind top1; one clip of one view is timed
    batch: int
    ms_per_clip: float
    ms_low: float
    ms_high: float
    clips_per_second: float
    peak_mib: float | None  # on top of what the weights take
    share_of_matmul: float  # of what a product of matrices reached in the same minutes


class Bench(TypedDict):
    """The rows, and the machine that they were measured on."""

    machine: str
    cores: int
    torch: str
    precision: str
    rows: list[BenchRow]


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timeit(function, number=1))
    return seconds


def peak_bytes(function: Callable[[], object]) -> int | None:
    """What the process' memory rises by, at most, while `function` runs; None where Linux is not."""
    status, refs = Path('/proc/self/status'), Path('/proc/self/clear_refs')
    if not os.access(refs, os.W_OK):
        return None

    def resident(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    function()  # whatever it builds only once
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    refs.write_text('5')  # VmHWM begins anew
    before = resident('VmRSS')
    function()
    return resident('VmHWM') - before


def bench(
    names: Sequence[str] = ('bvtam_r50_8x2',),
    peers: Sequence[str] | None = None,
    *,
    precision: str = 'fp32',
    batch_sizes: Sequence[int] = (1,),
    rounds: int = 5,
    progress: Callable[[int, int], object] | None = None,
) -> Bench:
    """Times models on clips, and the machine.

    Args:
        names: models of this package, optimised, at the frames and crop of their ClipConfig.
        peers: of `PEERS`, as their libraries make them; by default those that are installed.
        precision: 'fp32' or 'bf16', of all.
        batch_sizes: clips that go through together.
        rounds: turns of each.
        progress: called with the numbers of measurements done and of all.

    Raises:
        BvtamError: an unknown name, precision or peer, or a number below 1.
    """
    if precision not in _DTYPES:
        raise BvtamError(f'precision must be one of {", ".join(_DTYPES)}, not {precision!r}')
    if min([rounds, *batch_sizes]) < 1:
        raise BvtamError('rounds and batch sizes must be 1 or more')
    installed = [name for name, peer in PEERS.items() if find_spec(peer.package)]
    wanted = installed if peers is None else peers
    for name in wanted:
        if name not in PEERS:
            raise BvtamError(f'no peer {name!r}{nearest(name, PEERS)}; known: {", ".join(PEERS)}')
        if name not in installed:
            raise BvtamError(
                f'{name} needs {PEERS[name].package}: pip install {PEERS[name].package}'
            )
    dtype = _DTYPES[precision]
    rows, tell, total = [], progress or (lambda done, total: None), len(batch_sizes)
    candidates = [*_own(names, dtype), *_others(wanted, dtype)]
    matrix = torch.randn(_SIDE, _SIDE).to(dtype)
    tell(0, total)
    with torch.inference_mode():
        for done, batch in enumerate(batch_sizes):
            runs = {
                row['model']: partial(model, torch.randn(batch, *shape).to(dtype))
                for row, model, shape in candidates
            }
            seconds = interleaved(runs | {'': lambda: matrix @ matrix}, rounds)
            matmul = 2 * _SIDE**3 / statistics.median(seconds[''])
            for row, _, _ in candidates:
                quartiles = np.quantile(seconds[row['model']], (0.25, 0.5, 0.75)) / batch
                low, middle, high = quartiles.tolist()
                peak = peak_bytes(runs[row['model']])
                rows.append(
                    row
                    | {
                        'batch': batch,
                        'ms_per_clip': 1000 * middle,
                        'ms_low': 1000 * low,
                        'ms_high': 1000 * high,
                        'clips_per_second': 1 / middle,
                        'peak_mib': None if peak is None else peak / 2**20,
                        'share_of_matmul': 2e9 * row['gmacs'] / middle / matmul,
                    }
                )
            tell(done + 1, total)
    return {
        'machine': platform.machine(),
        'cores': torch.get_num_threads(),
        'torch': torch.__version__,
        'precision': precision,
        'rows': rows,
    }


Candidate = tuple[dict[str, Any], nn.Module, tuple[int, int, int, int]]


def _own(names: Sequence[str], dtype: torch.dtype) -> Iterator[Candidate]:
    for name in names:
        if name not in list_models():
            raise BvtamError(f'unknown model {name!r}{nearest(name, list_models())}')
        model = create_model(name).eval()
        clip = model.clip_config
        if clip is None:
            raise BvtamError(f'{name} takes single images; bench is of video models')
        top1, views = _published(name)
        gmacs = count(model, clip.num_frames, clip.crop_size)['executed_macs'] / 1e9
        row = _row(name, 'bvtam', clip.num_frames, clip.crop_size, gmacs, top1, views)
        shape = (model.in_chans, clip.num_frames, clip.crop_size, clip.crop_size)
        yield row, optimize(model, dtype), shape


def _published(name: str) -> tuple[float | None, str]:
    for entry in entries().values():
        if entry.arch == name and entry.dataset == _KINETICS:
            return entry.metrics[0]['top1'], entry.metrics[0]['views']
    return _PAPER.get(name, (None, ''))


def _others(names: Sequence[str], dtype: torch.dtype) -> Iterator[Candidate]:
    for name in names:
        peer = PEERS[name]
        model, shape = peer.build().eval(), (3, peer.frames, peer.size, peer.size)
        gmacs = count_any(model, torch.zeros(1, *shape)) / 1e9
        row = _row(name, peer.package, peer.frames, peer.size, gmacs, peer.top1, peer.views)
        yield row, model.to(dtype), shape


def _row(
    model: str, library: str, frames: int, size: int, gmacs: float, top1: float | None, views: str
) -> dict[str, Any]:
    return {
        'model': model,
        'library': library,
        'frames': frames,
        'size': size,
        'gmacs': gmacs,
        'top1': top1,
        'views': views,
    }


def markdown(result: Bench) -> str:
    """The result as a table, with the machine above it; times also as ratios to the first row's."""
    first = {row['batch']: row for row in reversed(result['rows'])}
    lines = [
        f'{result["cores"]} cores ({result["machine"]}), torch {result["torch"]}, {result["precision"]}',
        '',
        '| model | clip | batch | GMACs | ms per clip | ratio | of matmul | peak MiB | top-1 (views) |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in result['rows']:
        ratio = row['ms_per_clip'] / first[row['batch']]['ms_per_clip']
        cells = [
            f'`{row["model"]}`'
            if row['library'] == 'bvtam'
            else f'{row["model"]} ({row["library"]})',
            f'{row["frames"]} x {row["size"]}²',
            str(row['batch']),
            f'{row["gmacs"]:.1f}',
            f'{row["ms_per_clip"]:.0f} ({row["ms_low"]:.0f} to {row["ms_high"]:.0f})',
            f'{ratio:.2f}',
            f'{row["share_of_matmul"]:.0%}',
            '' if row['peak_mib'] is None else f'{row["peak_mib"]:.0f}',
            '' if row['top1'] is None else f'{row["top1"]} ({row["views"]})',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def save_plot(result: Bench, path: str | os.PathLike[str]) -> None:
    """A PNG of the published accuracy against the time measured, of the models that have both.

    Raises:
        BvtamError: matplotlib is missing, or the file cannot be written.
    """
    figure = library('matplotlib.figure', 'plot', 'bench.png').Figure(
        figsize=(7, 4.5), layout='constrained'
    )
    axes = figure.subplots()
    batch = result['rows'][0]['batch']
    for row in result['rows']:
        if row['top1'] is None or row['batch'] != batch:
            continue
        color = 'C0' if row['library'] == 'bvtam' else 'C7'
        at = row['ms_per_clip'], row['top1']
        wide = [[at[0] - row['ms_low']], [row['ms_high'] - at[0]]]
        axes.errorbar(*at, xerr=wide, fmt='o', color=color, capsize=2)
        axes.annotate(row['model'], at, (5, 5), textcoords='offset points', fontsize=8)
    axes.set(
        xscale='log',
        xlabel=f'ms per clip ({result["cores"]} cores, {result["precision"]}, batch {batch})',
        ylabel='published top-1 on Kinetics-400 (%)',
    )
    axes.grid(alpha=0.3)
    with atomic_file(path) as new:
        figure.savefig(new, dpi=120, format='png')


def save(result: Bench, folder: str | os.PathLike[str]) -> None:
    """bench.json, bench.md and bench.png in a folder.

    Raises:
        BvtamError: as `save_plot`.
    """
    folder = Path(folder)
    write_file(folder / 'bench.json', json.dumps(result, indent=1) + '\n')
    write_file(folder / 'bench.md', markdown(result) + '\n')
    save_plot(result, folder / 'bench.png')
