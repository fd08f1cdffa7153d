"""The frames of procedural clips: what moves how, and its rendering in batches.

A frame is a pure function of (key of its shot, motion pair, phase, number within the shot). Nothing in
it knows which way the clip is played, nor which other frames are rendered along with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .paint import SHAPES, TEXTURES, Draws, child, shape, texture, uniform

# Forward and reverse name of every motion pair. A clip of the second is a clip of the first, played
# backwards.
PAIRS = (
    ('right', 'left'),
    ('down', 'up'),
    ('grow', 'shrink'),
    ('clockwise', 'anticlockwise'),
    ('part', 'meet'),
    ('appear', 'vanish'),
    ('zoom_in', 'zoom_out'),
    ('pan_right', 'pan_left'),
    ('orbit_clockwise', 'orbit_anticlockwise'),
    ('roll_clockwise', 'roll_anticlockwise'),
    ('open', 'close'),
)
HORIZONTAL, VERTICAL, SCALE, TURN, DISTANCE, VISIBLE, ZOOM, PAN, ORBIT, ROLL, MOUTH = range(11)

_DISTRACTOR = torch.tensor([True, False, False, False, True])  # layers, in drawing order
_SLOTS = len(_DISTRACTOR)
_EXTENT = 1.4  # of the background texture, in half frames, before it is mirrored
_NOISE = 1 << 19  # places in the bank where a frame's sensor noise may start
_BLOCK = 1 << 17  # pixels drawn at a time: what stays in a core's cache


class Shots(NamedTuple):
    """Scenes: `keys` int64 (S,), and `pairs` int64 (S,), each an index into `PAIRS`."""

    keys: Tensor
    pairs: Tensor


class Frames(NamedTuple):
    """Frames to render: which shot, the number within it, and its phase on (0, 1); (F,) each."""

    shot: Tensor
    number: Tensor
    phase: Tensor


class _Plan(NamedTuple):
    """Where everything is in each of F frames. Points are complex numbers x + iy, y down; the short
    side of the frame is from -1 to 1. A texture is looked up at point * turn + shift."""

    shot: Tensor
    turn: Tensor  # of the background (F,)
    shift: Tensor
    present: Tensor  # bool (F, slots)
    turns: Tensor  # of the sprites (F, slots)
    shifts: Tensor
    masked: Tensor  # bool (F, slots)
    masks: Tensor  # float64 (F, slots, 3)
    gain: Tensor  # float64 (F,)
    sigma: Tensor  # of the noise, in grey levels
    noise: Tensor  # its place in the bank


class Renderer:
    """Draws frames of `height` x `width` pixels, with these `TEXTURES` and `SHAPES`."""

    def __init__(
        self, height: int, width: int, textures: Sequence[str], shapes: Sequence[str]
    ) -> None:
        self.height, self.width = height, width
        self.textures = torch.tensor([TEXTURES.index(name) for name in textures])
        self.shapes = torch.tensor([SHAPES.index(name) for name in shapes])
        self.short = min(height, width)
        self.x = ((torch.arange(width) + 0.5) * 2 - width).double() / self.short
        self.y = ((torch.arange(height) + 0.5) * 2 - height).double() / self.short
        self.extent = _EXTENT * max(height, width) / self.short
        self.background = round(0.75 * self.short * self.extent)  # pixels of its side
        self.sprite = max(8, self.short // 2)
        bits = uniform(torch.arange(_NOISE + 3 * height * width), 4)
        self.noise = (bits.sum(-1) - 2).mul(3**0.5).float()  # nearly normal, variance 1

    def render(self, shots: Shots, frames: Frames) -> Tensor:
        """uint8 (F, 3, H, W). Frames 2k and 2k + 1 belong to one shot."""
        backgrounds, sprites, present = self._paint(shots)
        plan = self._plan(shots, frames, present)
        out = torch.empty(len(frames.shot), 3, self.height, self.width, dtype=torch.uint8)
        step = 2 * max(1, _BLOCK // (2 * self.height * self.width))
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            self._draw(out[part], _Plan(*(column[part] for column in plan)), backgrounds, sprites)
        return out

    def _paint(self, shots: Shots) -> tuple[Tensor, Tensor, Tensor]:
        """Backgrounds (S, 3, P, P), premultiplied RGBA sprites (S, slots, 4, Q, Q), and which of
        them are there, bool (S, slots). Colours are on [0, 255]."""
        base = uniform(child(shots.keys, 0), 3) * 0.7 + 0.15
        backgrounds = texture(child(shots.keys, 1), self.textures, base, self.background)
        slots = child(shots.keys[:, None], 2, torch.arange(_SLOTS)).flatten()
        # Every channel is at least a quarter of the range away from the background, up or down.
        away = uniform(child(slots, 0), 3) * 0.5 + 0.25
        colours = (base.repeat_interleave(_SLOTS, 0) + away) % 1
        alpha = shape(child(slots, 2), self.shapes, self.sprite)
        sprites = torch.cat(
            [texture(child(slots, 1), self.textures, colours, self.sprite) * alpha, alpha], 1
        ).unflatten(0, (-1, _SLOTS))
        draw = Draws(child(shots.keys, 3), 3)
        objects = torch.where(shots.pairs == DISTANCE, 2, 1 + (3 * draw()).long())
        layers = [draw() < 0.5, objects > 0, objects > 1, objects > 2, draw() < 0.5]
        return backgrounds, sprites, torch.stack(layers, 1)

    def _plan(self, shots: Shots, frames: Frames, present: Tensor) -> _Plan:
        keys, pairs = shots.keys[frames.shot], shots.pairs[frames.shot]
        camera, view = _camera(keys, pairs, frames)
        place, scale, masks = _objects(keys, pairs, frames.phase, self.sprite)
        draw, jitter = Draws(child(keys, 6), 6), Draws(child(keys, 7, frames.number), 2)
        gain = 1 + draw.wave(frames.phase, 0.2, 0.3, 2) + draw(0, 0.03) * jitter.around(1)
        return _Plan(
            frames.shot,
            view / self.extent,
            camera / self.extent,
            present[frames.shot],
            view[:, None] * scale,
            (camera[:, None] - place) * scale,
            ((pairs == VISIBLE) | (pairs == MOUTH))[:, None] & ~_DISTRACTOR,
            masks,
            gain,
            draw(0, 10),
            (jitter() * _NOISE).long(),
        )

    def _draw(self, out: Tensor, plan: _Plan, backgrounds: Tensor, sprites: Tensor) -> None:
        grid = look_up(plan.turn, plan.shift, self.x, self.y[None])
        # Both frames of a pair look into the same texture.
        canvas = F.grid_sample(
            backgrounds[plan.shot[::2]],
            grid.view(-1, 2 * self.height, self.width, 2),
            padding_mode='reflection',
            align_corners=False,
        )
        canvas_FHCW = canvas.transpose(1, 2).contiguous().unflatten(1, (2, -1)).flatten(0, 1)
        # A band of half the frame's lines holds most sprites: the others are drawn on all lines.
        band = self.height // 2
        radius = self.short / 2 / plan.turns.abs()
        narrow = radius < band / 2 - 1
        layers = zip(
            self._layers(plan, sprites, plan.present & narrow, band),
            self._layers(plan, sprites, plan.present & ~narrow, self.height),
            strict=True,
        )
        for layer in layers:
            for frame, line, rgba in layer:
                under = canvas_FHCW[frame, line]
                canvas_FHCW[frame, line] = under * (1 - rgba[:, :, 3:]) + rgba[:, :, :3]
        noise = self.noise.unfold(0, canvas_FHCW[0].numel(), 1)[plan.noise].view_as(canvas_FHCW)
        canvas_FHCW.mul_(plan.gain.float()[:, None, None, None])
        noise.mul_(plan.sigma.float()[:, None, None, None])
        out.copy_(canvas_FHCW.add_(noise).add_(0.5).clamp_(0, 255).transpose(1, 2))

    def _layers(
        self, plan: _Plan, sprites: Tensor, wanted: Tensor, band: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For every slot: frames (N, 1) and lines (N, band) that its sprites cover, and RGBA of
        them (N, band, 4, W), of the sprites `wanted`, bool (F, slots)."""
        slot, frame = wanted.t().nonzero().unbind(1)
        turn, shift = plan.turns[frame, slot], plan.shifts[frame, slot]
        middle = (-shift / turn).imag * self.short / 2 + self.height / 2
        top = (middle - band / 2).round().clamp(0, self.height - band).long()
        lines = top[:, None] + torch.arange(band)
        grid = look_up(turn, shift, self.x, self.y[lines])
        rgba = F.grid_sample(sprites[plan.shot[frame], slot], grid, align_corners=False)
        cut = plan.masked[frame, slot].nonzero()[:, 0]
        level, x, y = plan.masks[frame[cut], slot[cut]].float()[..., None, None].unbind(1)
        kept = level + x * grid[cut, ..., 0] + y * grid[cut, ..., 1].abs()
        rgba[cut] *= (kept * (self.sprite / 4) + 0.5).clamp(0, 1)[:, None]
        counts = slot.bincount(minlength=_SLOTS).tolist()
        columns = (frame[:, None], lines, rgba.transpose(1, 2))
        return zip(*(column.split(counts) for column in columns), strict=True)


def look_up(turn: Tensor, shift: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """float32 (N, H, W, 2): point * turn + shift for pixels at x (W,) and y (N or 1, H)."""
    turn, shift = torch.view_as_real(turn)[:, None], torch.view_as_real(shift)[:, None]
    (re, im), (right, down) = turn.unbind(-1), shift.unbind(-1)
    grid = torch.empty(len(turn), y.shape[1], len(x), 2)
    for axis, along, across in ((0, re * x, right - im * y), (1, im * x, down + re * y)):
        torch.add(along.float()[:, None, :], across.float()[:, :, None], out=grid[..., axis])
    return grid


def _progress(draw: Draws, phase: Tensor, least: float) -> Tensor:
    """How far a motion is, on [-0.5, 0.5]: uneven speed over a part of its path.

    Every term has either sign with equal chance, so a path is as likely as its reverse.
    """
    eased = phase + draw.around(0.35) * phase * (1 - phase)
    eased = eased + draw.around(0.6) * torch.sin(2 * math.pi * phase) / (2 * math.pi)
    span = draw(least, 1)
    return (eased - 0.5) * span + draw.around(0.5) * (1 - span)


def _camera(keys: Tensor, pairs: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """complex128 (F,) each: where the camera points, and zoom and roll as a factor."""
    draw, phase = Draws(child(keys, 4), 24), frames.phase
    hand = Draws(child(keys, 5, frames.number), 2)
    progress = _progress(draw, phase, 0.6)
    centre = draw.point(0.3) + draw() * hand.point(0.015)
    centre = centre + torch.complex(draw.wave(phase, 0.05, 0.5, 3), draw.wave(phase, 0.05, 0.5, 3))
    # The scene goes the way that the motion is called, so the camera goes the other.
    centre = centre - (pairs == PAN) * draw(0.7, 1.3) * progress
    zoom = (pairs == ZOOM) * draw(0.6, 1.0) * progress + draw.around(0.1)
    roll = (pairs == ROLL) * draw(0.8, 2.0) * progress + draw.wave(phase, 0.05, 0.5, 3)
    return centre, torch.polar(torch.exp(-zoom), -roll)


def _objects(
    keys: Tensor, pairs: Tensor, phase: Tensor, sprite: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The place of every slot, complex128 (F, slots); the factor from the scene to its sprite,
    likewise; and the coefficients of its mask, float64 (F, slots, 3)."""
    slot, phase = torch.arange(_SLOTS), phase[:, None]
    draw, shared = Draws(child(keys[:, None], 8, slot), 40), Draws(child(keys[:, None], 9), 3)
    progress = _progress(draw, phase, 0.7)

    def moving(pair: int) -> Tensor:
        return (pairs[:, None] == pair) & ~_DISTRACTOR

    # Distractors swing to and fro; objects do so a little.
    swing = torch.where(_DISTRACTOR, 1.0, 0.2)
    place = draw.point(1) * torch.where(_DISTRACTOR, 0.8, 0.45)
    place = place + swing * torch.complex(
        draw.wave(phase, 0.2, 1, 2.5), draw.wave(phase, 0.2, 1, 2.5)
    )
    angle = draw(0, 2 * math.pi) + swing * draw.wave(phase, 0.6, 1, 2.5)
    size = torch.where(_DISTRACTOR, math.log(0.17), math.log(0.33)) + draw.around(0.35)
    size = size + swing * draw.wave(phase, 0.15, 1, 2.5)

    way = draw(0.8, 1.4) * progress
    place = place + torch.complex(moving(HORIZONTAL) * way, moving(VERTICAL) * way)
    size = size + moving(SCALE) * draw(0.8, 1.3) * progress
    angle = angle + moving(TURN) * draw(1.6, 4.7) * progress
    # Two objects lie on either side of the point where they meet.
    axis = torch.polar(torch.where(slot == 1, 1.0, -1.0).double(), 2 * math.pi * shared())
    gap = axis * (0.42 + draw(0.4, 0.7) * progress) + shared.point(0.25)
    place = torch.where(moving(DISTANCE), gap, place)
    circle = torch.polar(draw(0.3, 0.5), draw(0, 2 * math.pi) + draw(2.5, 5) * progress)
    place = torch.where(moving(ORBIT), place * 0.5 + circle, place)

    # A sprite keeps the points where level + a * x + b * |y| > 0: it fades (a = b = 0), is wiped
    # (a = -1), or opens its mouth.
    wiped, opened = draw() < 0.5, moving(MOUTH)
    mouth = (0.5 + progress) * 1.3
    level = progress * torch.where(wiped, 2.2, 5 / sprite)
    masks = [
        torch.where(opened, 0.0, level),
        torch.where(opened, -torch.sin(mouth), -1.0 * wiped),
        torch.where(opened, torch.cos(mouth), 0.0),
    ]
    return place, torch.polar(torch.exp(-size), -angle), torch.stack(masks, -1)
