"""Backgrounds with the statistics of photographs.

A photograph has edges at every scale, since things hide each other: the dead leaves model (Lee, Mumford
and Huang, "Occlusion models for natural images", 2001), which also trains networks without any
photograph (Baradad et al., "Learning to see by looking at noise", NeurIPS 2021). Pictures of leaves as
fine as a pixel are painted once for a process, and every shot takes a piece of one, in other colours.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .paint import Draws, child, lattice, ripple, uniform

_COARSE = 0.6  # of the pixels of a background that its waves, patterns and things are painted with
_LEAVES, _SIDE = 16, 256  # pictures of leaves, and pixels of their sides
_PIECE = 192  # pixels of the largest piece of one: larger backgrounds are enlarged
_CELL = 3  # pixels of the finest cell, which holds one leaf


def photo(keys: Tensor, size: int) -> Tensor:
    """Backgrounds, float32 RGB (N, 3, size, size), on [0, 255]: noise of a spectrum that falls with the
    frequency, patterns, things with edges, and leaves, sharp or out of focus; a light from one side."""
    coarse = _things(child(keys, 0), round(_COARSE * size))
    picture = _middle(coarse, 1, size)
    draw = Draws(child(keys[:, None, None, None], 1), 40, torch.float32)
    piece = min(size, _PIECE)
    fine = _pieces(child(keys, 2), piece)
    near = (draw() < 0.2).flatten()  # those are seen from near, so that their leaves are larger
    fine[near] = _middle(fine[near], 0.5, piece)
    fine = fine if piece == size else _middle(fine, 1, size)
    # Other colours, by a matrix: greyer or more vivid, warmer or colder, of more contrast or a negative.
    vivid, tint = draw() ** 2 * 1.2, torch.cat([draw(0.7, 1.3) for _ in range(3)], 1)
    contrast = draw(0.5, 2) * torch.where(draw() < 0.5, -1.0, 1.0)
    matrix = (vivid * torch.eye(3) + (1 - vivid) / 3)[:, 0] * (contrast * tint)[..., 0]
    red, green, blue = (
        m[..., None] * (fine[:, [i]] - 0.5) for i, m in enumerate(matrix.split(1, 2))
    )
    fine = (red + green + blue).add_(draw(0.3, 0.7))
    picture.lerp_(fine, torch.where(draw() < 0.25, 0.0, draw(0.2, 1.6).clamp(max=1)))
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    light = [torch.exp(draw.around(0.5) * at) for at in (line, line[:, None])]
    return picture.mul_(light[0] * light[1]).clamp_(0, 1.1).mul_(255)


def _middle(pictures: Tensor, share: float, size: int) -> Tensor:
    """The middle of pictures, `share` of their side, on size x size pixels. (What `F.interpolate` gives
    depends on the number of threads.)"""
    line = ((torch.arange(size) + 0.5) * 2 / size - 1) * share
    grid = torch.stack(torch.meshgrid(line, line, indexing='xy'), -1)
    grid = grid.expand(len(pictures), -1, -1, -1)
    return F.grid_sample(pictures, grid, padding_mode='border', align_corners=False)


def _things(keys: Tensor, size: int) -> Tensor:
    """Waves, patterns and things in front of them, float32 RGB (N, 3, size, size), roughly on [0, 1]."""
    draw = Draws(child(keys[:, None, None], 0), 200, torch.float32)
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    x, y = line[None, None, :], line[None, :, None]
    picture = _colour(child(keys, 1), 0.6)
    rough, vivid = draw(0.45, 0.9), draw()[:, None] ** 2 * 0.7
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        if 2 * cells > size:
            break  # finer than pixels
        waves = lattice(child(keys, 2, octave), cells, size)
        waves = torch.lerp(waves.mean(1, keepdim=True), waves, vivid)  # mostly grey, as things are
        picture = picture + (draw(0.1, 0.4) * rough**octave)[:, None] * waves
    # Half of them have a pattern: curtains, tiles, a striped or zigzag cloth.
    turn, cycles = draw(0, math.pi), 2 * torch.exp(draw(0, 2))
    along, across = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    along = along + draw(0, 0.3) * (draw() < 0.3) * ripple(across * draw(1, 5))
    stripes = ripple(along * cycles)
    stripes = stripes * torch.where(draw() < 0.7, 1, ripple(across * cycles))
    stripes = (stripes * draw(1, 5)).clamp(-1, 1) * (draw() < 0.5)
    tint = torch.stack([draw.around(0.1), draw.around(0.1), draw.around(0.1)], 1)
    picture = picture + (draw(0, 0.4)[:, None] + tint) * stripes[:, None]
    things = draw(1, 6)
    for number in range(6):
        turn = draw(0, math.pi) * (draw() < 0.5)
        right, down = x - draw.around(1.1), y - draw.around(1.1)
        along, across = (
            right * turn.cos() + down * turn.sin(),
            down * turn.cos() - right * turn.sin(),
        )
        wide, high = draw(0.05, 0.6), draw(0.05, 0.8)
        right, down = (along / wide).abs(), (across / high).abs()
        box, oval = torch.maximum(right, down), torch.hypot(right, down)
        outline = (torch.where(draw() < 0.6, box, oval) - 1) * torch.minimum(wide, high)
        soft = draw(0, 1) ** 3 * 0.15 + 1.5 / size
        cover = (0.5 - outline / soft).clamp(0, 1) * (number < things)
        # Its own colour, brighter to one side, with some of what is behind it as its texture.
        pattern = draw(0, 0.4)[:, None]
        own = _colour(child(keys, 3, number), 0.9) - pattern / 2
        own = own + draw.around(0.25)[:, None] * along[:, None]
        picture.lerp_(own.addcmul_(pattern, picture), cover[:, None])
    return picture


def _pieces(keys: Tensor, size: int) -> Tensor:
    """Pieces of pictures of leaves, turned and mirrored, float32 RGB (N, 3, size, size)."""
    bank = _bank()
    number, right, down, turn = uniform(keys, 4).unbind(-1)
    room = bank.shape[-1] - size + 1
    windows = bank.unfold(2, size, 1).unfold(
        3, size, 1
    )  # a view (leaves, 3, room, room, size, size)
    out = windows[(number * len(bank)).long(), :, (down * room).long(), (right * room).long()]
    for bit, form in enumerate((lambda p: p.flip(-1), lambda p: p.flip(-2), lambda p: p.mT)):
        rows = ((turn * 8).long() >> bit & 1).bool()
        out[rows] = form(out[rows])
    return out


@functools.cache
def _bank() -> Tensor:
    """Pictures of leaves, float32 RGB (leaves, 3, side, side)."""
    return paint_leaves(child(torch.arange(_LEAVES), 0), _SIDE)


def paint_leaves(keys: Tensor, size: int) -> Tensor:
    """Ovals and boxes of all sizes that hide each other, float32 RGB (N, 3, size, size) on [0, 1].

    The leaves lie in cells that become finer, one in a cell at most, and are fewer in some places than in
    others, as walls are smooth and bushes are not.
    """
    picture = _colour(child(keys, 0), 0.6).expand(-1, -1, size, size).clone()
    palette = _colour(child(keys[:, None], 1, torch.arange(6)).flatten(), 0.95).view(-1, 6, 3)
    busy = lattice(child(keys, 2), 5, size)[:, 0]
    amount = Draws(child(keys[:, None, None], 3), 60)
    sharp = amount(0.3, 1.2).float()
    # From the coarsest to the finest, and a few coarse ones over all of them.
    levels = [2**i for i in range(2, 12) if size % 2**i == 0 and size >= _CELL * 2**i]
    for layer, cells in enumerate([*levels, 4, 8]):
        over = layer >= len(levels)
        width = size // cells
        # What each leaf is, (N, cells, cells, 9): where, its axes, whether a box, its colour.
        table = uniform(child(keys, 4, layer), cells * cells * 8).view(-1, cells, cells, 8)
        right, down, turn, stretch, box, there, tone, shade = table.unbind(-1)
        share, boxy, longest = amount(0, 0.25 if over else 1.1), amount(), amount(0, 1.2)
        turn = torch.where(amount() < 0.5, 0, 2 * math.pi * turn)
        axes = torch.polar(torch.exp((stretch - 0.5) * 2 * longest), turn)
        own = palette.gather(1, (tone * 5.999).long().flatten(1)[..., None].expand(-1, -1, 3))
        own = own.view(-1, cells, cells, 3) + (shade - 0.5)[..., None] * 0.4
        there = there < share * (0.5 + busy[:, width // 2 :: width, width // 2 :: width])
        facts = [right - 0.5, down - 0.5, axes.real, axes.imag, box < boxy, there]
        facts = torch.cat([torch.stack(facts, -1), own], -1).float()
        step = (torch.arange(size) % width + 0.5) / width - 0.5  # from the middle of the own cell
        for dy in (0, 1, -1):
            for dx in (0, 1, -1):
                leaf = facts.roll((dy, dx), (1, 2)).permute(3, 0, 1, 2)
                leaf = leaf.repeat_interleave(width, 2).repeat_interleave(width, 3)
                x, y = step + dx - leaf[0], step[:, None] + dy - leaf[1]
                squared = leaf[2] ** 2 + leaf[3] ** 2
                x, y = x * leaf[2] + y * leaf[3], (y * leaf[2] - x * leaf[3]) / squared
                x, y = x.abs_(), y.abs_()
                outline = torch.where(leaf[4] > 0, torch.maximum(x, y), torch.hypot(x, y))
                cover = ((0.6 - outline) * (width * sharp)).add_(0.5).clamp_(0, 1).mul_(leaf[5])
                picture.lerp_(leaf[6:].transpose(0, 1), cover[:, None])
    return picture.clamp_(0, 1)


def _colour(keys: Tensor, range_: float) -> Tensor:
    """Colours as things have them: mostly grey, float32 (N, 3, 1, 1), on [0, 1]."""
    draw = Draws(keys, 6)
    grey, vivid = 0.5 + draw.around(range_ / 2), draw() ** 2 * 0.5
    channels = [grey + vivid * draw.around(1) for _ in range(3)]
    return torch.stack(channels, 1).clamp(0.02, 0.98).float()[..., None, None]
