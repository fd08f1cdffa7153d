"""Scenes in which a hand draws a path in front of a camera: the frames of the family 'stroke'.

As in `scene.py`, a frame is a pure function of (key of its shot, path, phase, number within the shot).
Whatever is not the path itself (when the hand comes in and goes, its tempo and pauses, the camera, light
and noise) is as likely forwards as backwards, so the reverse of a path has the same frames, played from
the last to the first, and nothing but their order tells the two apart.

How people draw follows the 2,000 paths that the EgoGestAR data set (github varunj/EgoGestAR) recorded on
a touch screen; `benchmarks/strokes.py` shows its statistics beside those of the draws here, which are
mostly wider: strokes are 0.3 to 1.1 of the short side long, proportions vary by a factor of about
exp(0.25), a circle turns by 330 to 415 degrees from a start above its middle, and the speed varies by 0.35
(circles) to 0.85 (ticks) of its mean, since hands slow down at corners and at both ends.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .paint import Draws, child, uniform
from .photo import photo
from .scene import Frames, Shots, look_up

# Forward and reverse name of every path, and the points that it passes: x to the right, y down.
_RING = [(-math.sin(2 * math.pi * i / 16), -math.cos(2 * math.pi * i / 16)) for i in range(17)]
_PATHS = (
    ('swipe_right', 'swipe_left', [(-1, 0), (1, 0)]),
    ('swipe_down', 'swipe_up', [(0, -1), (0, 1)]),
    ('circle_anticlockwise', 'circle_clockwise', _RING),
    ('square_clockwise', 'square_anticlockwise', [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]),
    ('star', 'star_reversed', [(-0.65, 1), (0, -1), (0.65, 1), (-1, -0.2), (1, -0.2), (-0.65, 1)]),
    ('tick', 'tick_reversed', [(-1, -0.4), (-0.4, 0.6), (1, -0.6)]),
    ('caret', 'caret_reversed', [(-1, 1), (0, -1), (1, 1)]),
    ('cross', 'cross_reversed', [(-0.9, -1), (0.7, 1), (-0.7, 1), (0.9, -1)]),
)
STROKES = tuple((forward, reverse) for forward, reverse, _ in _PATHS)

_CIRCLE = [forward for forward, _ in STROKES].index('circle_anticlockwise')
_STEPS = 96  # places along a path, evenly spread over its length
_ARM = 4.0  # length of the forearm, in half frames: it always reaches the edge
_TIP, _WRIST = -0.95, 0.75  # y of both in the picture of a hand, which spans [-1, 1]
_EXTENT = 1.6  # of the background, in half frames, before it is mirrored
_NOISE = 1 << 19  # places in the bank where a frame's sensor noise may start
_ARRIVES = 0.04  # of a shot: what comes in faster has been there all the time
_BLOCK = 1 << 18  # pixels drawn at a time: fewer calls, and still what a core's cache holds
_SKIN = torch.tensor(
    [[245, 215, 195], [230, 190, 160], [205, 155, 120], [165, 115, 80], [115, 75, 50], [65, 42, 30]]
).double()


def _templates() -> tuple[Tensor, Tensor]:
    """Every path at places evenly spread over its length, complex128 (paths, steps), and how near to a
    corner or an end each place is, on [0, 1]."""
    paths, corners = [], []
    for _, _, points in _PATHS:
        passed = torch.tensor([complex(x, y) for x, y in points], dtype=torch.complex128)
        lengths = (passed[1:] - passed[:-1]).abs()
        ends = F.pad(lengths.cumsum(0), (1, 0))
        place = torch.linspace(0, 1, _STEPS, dtype=torch.float64) * ends[-1]
        leg = (torch.searchsorted(ends, place, right=True) - 1).clamp(0, len(lengths) - 1)
        paths.append(
            passed[leg] + (passed[leg + 1] - passed[leg]) * (place - ends[leg]) / lengths[leg]
        )
        slow = ends[[0, -1]] if points is _RING else ends
        corners.append(torch.exp(-(((place[:, None] - slow) / 0.3) ** 2)).sum(1).clamp(max=1))
    return torch.stack(paths), torch.stack(corners)


_TEMPLATES, _CORNERS = _templates()
# Of a shot, at most, that are not the stroke: 0.75 of a swipe, 0.4 of a star, which takes longer.
_PAUSES = 0.3 + 0.9 / (_TEMPLATES[:, 1:] - _TEMPLATES[:, :-1]).abs().sum(1)


class StrokeRenderer:
    """Draws frames of `height` x `width` pixels in which a hand draws one of `STROKES`."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width, self.short = height, width, min(height, width)
        self.x = ((torch.arange(width) + 0.5) * 2 - width).double() / self.short
        self.y = ((torch.arange(height) + 0.5) * 2 - height).double() / self.short
        self.extent = _EXTENT * max(height, width) / self.short
        self.background = round(self.short * self.extent)  # pixels of its side
        self.hand = max(24, round(0.6 * self.short))
        bits = uniform(torch.arange(_NOISE + 3 * height * width), 4)
        self.noise = (bits.sum(-1) - 2).mul(3**0.5).float()  # nearly normal, variance 1

    def render(self, shots: Shots, frames: Frames) -> Tensor:
        """uint8 (F, 3, H, W). `shots.pairs` are indices into `STROKES`."""
        backgrounds = photo(child(shots.keys, 0), self.background)
        hands, arms = paint_hands(child(shots.keys, 1), self.hand)
        tips = fingertips(shots)
        out = torch.empty(len(frames.shot), 3, self.height, self.width, dtype=torch.uint8)
        step = max(1, _BLOCK // (self.height * self.width))
        for start in range(0, len(out), step):
            part = Frames(*(column[start : start + step] for column in frames))
            self._draw(out[start : start + step], shots.keys, part, tips, backgrounds, hands, arms)
        return out

    def _draw(
        self,
        out: Tensor,
        keys: Tensor,
        frames: Frames,
        tips: Tensor,
        backgrounds: Tensor,
        hands: Tensor,
        arms: Tensor,
    ) -> None:
        shot = frames.shot
        draw = Draws(child(keys, 2), 64, rows=shot)
        # A camera of few frames a second shows some of them twice, to a model that asks for more.
        shown = draw(12, 48)
        number = (frames.phase * shown).floor()
        phase = (number + 0.5) / shown
        jitter = Draws(child(keys[shot], 3, number.long()), 8)
        # The wearer walks and looks around: slow waves, steps, and a little tremor.
        shaking = draw() ** 2
        look = sum(
            torch.complex(draw.wave(phase, 0.25, *r), draw.wave(phase, 0.2, *r))
            for r in ((0.3, 1), (1, 3))
        )
        step = torch.complex(draw.wave(phase, 0.06, 3, 8), draw.wave(phase, 0.08, 3, 8))
        camera = draw.point(0.25) + shaking * (look + step) + shaking * jitter.point(0.02)
        view = torch.polar(
            torch.exp(draw.around(0.3) + draw.wave(phase, 0.08, 0.3, 1)),
            draw.around(0.15) + shaking * draw.wave(phase, 0.1, 0.5, 3),
        )
        place = look_up(view / self.extent, camera / self.extent, self.x, self.y[None])
        canvas = _sample(backgrounds, shot, place, 'reflection')
        # A frame is exposed for a while: some cameras show the hand at both ends of that.
        blurred = draw() < 0.4
        exposed = torch.where(blurred, draw(0, 0.01), 0.0)
        rgba = self._hand(keys, shot, phase - exposed, tips, hands, arms)
        moved = blurred.nonzero()[:, 0]
        if len(moved):
            late = (phase + exposed)[moved]
            rgba[moved] = (rgba[moved] + self._hand(keys, shot[moved], late, tips, hands, arms)) / 2
        canvas.mul_(1 - rgba[:, 3:]).add_(rgba[:, :3])
        # Exposure and white balance drift; lamps flicker in bands of lines; sensors are noisy.
        exposure = torch.exp(
            draw(-0.8, 0.4) + draw.wave(phase, 0.15, 0.3, 2) + draw(0, 0.03) * jitter.around(1)
        )
        balance = torch.stack(
            [torch.exp(draw.around(0.2) + draw.wave(phase, 0.06, 0.3, 2)) for _ in range(3)], 1
        )
        cycles, start = draw(0.5, 3)[:, None], jitter()[:, None]
        bands = draw(0, 0.04)[:, None] * torch.sin(2 * math.pi * (self.y * cycles + start))
        gain = (exposure[:, None] * balance)[..., None] * (1 + bands[:, None])  # (F, 3, H)
        haze = draw(0, 30) * (draw() < 0.3)
        noise = self.noise.unfold(0, canvas[0].numel(), 1)[(jitter() * _NOISE).long()]
        canvas.mul_(gain.float()[..., None])
        canvas.addcmul_(noise.view_as(canvas), draw(0, 9).float()[:, None, None, None])
        canvas.add_((haze + 0.5).float()[:, None, None, None])
        out.copy_(canvas.clamp_(0, 255))

    def _hand(
        self,
        keys: Tensor,
        shot: Tensor,
        phase: Tensor,
        tips: Tensor,
        hands: Tensor,
        arms: Tensor,
    ) -> Tensor:
        """float32 premultiplied RGBA (F, 4, H, W) of the arm and the hand over it."""
        draw = Draws(child(keys, 4), 24, rows=shot)
        tip = _between(tips[shot], phase)
        # The elbow follows the hand a little, and is always behind it; the hand turns at the wrist.
        away = _side(keys)[shot]
        elbow = draw(1.6, 3.6) * away + draw(0, 0.8) * tip
        elbow = elbow + away * (1 - ((elbow - tip) * away.conj()).real).clamp(min=0)
        length = torch.exp(draw.around(0.5) - 0.2 + draw.wave(phase, 0.2, 0.3, 1.5))
        down = (elbow - tip) / (elbow - tip).abs()
        bent = draw.around(0.8) + draw.wave(phase, 0.25, 0.3, 2)
        # Where the finger points: along the forearm, or the same way all the time.
        up = -torch.where(draw() < 0.5, down, away) * torch.polar(torch.ones_like(bent), bent)
        wrist = tip - length * up
        half = length / (_WRIST - _TIP)
        turn = 1 / (half * up * 1j)
        over = _sample(hands, shot, look_up(turn, _TIP * 1j - tip * turn, self.x, self.y[None]))
        along = elbow - wrist
        along = along / along.abs()
        turn = along.conj().resolve_conj()
        place = look_up(turn, -wrist * turn, self.x, self.y[None])
        place[..., 0].add_(0.08).mul_(2 / _ARM).sub_(1)
        place[..., 1].div_((draw(0.34, 0.5) * length).float()[:, None, None])
        under = _sample(arms, shot, place)
        return under.mul_(1 - over[:, 3:]).add_(over)


def _sample(pictures: Tensor, shot: Tensor, place: Tensor, beyond: str = 'zeros') -> Tensor:
    """The pictures (S, C, h, w) of each frame's `shot` (F,) at `place` (F, H, W, 2), without a copy of them
    for each frame: those of a shot follow each other."""
    shots, counts = (x.tolist() for x in torch.unique_consecutive(shot, return_counts=True))
    parts = [
        F.grid_sample(pictures[s].expand(len(p), -1, -1, -1), p, 'bilinear', beyond, False)
        for s, p in zip(shots, place.split(counts), strict=True)
    ]
    return torch.cat(parts)


def _side(key: Tensor) -> Tensor:
    """Where the arm comes from, seen from the middle of the frame: mostly from below; complex, of length 1."""
    draw = Draws(child(key, 5), 3)
    angle = torch.where(draw() < 0.8, math.pi / 2 + draw.around(1.0), draw(0, 2 * math.pi))
    return torch.polar(torch.ones_like(angle), angle)


def draw_paths(shots: Shots) -> tuple[Tensor, Tensor]:
    """What the finger draws in each shot, complex128 (S, steps), at places evenly spread over the path's
    length; and when it is there, as a share of the time of the stroke, float64 (S, steps)."""
    draw = Draws(child(shots.keys[:, None], 6), 40)
    place = torch.linspace(0, 1, _STEPS, dtype=torch.float64)[None]
    path, corner = _TEMPLATES[shots.pairs], _CORNERS[shots.pairs]
    # A circle starts anywhere in its upper half, and ends before its start or beyond it.
    angle = draw.around(1.4) - 2 * math.pi * draw(0.9, 1.15) * place - math.pi / 2
    circle = (shots.pairs == _CIRCLE)[:, None]
    path = torch.where(circle, torch.polar(torch.ones_like(angle), angle), path)
    stretch = torch.exp(draw.around(0.3))
    path = torch.complex(path.real * stretch, path.imag / stretch)
    for most, low, high in ((0.2, 0.4, 1.5), (0.12, 1.5, 4)):  # arms turn, and no hand is steady
        path = path + torch.complex(
            draw.wave(place, most, low, high), draw.wave(place, most, low, high)
        )
    size = draw(0.25, 1)
    path = path * torch.polar(size, draw.around(0.35)) + draw.point(1) * (1.2 - size) * 0.6

    # Time spent at each place: longer at corners, and uneven; the sum is the time of the stroke.
    pace = 1 + draw(0, 5) * corner + draw(0, 5) * corner**4
    pace = pace * torch.exp(draw.wave(place, 0.4, 0.5, 2) + draw.wave(place, 0.3, 2, 5))
    until = F.pad((pace[:, 1:] + pace[:, :-1]).cumsum(1), (1, 0))
    return path, until / until[:, -1:]


def fingertips(shots: Shots) -> Tensor:
    """Where the fingertip is at evenly spread times of each shot, complex128 (S, 2 * steps)."""
    path, until = draw_paths(shots)
    draw = Draws(child(shots.keys[:, None], 7), 12)
    # The hand comes in before the stroke and goes after it, or is there from the start, or to the end; it
    # rests before and after, often for longer than a swipe takes.
    come, go = (torch.where(draw() < 0.45, draw(0, 0.04), draw(0.04, 0.3)) for _ in range(2))
    before, after = (torch.where(draw() < 0.4, 0.0, draw(0, 0.4)) for _ in range(2))
    fits = (_PAUSES[shots.pairs][:, None] / (come + before + after + go)).clamp(max=1)
    come, before, after, go = come * fits, before * fits, after * fits, go * fits
    rests = [draw(0.2, 1), draw(0.2, 1)]
    outside = _side(shots.keys)[:, None] * 2.2
    time = (torch.arange(2 * _STEPS) + 0.5)[None].double() / (2 * _STEPS)
    inside = (time - come - before) / (1 - come - before - after - go)
    drawn = tip_at(path, until, inside.clamp(0, 1))
    for spent, left, rest in ((come, come - time, rests[0]), (go, time - 1 + go, rests[1])):
        gone = ((left / spent).clamp(0, 1) - (1 - rest)).clamp(min=0) / rest
        drawn = drawn + outside * gone * gone * (3 - 2 * gone) * (spent > _ARRIVES)
    return drawn


def tip_at(path: Tensor, until: Tensor, time: Tensor) -> Tensor:
    """Where a fingertip is at each `time` (S, N) on [0, 1], complex128 (S, N); see `draw_paths`."""
    after = torch.searchsorted(until, time.contiguous()).clamp(1, until.shape[1] - 1)
    low, high = until.gather(1, after - 1), until.gather(1, after)
    return _at(path, (after - 1 + (time - low) / (high - low)) / (until.shape[1] - 1))


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Values (S, N) of complex rows (S, M) at `place` (S, N) on [0, 1], in between linearly."""
    place = place * (values.shape[1] - 1)
    low = place.long().clamp(0, values.shape[1] - 2)
    share = place - low
    return values.gather(1, low) * (1 - share) + values.gather(1, low + 1) * share


def _between(rows: Tensor, phase: Tensor) -> Tensor:
    """(F,) values of rows (F, M), whose entries stand at phases (i + 0.5) / M."""
    count = rows.shape[1]
    return _at(rows, ((phase * count - 0.5) / (count - 1)).clamp(0, 1)[:, None])[:, 0]


def paint_hands(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Hands that point up, and forearms, premultiplied float32 RGBA (N, 4, size, size) each: bare hands of
    all skin tones, gloves, and hands that hold a pen; of either side, with one finger stretched or more."""
    draw = Draws(child(keys[:, None, None], 0), 80, torch.float32)
    line = (torch.arange(size) + 0.5) * 2 / size - 1
    x, y = line[None, None, :], line[None, :, None]
    x = x * torch.where(draw() < 0.5, -1.0, 1.0)  # left and right hands

    def finger(x0, y0, x1, y1, radius, taper=0.75):
        """Signed distance to a stretch of skin from one point to another."""
        dx, dy = x1 - x0, y1 - y0
        share = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        return torch.hypot(x - x0 - share * dx, y - y0 - share * dy) - radius * (
            1 - (1 - taper) * share
        )

    thick = draw(0.085, 0.15)
    kind = draw()
    pen, fist, open_ = kind < 0.12, (kind > 0.12) & (kind < 0.18), kind > 0.82
    reach = torch.where(pen, -0.35, torch.where(fist, -0.55, _TIP + 0.75 * thick))
    lean = draw.around(0.12)
    parts = [finger(lean - 0.05, 0.1, 0 * lean, reach, thick)]
    for number in range(3):  # the other fingers are folded, or stretched in an open hand
        base, fold = 0.12 + 0.15 * number, draw(0.1, 0.25)
        end = torch.where(
            open_ | ((number == 0) & (kind > 0.7)),
            -0.75 + 0.18 * number + draw.around(0.08),
            -0.05 + fold / 2,
        )
        spread = torch.where(open_, 0.12 * number + draw(0, 0.2), draw.around(0.03))
        parts.append(finger(base + 0 * end, 0.25 + 0 * end, base + spread, end, thick * 1.05, 0.9))
    parts.append(
        finger(
            -0.2 + 0 * lean, 0.5 + 0 * lean, draw(-0.5, 0.15), draw(-0.1, 0.25), thick * 1.1, 0.8
        )
    )
    palm = (torch.hypot((x - 0.12) / draw(0.3, 0.38), (y - 0.38) / draw(0.36, 0.44)) - 1) * 0.33
    wrist = finger(0.08 + 0 * lean, 0.4 + 0 * lean, 0 * lean, 1.3 + 0 * lean, draw(0.17, 0.25), 1.0)
    parts += [palm, wrist]
    outline = parts[0]
    for part in parts[1:]:  # joined smoothly
        near = (0.5 + 0.5 * (part - outline) / 0.06).clamp(0, 1)
        outline = torch.lerp(part, outline, near) - 0.06 * near * (1 - near)
    cover = (0.5 - outline * (size / 2)).clamp(0, 1)
    folds = sum(torch.exp(-((part / 0.03) ** 2)) for part in parts[:5]).clamp(max=1)
    light = 1 + draw.around(0.3) * x + draw.around(0.3) * y
    light = (
        light
        * (1 - draw(0, 0.4) * torch.exp(outline.clamp(max=0) / 0.07))
        * (1 - draw(0, 0.35) * folds)
    )

    tone = uniform(child(keys, 1), 8)
    place = tone[:, 0] * (len(_SKIN) - 1.001)
    low = place.long()
    skin = _SKIN[low] + (_SKIN[low + 1] - _SKIN[low]) * (place - low)[:, None]
    skin = skin * (0.9 + 0.2 * tone[:, 1:4])
    glove = tone[:, 4:5] < 0.2
    colour = torch.where(glove, uniform(child(keys, 2), 3) * 255, skin)[..., None, None]
    body = colour * light[:, None]
    stick = finger(
        0.25 + 0 * lean, 0.5 + 0 * lean, 0 * lean, _TIP + 0 * lean, draw(0.02, 0.06), 0.7
    )
    stick_cover = ((0.5 - stick * (size / 2)).clamp(0, 1) * pen)[:, None]
    hand = torch.cat([body * cover[:, None], cover[:, None]], 1)
    other = (uniform(child(keys, 3), 3) * 255)[..., None, None]
    hand = hand * (1 - stick_cover) + stick_cover * torch.cat(
        [other.expand_as(body), torch.ones_like(cover)[:, None]], 1
    )

    # The forearm: from the wrist at the left to beyond the frame, wider towards the elbow; sleeves.
    x, y = line[None, None, :], line[None, :, None]
    wide = draw(0.45, 0.6) + (0.98 - draw(0.45, 0.6)) * ((x + 1) / 0.9).clamp(0, 1)
    cover = (0.5 - (y.abs() - wide) * (size / 2)).clamp(0, 1)
    light = 1 + draw.around(0.35) * y / wide - draw(0.1, 0.5) * (y / wide) ** 4
    sleeve = (x > torch.where(draw() < 0.5, draw(-0.95, 0), 2.0))[:, None]
    cloth = (uniform(child(keys, 4), 3) * 255)[..., None, None]
    body = torch.where(sleeve, cloth, skin[..., None, None]) * light[:, None]
    arm = torch.cat([body * cover[:, None], cover[:, None].expand(-1, -1, -1, size)], 1)
    return hand.float(), arm.float()
