"""Models that see frames one by one, pairs of frames, or all of them, beside the bounds of strokes.

    python benchmarks/bounds.py [--runs DIR] [--clips 16000] [--only NAME] [--threads 1]

All are `bvtam_tiny_8x2`, start from what our weights know of single frames, and see the same strokes:
`frame` has no temporal operator and each frame in both places of a pair of its own, `pair` no temporal
operator, `clip` TAM. Each is measured on 2,000 held-out strokes. A run goes on where it was stopped; its
result is written to benchmarks/results/bounds.json, and `python benchmarks/tables.py bounds` puts it into
docs/results.md.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from claims import start_spatial

from bvtam.data.motion.clips import MotionClips
from bvtam.engine.evaluate_motion import evaluate_motion
from bvtam.engine.recipe import Recipe
from bvtam.engine.run import build
from bvtam.engine.train import Trainer
from bvtam.files import write_file

RESULTS = Path(__file__).parent / 'results/bounds.json'
EPOCHS, TEST_CLIPS, TEST_SEED = 4, 2000, 1000
SECTION = """## The bounds of strokes

A stroke and its reverse show the same frames, so a model that sees them one by one is right for one of the two
at most, while pairs of frames show which way the hand goes. Three models that start from the same knowledge of
single frames are trained on the same strokes, and differ in how much they see at once
(`python benchmarks/bounds.py`):
"""
SEES = {'frame': 'none', 'pair': 'none', 'clip': 'tam'}  # and its temporal operator


def one_by_one(model):
    """Makes a model of pairs see every frame by itself, in both places of a pair."""
    model.register_forward_pre_hook(lambda _, x: (x[0].repeat_interleave(2, 2),))


def measure(name, clips, runs):
    recipe = Recipe.load(
        'motion_tiny',
        [
            f'model_options={{drop_rate: 0.1, temporal: {SEES[name]}}}',
            'data.motion.family=stroke',
            f'data.motion.clips={clips // EPOCHS}',
            f'epochs={EPOCHS}',
            'precision=fp32',
        ],
    )
    model, train_set, val_set = build(recipe)
    start_spatial(model)
    if name == 'frame':
        one_by_one(model)
    cpu = sum(os.times()[:4])
    Trainer(model, recipe, train_set, val_set, runs / name).fit()
    cpu = sum(os.times()[:4]) - cpu
    # Every frame, in order, shows the whole path.
    bound = 1.0 if name == 'clip' else MotionClips(family='stroke').bound(name)
    return {
        'sees': name,
        'temporal': SEES[name],
        'top1': evaluate_motion(model.eval(), TEST_CLIPS, TEST_SEED)['top1'],
        'bound': 100 * bound,
        'clips': clips,
        'test_clips': TEST_CLIPS,
        'cpu_minutes': round(cpu / 60, 1),
    }


def load():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def table(results):
    """Markdown: a line for each model beside its bound."""
    lines = [
        '| each answer is of | operator | strokes to train on | to test on | top-1 (%) | at most (%) |',
        '|---|---|---|---|---|---|',
    ]
    for row in results:
        lines.append(
            f'| one {row["sees"]} | `{row["temporal"]}` | {row["clips"]:,} | {row["test_clips"]:,} '
            f'| {row["top1"]:.1f} | {row["bound"]:.0f} |'
        )
    return '\n'.join(lines)


def section(results):
    """Markdown for docs/results.md: what is shown, and the table; nothing without results."""
    return f'{SECTION}\n{table(results)}' if results else ''


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--runs', type=Path, default=Path('runs/bounds'))
    parser.add_argument('--clips', type=int, default=16000, help='that each model is trained on')
    parser.add_argument('--only', choices=SEES)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {row['sees']: row for row in load()}
    for name in [args.only] if args.only else SEES:
        found[name] = measure(name, args.clips, args.runs)
        rows = [found[name] for name in SEES if name in found]
        write_file(RESULTS, json.dumps(rows, indent=1) + '\n')
        print(table(rows), flush=True)


if __name__ == '__main__':
    main()
