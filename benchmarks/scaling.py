"""How the time of bvtam_r50_8x2 grows with frames, batch and pixels, and the exponent of each.

    python benchmarks/scaling.py [--rounds 5]

One axis varies at a time, from a clip of 16 frames of 160 px; all points take turns. The exponent is the
slope of a line through the logarithms: 1 is linear. Writes scaling.json and scaling.png to
benchmarks/results.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import interleaved

import bvtam
from bvtam.files import atomic_file, write_file

RESULTS = Path(__file__).parent / 'results'
FRAMES, BATCH, SIDE = 16, 1, 160
AXES = {
    'frames': [(1, t, SIDE) for t in (8, 16, 32, 64)],
    'clips of a batch': [(b, FRAMES, SIDE) for b in (1, 2, 4, 8)],
    'pixels of a frame': [(1, FRAMES, s) for s in (96, 128, 160, 224, 288)],
}


def amount(axis, batch, frames, side):
    return {'frames': frames, 'clips of a batch': batch, 'pixels of a frame': side**2}[axis]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    model = bvtam.optimize(bvtam.create_model('bvtam_r50_8x2').eval())

    def run(batch, frames, side):
        x = torch.randn(batch, 3, frames, side, side)

        def once():
            with torch.inference_mode():
                model(x)

        return once

    points = {point for several in AXES.values() for point in several}
    seconds = interleaved({point: run(*point) for point in points}, args.rounds)
    result = {'cores': os.cpu_count(), 'torch': torch.__version__, 'axes': {}}
    figure = Figure(figsize=(11, 3.5), layout='constrained')
    for plot, (axis, several) in zip(figure.subplots(1, 3), AXES.items(), strict=True):
        x = np.array([amount(axis, *point) for point in several])
        y = np.array([seconds[point] for point in several])
        exponent, factor = np.polyfit(np.log(x), np.log(y), 1)
        result['axes'][axis] = {
            'amount': x.tolist(),
            'seconds': y.tolist(),
            'exponent': float(exponent),
        }
        plot.loglog(x, y, 'o')
        plot.loglog(x, np.exp(factor) * x**exponent, '-', label=f'exponent {exponent:.2f}')
        plot.set(xlabel=axis, ylabel='seconds')
        plot.legend()
        print(f'{axis}: exponent {exponent:.2f}')
    write_file(RESULTS / 'scaling.json', json.dumps(result, indent=1) + '\n')
    with atomic_file(RESULTS / 'scaling.png') as new:
        figure.savefig(new, dpi=120, format='png')


if __name__ == '__main__':
    main()
