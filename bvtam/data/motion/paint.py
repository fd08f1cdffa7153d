"""The paint of procedural clips: random values by hash, textures, shapes.

Values that reach pixels come from operations that IEEE 754 fixes to the last bit, or are computed in
float64 and rounded to float32, so that a picture has the same bytes in every batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEXTURES = ('clouds', 'stripes', 'checks', 'dots', 'rings', 'waves')

_GOLDEN, _ODD = -0x61C8864680B583EB, 0x1D8E4E27C47D124F


def mix(x: Tensor) -> Tensor:
    """A bijection on int64 whose values look random: the finaliser of splitmix64 (Steele 2014)."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def child(keys: Tensor, *names: int | Tensor) -> Tensor:
    """Keys of parts of what `keys` (...) names; each name broadcasts against it."""
    for name in names:
        keys = mix(keys + (torch.as_tensor(name) + 1) * _ODD)
    return keys


def uniform(keys: Tensor, count: int) -> Tensor:
    """float64 (..., count) on [0, 1), for each of `keys` (...)."""
    bits = mix(keys[..., None] + (torch.arange(count) + 1) * _GOLDEN)
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


class Draws:
    """Hands out the columns of a table of uniform values, scaled to where they are needed; of its rows,
    those that `rows` names, where it is given."""

    def __init__(
        self,
        keys: Tensor,
        count: int,
        dtype: torch.dtype = torch.float64,
        rows: Tensor | None = None,
    ) -> None:
        table = uniform(keys, count).to(dtype)
        self.columns = iter((table if rows is None else table[rows]).unbind(-1))

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return next(self.columns) * (high - low) + low

    def around(self, extent: float) -> Tensor:
        return self(-extent, extent)

    def wave(self, phase: Tensor, amplitude: float, lowest: float, highest: float) -> Tensor:
        """A sinusoid over the shot. Its phase is uniform, so it looks the same in both directions."""
        cycles, start = self(lowest, highest), self()
        return self(0, amplitude) * torch.sin(2 * math.pi * (cycles * phase + start))

    def point(self, extent: float) -> Tensor:
        return torch.complex(self.around(extent), self.around(extent))


def texture(keys: Tensor, kinds: Tensor, base: Tensor, size: int) -> Tensor:
    """Pictures of random patterns, float32 RGB (N, 3, size, size), roughly on [0, 255].

    Args:
        keys: int64 (N,).
        kinds: indices into `TEXTURES` to choose from.
        base: float64 (N, 3), mean colours on [0, 1].
    """
    draw = Draws(child(keys, 0)[:, None, None], 12, torch.float32)
    kind = kinds[(draw() * len(kinds)).long()]
    clouds, _, checks, dots, rings, waves = (kind == i for i in range(len(TEXTURES)))
    turn = torch.polar(torch.ones(len(keys), 1, 1).double(), 2 * math.pi * draw().double())
    re, im = turn.real.float(), turn.imag.float()
    x = ((torch.arange(size) + 0.5) * 2 / size - 1)[None, None]
    y = x.transpose(1, 2)
    along, across = x * re + y * im, y * re - x * im
    cycles, start = draw(0.8, 2.5), draw()
    dx, dy = x - draw.around(0.5), y - draw.around(0.5)
    along = torch.where(rings, 1.4 * (dx * dx + dy * dy).sqrt(), along) * cycles + start
    q = ripple(across * (cycles * draw(0.6, 1.4)) + draw())
    p = ripple(torch.where(waves, along + 0.25 * q, along))
    value = torch.where(checks, p * q * 2, torch.where(dots, p + q - 0.7, p))
    value = (value * draw(1, 4)).clamp_(-1, 1) * torch.where(clouds, 0, draw(0.08, 0.35))
    tint = (uniform(child(keys, 1), 3) * 0.8 + 0.2).float()
    colour = base.float()[..., None, None] + value[:, None] * tint[..., None, None]
    mottle = torch.where(clouds, 0.45, 0.15)[:, None]
    for cells in (5, 11):
        colour += mottle * lattice(child(keys, cells), cells, size)
    return colour.mul_(255)


def lattice(keys: Tensor, cells: int, size: int) -> Tensor:
    """Smooth noise on [-1, 1], float32 (N, 3, size, size), from cells x cells random values."""
    values = (uniform(keys, 3 * cells * cells) * 2 - 1).float().unflatten(1, (3, cells, cells))
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing='xy'), -1)
    return F.grid_sample(values, grid.expand(len(keys), -1, -1, -1), align_corners=True)


def ripple(cycles: Tensor) -> Tensor:
    """Close to cos(2 pi cycles)."""
    triangle = (cycles - cycles.floor()).mul_(2).sub_(1).abs_().mul_(2).sub_(1)
    return triangle * (1.5 - 0.5 * triangle * triangle)


def shape(keys: Tensor, kinds: Tensor, size: int) -> Tensor:
    """Coverage on [0, 1], float32 (N, 1, size, size), of shapes within a circle of radius 0.9.

    `keys` are int64 (N,), `kinds` indices into `SHAPES` to choose from.
    """
    kind = kinds[(uniform(child(keys, 0), 1)[:, 0] * len(kinds)).long()]
    line = (torch.arange(size) + 0.5).double() * 2 / size - 1
    cover = torch.empty(len(keys), 1, size, size)
    for index in kinds.tolist():
        rows = (kind == index).nonzero()[:, 0]
        outline = _OUTLINES[SHAPES[index]](line, line[:, None], Draws(keys[rows, None, None], 4))
        cover[rows, 0] = (0.5 - outline * (size / 2)).clamp(0, 1).float()
    return cover


# Signed distance to the outline, roughly, negative inside: (x, y, draw) -> float64 (N, Q, Q).


def _disc(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    return torch.hypot(x * draw(1, 1.5), y) - 0.9


def _ring(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    width = draw(0.15, 0.3)
    return (torch.hypot(x, y) - 0.9 + width).abs() - width


def _polygon(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    half = math.pi / (3 + 4 * draw()).floor()
    angle = torch.atan2(y, x) % (2 * half) - half
    return torch.hypot(x, y) * torch.cos(angle) - 0.9 * torch.cos(half)


def _star(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    points = (3 + 4 * draw()).floor()
    return torch.hypot(x, y) - 0.63 - 0.27 * torch.cos(points * torch.atan2(y, x))


def _blob(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    angle = torch.atan2(y, x)
    two, three = (torch.cos(n * angle + draw(0, 2 * math.pi)) for n in (2, 3))
    return torch.hypot(x, y) - 0.68 - 0.13 * two - 0.09 * three


def _bar(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    return torch.maximum(x.abs() - 0.8, y.abs() - draw(0.25, 0.4))


def _cross(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    bar = _bar(x, y, draw)
    return torch.minimum(bar, bar.transpose(1, 2))


def _crescent(x: Tensor, y: Tensor, draw: Draws) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.9, 0.65 - torch.hypot(x - draw(0.35, 0.5), y))


_OUTLINES = {
    'disc': _disc,
    'ring': _ring,
    'polygon': _polygon,
    'star': _star,
    'blob': _blob,
    'bar': _bar,
    'cross': _cross,
    'crescent': _crescent,
}
SHAPES = tuple(_OUTLINES)
