"""Draws docs/images/blvnet.svg and docs/images/pair_form.svg: python docs/figures.py

The figures have a light ground of their own, so they read the same on dark pages.
"""

from __future__ import annotations

from pathlib import Path

IMAGES = Path(__file__).parent / 'images'
INK, GREY, LINE = '#1f2430', '#5a6272', '#8a93a5'
BIG, LITTLE, PAIR, TAM = '#f6c9a8', '#b9d7f2', '#d5c8ee', '#cfe8c9'
PLAIN = '#eef0f4'


class Figure:
    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def box(self, x, y, w, h, lines=(), fill=PLAIN, size=13, radius=6, dash=False):
        dashes = ' stroke-dasharray="5 4"' if dash else ''
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" fill="{fill}" '
            f'stroke="{LINE}" stroke-width="1.2"{dashes}/>'
        )
        first = y + h / 2 - (len(lines) - 1) * (size + 4) / 2 + size * 0.35
        for i, line in enumerate(lines):
            style = {'weight': 600} if i == 0 else {'color': GREY}
            self.text(x + w / 2, first + i * (size + 4), line, size - (i > 0), **style)

    def text(self, x, y, text, size=13, anchor='middle', color=INK, weight=400):
        text = text.replace('&', '&amp;').replace('<', '&lt;')
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}" '
            f'font-weight="{weight}">{text}</text>'
        )

    def arrow(self, *points, color=LINE, head=True):
        path = 'M' + ' L'.join(f'{x:g} {y:g}' for x, y in points)
        end = ' marker-end="url(#head)"' if head else ''
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6"{end}/>'
        )

    def plus(self, x, y):
        self.parts.append(
            f'<circle cx="{x}" cy="{y}" r="11" fill="#fff" stroke="{LINE}" stroke-width="1.4"/>'
        )
        self.text(x, y + 6, '+', 18, weight=600)

    def save(self, name: str) -> None:
        (IMAGES / name).write_text(self.svg())

    def svg(self) -> str:
        return '\n'.join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" '
                'font-family="Helvetica, Arial, sans-serif">',
                f'<title>{self.title}</title>',
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/>'
                '</marker></defs>',
                f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="10" '
                'fill="#fbfbfd" stroke="#d9dde6"/>',
                *self.parts,
                '</svg>',
                '',
            ]
        )


def blvnet() -> Figure:
    """The whole model with the shapes of a 224-pixel clip, and one bL-module."""
    figure = Figure(
        960, 530, 'bLVNet-TAM: two branches share the frames, and every pair of frames is fused'
    )
    figure.text(24, 34, 'The model: bvtam_r50_8x2', 15, 'start', weight=600)
    for k in range(4):
        for odd in (0, 1):
            x, y = 24 + 46 * odd, 56 + 26 * k
            figure.box(x, y, 42, 22, fill=BIG if odd else LITTLE, radius=3)
            figure.text(x + 21, y + 16, str(2 * k + odd) if k < 3 else '…', 12)
    figure.text(68, 178, '16 frames of 224²', 12, color=GREY)
    figure.text(45, 194, 'even', 12, color=GREY)
    figure.text(91, 194, 'odd', 12, color=GREY)
    stages = (
        ('stem', '7x7, TAM,', 'fuse pairs', '64 x 8 x 56²'),
        ('bL-module 1', 'TAM, two', 'branches', '256 x 8 x 28²'),
        ('bL-module 2', 'TAM, two', 'branches', '512 x 8 x 14²'),
        ('bL-module 3', 'TAM, two', 'branches', '1024 x 8 x 14²'),
        ('layer 4', 'bottlenecks,', 'TAM in each', '2048 x 8 x 7²'),
        ('head', 'pool, linear,', 'mean of pairs', 'classes'),
    )
    for i, (*lines, shape) in enumerate(stages):
        x = 150 + 134 * i
        fill = PLAIN if lines[0] == 'head' else PAIR
        figure.box(x, 70, 112, 72, lines, fill)
        figure.arrow((x - 22 if i else 120, 106), (x - 1, 106))
        figure.text(x + 56, 164, shape, 12, color=GREY)
    figure.text(
        150,
        194,
        'channels x pairs x height²: from the stem on, one tensor stands for each pair of frames',
        12,
        'start',
        GREY,
    )

    figure.text(24, 250, 'Inside a bL-module', 15, 'start', weight=600)
    figure.box(24, 348, 92, 52, ('pairs', 'C x 8 x h²'), PAIR)
    figure.arrow((116, 374), (141, 374))
    figure.box(142, 334, 116, 80, ('TAM', 'mixes each', 'frame with its', 'neighbours'), TAM)
    figure.arrow((258, 360), (278, 360), (278, 306), (299, 306))
    figure.arrow((258, 388), (278, 388), (278, 448), (299, 448))
    figure.text(272, 298, 'odd', 12, 'end', GREY)
    figure.text(272, 466, 'even', 12, 'end', GREY)
    figure.box(
        300,
        272,
        256,
        68,
        ('Big: deep, low resolution', 'most of the bottlenecks,', 'all channels, (h/2)²'),
        BIG,
    )
    figure.arrow((556, 306), (581, 306))
    figure.box(582, 284, 92, 44, ('upsample', 'to h²'))
    figure.box(
        300,
        414,
        256,
        68,
        ('Little: shallow, high resolution', 'few bottlenecks,', 'half of the channels, h²'),
        LITTLE,
    )
    figure.arrow((556, 448), (581, 448))
    figure.box(582, 426, 92, 44, ('1x1', 'all channels'))
    figure.arrow((674, 306), (702, 306), (702, 364))
    figure.arrow((674, 448), (702, 448), (702, 388))
    figure.plus(702, 376)
    figure.arrow((713, 376), (737, 376))
    figure.box(738, 342, 94, 68, ('fusion', 'ReLU, one', 'bottleneck'))
    figure.arrow((832, 376), (856, 376))
    figure.box(857, 350, 82, 52, ('pairs', 'wider'), PAIR)
    figure.text(
        24,
        514,
        'Half of the frames see much depth, half see much detail; TAM and the sum let each use the other.',
        12,
        'start',
        GREY,
    )
    return figure


def pair_form() -> Figure:
    """TAM of range 3 on stored frames, and on pairs that are stored once."""
    figure = Figure(
        960, 470, 'TAM on pairs: every pair is stored once, and the outputs are the same'
    )
    pairs = ('b[k-1]', 'b[k]', 'b[k+1]')

    def inputs(y, widths):
        for k, name in enumerate(pairs):
            x = 60 + 132 * k
            if widths == 2:
                for slot in (0, 1):
                    figure.box(x + 62 * slot, y, 58, 34, (name,), PAIR, 12, 3)
            else:
                figure.box(x, y, 120, 34, (name,), PAIR, 13, 3)

    def outputs(y):
        figure.box(60 + 132, y, 58, 34, ('even',), LITTLE, 12, 3)
        figure.box(60 + 194, y, 58, 34, ('odd',), BIG, 12, 3)

    even, odd = 60 + 132 + 29, 60 + 194 + 29
    figure.text(24, 34, 'Textbook form: each pair is stored twice', 15, 'start', weight=600)
    inputs(54, 2)
    outputs(164)
    for x in (151, 221, 283):
        figure.arrow((x, 88), (even, 163))
    for x in (221, 283, 353):
        figure.arrow((x, 88), (odd, 163))
    figure.text(480, 76, 'even = ReLU( w_prev b[k-1] + w_curr b[k] + w_next b[k] )', 14, 'start')
    figure.text(480, 104, 'odd  = ReLU( w_prev b[k] + w_curr b[k] + w_next b[k+1] )', 14, 'start')
    figure.text(480, 144, 'Both slots of a pair hold the same tensor:', 13, 'start', GREY)
    figure.text(480, 164, 'three products for each output,', 13, 'start', GREY)
    figure.text(480, 184, 'two of them with the same input.', 13, 'start', GREY)
    figure.arrow((24, 226), (936, 226), color='#d9dde6', head=False)

    figure.text(24, 262, 'Pair form: each pair is stored once', 15, 'start', weight=600)
    inputs(282, 1)
    outputs(392)
    figure.arrow((120, 316), (even - 8, 391))
    figure.arrow((even + 8, 316), (even + 4, 391))
    figure.arrow((odd - 8, 316), (odd - 4, 391))
    figure.arrow((384, 316), (odd + 8, 391))
    figure.text(480, 304, 'even = ReLU( w_prev b[k-1] + (w_curr + w_next) b[k] )', 14, 'start')
    figure.text(480, 332, 'odd  = ReLU( (w_prev + w_curr) b[k] + w_next b[k+1] )', 14, 'start')
    figure.text(480, 372, 'The weights of one pair are summed first:', 13, 'start', GREY)
    figure.text(480, 392, 'half of the memory, two products for each output,', 13, 'start', GREY)
    figure.text(480, 412, 'the same numbers.', 13, 'start', GREY)
    figure.text(
        24,
        452,
        'b[k]: the fused features of frames 2k and 2k+1. '
        'w: one weight for each channel and offset in time.',
        12,
        'start',
        GREY,
    )
    return figure


FIGURES = {'blvnet.svg': blvnet, 'pair_form.svg': pair_form}

if __name__ == '__main__':
    for name, draw in FIGURES.items():
        draw().save(name)
