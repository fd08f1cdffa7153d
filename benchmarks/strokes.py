"""How people draw, beside how the procedural hands of `bvtam/data/motion/stroke.py` do.

    python benchmarks/strokes.py PATHS.npz

PATHS.npz has the paths of the EgoGestAR data set (github varunj/EgoGestAR, commit 90188de), drawn on a
touch screen of 640 x 480: `points` (paths, points, 2), evenly in time, `label` and `names`. They are read
and measured, and no part of this project. The short side of the frame is 1 in all figures, and each is
the 5th, 50th and 95th percentile.
"""

import argparse

import numpy as np
import torch

from bvtam.data.motion.scene import Shots
from bvtam.data.motion.stroke import STROKES, draw_paths, tip_at

OURS = {
    'left': 'swipe_right', 'right': 'swipe_right', 'up': 'swipe_down', 'down': 'swipe_down',
    'carret': 'caret', 'circlecc': 'circle_anticlockwise', 'del': 'cross',
    'square': 'square_clockwise', 'star': 'star', 'tick': 'tick',
}  # fmt: skip
FACTS = ('width', 'height', 'log proportion', 'variation of speed', 'last tenth', 'centre off')


def measure(paths):
    """Facts about complex paths (N, points), whose frame's short side is 1 and its middle 0."""
    width, height = np.ptp(paths.real, 1), np.ptp(paths.imag, 1)
    middle = (paths.real.max(1) + paths.real.min(1)) / 2
    middle = middle + 0.5j * (paths.imag.max(1) + paths.imag.min(1))
    speed = np.abs(np.diff(paths, axis=1))
    speed /= speed.mean(1, keepdims=True)
    last = speed[:, -max(1, speed.shape[1] // 10) :].mean(1)
    return width, height, np.log(width / height), speed.std(1), last, np.abs(middle)


def procedural(name, count):
    """Strokes of this project, as `points` of the file: at even times, without coming and going."""
    pairs = torch.full((count,), [forward for forward, _ in STROKES].index(name))
    path, until = draw_paths(Shots(torch.arange(count), pairs))
    return tip_at(path, until, torch.linspace(0, 1, 64).double().expand(count, -1)).numpy() / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('paths', help='the .npz file of the data set')
    parser.add_argument('--count', type=int, default=2000, help='strokes of each kind to draw')
    args = parser.parse_args()
    with np.load(args.paths) as file:
        points, label, names = file['points'].astype(float), file['label'], file['names'].tolist()
    people = (points[..., 0] - 320 + 1j * (points[..., 1] - 240)) / 480
    print('| gesture | whose |', ' | '.join(FACTS), '|\n|' + '---|' * (2 + len(FACTS)))
    for number, name in enumerate(names):
        for whose, paths in (
            ('people', people[label == number]),
            ('procedural', procedural(OURS[name], args.count)),
        ):
            cells = (
                ' '.join(f'{value:.2f}' for value in np.percentile(fact, [5, 50, 95]))
                for fact in measure(paths)
            )
            print(f'| {name} | {whose} |', ' | '.join(cells), '|')


if __name__ == '__main__':
    main()
