"""What the paper claims, tried on procedural motion clips: operators, frames, ranges, stages, transfer.

    python benchmarks/claims.py [--runs DIR] [--seeds 3] [--jobs 2] [--only PATTERN] [--list] [--figures]

Every model is of the tiny size, starts from what our weights know of single frames (see `start_spatial`),
sees the union of both families at 64x64 for the same number of clips (`*_long`: four times as many), and
is measured on clips of a seed that no training uses. Runs are made part by part, seed after seed, each on
one core: two at once on two cores take less time than one after the other on both. A run goes on where it
was stopped, and its result is written to benchmarks/results/claims.json as it comes. The figures are
drawn from that file.
"""

import argparse
import fnmatch
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset

import bvtam
from bvtam.data.motion.clips import MotionClips
from bvtam.deploy.flops import count
from bvtam.engine.evaluate_motion import evaluate_motion
from bvtam.engine.recipe import Recipe
from bvtam.engine.run import build
from bvtam.engine.train import Trainer
from bvtam.files import write_file
from bvtam.layers.tam import TAM

RESULTS = Path(__file__).parent / 'results'
EPOCHS, CLIPS, TEST_CLIPS, TEST_SEED = 3, 3200, 2016, 1000
TRANSFER_EPOCHS = {5: 35, 20: 8, 100: 2}  # clips of a class: epochs, of some 3,000 clips in all
OURS = 'bvtam_tiny_8x2.motion'
PARTS = 'operators', 'transfer', 'frames', 'stages', 'range', 'init'


@dataclass(frozen=True)
class Run:
    """A model, how it starts and what it is trained on.

    Attributes:
        parts: of the study that it belongs to.
        settings: of the recipe, in place of those of `BASE`.
        start: the run of the same seed whose weights it starts from, or `OURS`.
        temporal: initial weights of the TAMs: '' as the authors draw them, 'identity', 'tsm'.
        shots: clips per class of the held-out classes; 0: trained on the stream of the others.
    """

    parts: str
    settings: tuple[str, ...] = ()
    start: str = ''
    temporal: str = ''
    shots: int = 0
    model: str = 'bvtam_tiny_8x2'
    options: dict = field(default_factory=dict)

    def recipe(self, seed, runs):
        # `OURS` was trained from seed 0: its TAMs, drawn again, would fit its other weights at once.
        tams = self.model.startswith('bvtam') and 'temporal' not in self.options
        settings = [*BASE, *self.settings, f'seed={seed + tams}', f'model={self.model}']
        settings.append(f'model_options={json.dumps(self.options)}')
        if self.shots:
            clips = self.shots * MotionClips(family='shapes', held_out=True).num_classes
            epochs = TRANSFER_EPOCHS[self.shots]
            settings += ['data.motion.held_out=true', f'data.motion.clips={clips}']
            settings += ['lr=1e-3', f'epochs={epochs}', f'warmup_epochs={epochs / 10}']
        if self.start:
            settings.append(f'init={runs / f"{self.start}-{seed}" if self.start in RUNS else OURS}')
        return Recipe.load('', settings)


BASE = (
    'clip={resize: 64, crop_size: 64}',
    'data.motion.family=shapes',
    f'data.motion.clips={CLIPS}',
    'data.motion.val_clips=280',
    'data.workers=0',
    'optimizer.name=adamw',
    'lr=2e-3',
    'weight_decay=0.05',
    'decay_all=false',
    'clip_grad=5',
    f'epochs={EPOCHS}',
    'warmup_epochs=0.5',
    'batch_size=16',
    'precision=fp32',
    'eval_every=1000',
    'save_minutes=2',
    'log_every=25',
)
NONE, TSM = {'temporal': 'none'}, {'temporal': 'tsm'}


def frames(number, *settings):
    return (f'clip={{num_frames: {number}, resize: 64, crop_size: 64}}', *settings)


RUNS = {
    'tam': Run('operators frames range init'),
    'none': Run('operators frames', options=NONE),
    'tsm': Run('operators', options=TSM),
    'tam_long': Run('operators', ('epochs=12',)),
    'none_long': Run('operators', ('epochs=12',), options=NONE),
    'tsm_long': Run('operators', ('epochs=12',), options=TSM),
    'tsn': Run(
        'operators',
        ('epochs=9', 'lr=3e-3'),  # it starts from scratch, and a clip costs it less
        model='tsn_resnet50_f8',
        options={'backbone': 'test_resnet'},
    ),
    'tam_16x2_from_8x2': Run('stages', frames(32, 'epochs=1', 'lr=1e-3'), start='tam'),
    'tam_4x2': Run('frames', frames(8)),
    'none_4x2': Run('frames', frames(8), options=NONE),
    'tam_16x2': Run('stages frames', frames(32)),
    'none_16x2': Run('frames', frames(32), options=NONE),
    'range_1': Run('range', options={'temporal_range': 1}),
    'range_5': Run('range', options={'temporal_range': 5}),
    'init_identity': Run('init', temporal='identity'),
    'init_tsm': Run('init', temporal='tsm'),
    **{
        f'{how}_{shots}_shots': Run('transfer', start=start, shots=shots)
        for shots in TRANSFER_EPOCHS
        for how, start in (('transfer', OURS), ('scratch', ''))
    },
    'tam_24x2': Run('frames', frames(48)),
    'none_24x2': Run('frames', frames(48), options=NONE),
}


class FewClips(Dataset):
    """The first clips of a stream, the same ones in every epoch."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitems__(self, indices):
        return self.clips.__getitems__(indices)


def start_spatial(model):
    """What `OURS` knows of single frames, as the paper's models start from weights for images.

    TAMs and classifier stay as they are: nothing that is loaded knows of time.
    """
    ours = bvtam.create_model(OURS, pretrained=True)
    tams = {f'{name}.weight' for name, module in ours.named_modules() if isinstance(module, TAM)}
    weights = ours.state_dict().items()
    weights = {k: v for k, v in weights if k not in tams and not k.startswith('fc.')}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and {*missing} <= {*tams, 'fc.weight', 'fc.bias'}


@torch.no_grad()
def start_tams(model, how):
    """Weights (range, C) as if nothing moved, or as TSM moves an eighth of the channels each way."""
    for module in model.modules():
        if isinstance(module, TAM):
            weight = module.weight
            middle, fold = len(weight) // 2, weight.shape[1] // 8
            weight.zero_()
            weight[middle] = 1
            if how == 'tsm':
                weight[middle, : 2 * fold] = 0
                weight[middle + 1, :fold] = 1
                weight[middle - 1, fold : 2 * fold] = 1


def measure(name, seed, runs):
    """Trains one model and measures it, and before it the one that it starts from where that is gone."""
    run, folder = RUNS[name], runs / f'{name}-{seed}'
    if run.start in RUNS and not (runs / f'{run.start}-{seed}').exists():
        measure(run.start, seed, runs)
    recipe = run.recipe(seed, runs)
    model, clips, val = build(recipe)
    if not run.start and not run.shots and run.model.startswith('bvtam'):
        start_spatial(model)
    if run.temporal:
        start_tams(model, run.temporal)
    cpu = sum(os.times()[:4])
    if run.shots:
        clips = FewClips(clips)
    trainer = Trainer(model, recipe, clips, val, folder)
    trainer.fit()
    cpu = sum(os.times()[:4]) - cpu
    found = evaluate_motion(
        trainer.model, TEST_CLIPS, TEST_SEED, held_out=bool(run.shots), workers=0
    )
    clip = model.clip_config
    macs = count(trainer.model, clip.num_frames, clip.crop_size)['executed_macs']
    return {
        'run': name,
        'seed': seed,
        'top1': found['top1'],
        'families': found['families'],
        'frames': clip.num_frames,
        'macs': macs,
        'clips': recipe.schedule.epochs * len(clips),
        'cpu_hours': cpu / 3600,
    }


def load():
    path = RESULTS / 'claims.json'
    return json.loads(path.read_text()) if path.exists() else []


def spread(results, name, family=None):
    """Mean and standard deviation over seeds, and their number."""
    rows = [r for r in results if r['run'] == name]
    values = [r['families'][family]['top1'] if family else r['top1'] for r in rows]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if values[1:] else 0.0, len(values)


def table(results):
    """Markdown: a line for each model, below what models that see one frame or one pair at a time can reach."""
    lines = ['| model | seeds | direction (%) | order (%) | both (%) |', '|---|---|---|---|---|']
    for view in ('frame', 'pair'):
        bounds = [MotionClips(family=f).bound(view) for f in ('direction', 'order', 'shapes')]
        cells = ' | '.join(f'{100 * bound:.1f}' for bound in bounds)
        lines.append(f'| *at most, from every {view} by itself* |  | {cells} |')
    for name, run in RUNS.items():
        if not (whole := spread(results, name)):
            continue
        cells = [spread(results, name, family) for family in ('direction', 'order')] + [whole]
        text = ' | '.join(
            f'{mean:.1f} ± {deviation:.1f}' if seeds > 1 else f'{mean:.1f}'
            for mean, deviation, seeds in cells
        )
        held_out = ' (held-out motions)' if run.shots else ''
        lines.append(f'| `{name}`{held_out} | {whole[2]} | {text} |')
    return '\n'.join(lines)


def figures(results):
    """claims.png: a panel for each part of the study of which there are results."""
    from matplotlib.figure import Figure

    operators = ['tsn', 'none', 'tsm', 'tam', 'none_long', 'tsm_long', 'tam_long']
    drawn = {
        'operators': lambda axes: _bars(axes, results, 'operators', operators),
        'transfer': lambda axes: _transfer(axes, results),
        'frames': lambda axes: _frames(axes, results),
        'stages': lambda axes: _stages(axes, results),
        'range': lambda axes: _bars(axes, results, 'range of TAM', ['range_1', 'tam', 'range_5']),
        'init': lambda axes: _bars(
            axes, results, 'start of TAM', ['tam', 'init_identity', 'init_tsm']
        ),
    }
    own = {RUNS[r['run']].parts.partition(' ')[0] for r in results}
    shown = [part for part in PARTS if part in own]
    if not shown:
        return
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, part in zip(panels, shown, strict=False):
        drawn[part](axes)
        axes.set(ylabel='top-1 (%)', ylim=(0, 101))
        axes.legend(loc='upper left')
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    figure.savefig(RESULTS / 'claims.png', dpi=80)


def _line(axes, points, label):
    """`points`: {x: what `spread` gives}."""
    points = {x: found for x, found in points.items() if found}
    means, deviations = [found[0] for found in points.values()], [f[1] for f in points.values()]
    axes.errorbar(list(points), means, deviations, fmt='o-', capsize=3, label=label)


def _transfer(axes, results):
    for how, label in (('transfer', 'from our weights'), ('scratch', 'from scratch')):
        _line(axes, {n: spread(results, f'{how}_{n}_shots') for n in TRANSFER_EPOCHS}, label)
    axes.set(title='motions never trained on', xlabel='clips of a class', xscale='log')


def _frames(axes, results):
    for kind, label in (('tam', 'TAM'), ('none', 'no operator')):
        names = {8: f'{kind}_4x2', 16: kind, 32: f'{kind}_16x2', 48: f'{kind}_24x2'}
        _line(axes, {n: spread(results, name) for n, name in names.items()}, label)
    axes.set(title='frames', xlabel='frames of a clip')


def _stages(axes, results):
    for name, stages in (
        ('tam_16x2', ['tam_16x2']),
        ('tam_16x2_from_8x2', ['tam', 'tam_16x2_from_8x2']),
    ):
        rows = [r for stage in stages for r in results if r['run'] == stage and r['seed'] == 0]
        cost = sum(3 * r['macs'] * r['clips'] for r in rows) / 1e12  # forward and backward
        _line(axes, {cost: spread(results, name)}, name)
    axes.set(title='16x2 frames in two stages', xlabel='cost of training (10^12 MACs)')
    axes.set_xlim(left=0)


def _bars(axes, results, title, names):
    """Both families, beside what models that see one frame (dotted) or pair (dashed) can reach."""
    for i, family in enumerate(('direction', 'order')):
        for place, name in enumerate(names):
            if found := spread(results, name, family):
                axes.bar(
                    place + 0.4 * i - 0.2, found[0], 0.38, yerr=found[1], capsize=3, color=f'C{i}'
                )
        axes.plot([], color=f'C{i}', linewidth=8, label=family)
        for view, style in (('frame', ':'), ('pair', '--')):
            bound = 100 * MotionClips(family=family).bound(view)
            axes.axhline(bound, color=f'C{i}', linestyle=style, linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=15)
    axes.set(title=title)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--runs', type=Path, default=Path('runs/claims'))
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time')
    parser.add_argument('--only', default='*', help='wildcards for names of runs')
    parser.add_argument('--list', action='store_true', help='list the runs, and end')
    parser.add_argument('--figures', action='store_true', help='draw what is there, and end')
    options = parser.parse_args()
    wanted = [name for name in RUNS if fnmatch.fnmatch(name, options.only)]
    if options.list:
        print('\n'.join(f'{name:20} {RUNS[name].parts}' for name in wanted))
        return
    results = load()
    if not options.figures:
        done = {(r['run'], r['seed']) for r in results}
        todo = dict.fromkeys(
            (name, seed)
            for part in PARTS
            for seed in range(options.seeds)
            for name in wanted
            if part in RUNS[name].parts.split() and (name, seed) not in done
        )
        with ProcessPoolExecutor(
            options.jobs, multiprocessing.get_context('spawn'), torch.set_num_threads, (1,)
        ) as pool:
            for future in as_completed(pool.submit(measure, *run, options.runs) for run in todo):
                results.append(future.result())
                write_file(RESULTS / 'claims.json', json.dumps(results, indent=1) + '\n')
                print('{run} {seed}: {top1:.1f} %'.format(**results[-1]), flush=True)
    figures(results)
    print(table(results))


if __name__ == '__main__':
    main()
