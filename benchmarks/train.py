"""Cost of the trainer beside the model: clips a second, against bare loops.

    python benchmarks/train.py [--rounds 7] [--steps 16] [--videos 160]

On tensors in memory the yardstick is a bare loop of forward, backward and step on the same model,
batches and optimizer. On real videos (short H.264, prepared as `bvtam prepare` does) it is the slower
of that loop and of the loader alone. The model and the worker that decodes need a core each: on a
machine that others use too, the second figure leaves out the time that this process waited for one.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from decode import write
from measure import interleaved
from torch.utils.data import Dataset

from bvtam.data.datasets import VideoDataset, collate
from bvtam.data.prepare.run import prepare
from bvtam.data.records import Record
from bvtam.data.transforms import TrainTransform, normalize
from bvtam.engine.recipe import Recipe
from bvtam.engine.setup import build_model, build_optimizer
from bvtam.engine.train import Trainer

BATCH = 4


class Tensors(Dataset):
    """Clips that are in memory already, of 8 frames of 96 x 96 pixels."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        shape = (count, 3, 8, 96, 96)
        self.clips = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        facts = {'label': i % 10, 'index': i, 'video': f'{i}', 'frames': [], 'failed': []}
        return {'clip': self.clips[i], **facts}


class Run:
    """A trainer of which one call is one more epoch, and the bare loop on another such model."""

    def __init__(self, data, workers):
        settings = ['model=bvtam_tiny_8x2', 'clip={num_frames: 8, resize: 96, crop_size: 96}']
        settings += [f'batch_size={BATCH}', f'data.workers={workers}', 'lr=1e-4']
        recipe = Recipe.load('', settings)
        self.trainer = Trainer(build_model(recipe, None, 10), recipe, data)
        self.trainer.loader = self.trainer._loader()
        self.model = build_model(recipe, None, 10).train()
        self.optimizer = build_optimizer(self.model, recipe)
        self.parts = [
            collate([data[i + j] for j in range(BATCH)]) for i in range(0, len(data), BATCH)
        ]

    def ours(self):
        self.trainer._train_epoch(0)

    def bare(self):
        for part in self.parts:
            clip = normalize(part['clip'], self.model.clip_config)
            loss = F.cross_entropy(self.model(clip), part['label'])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def load(self):
        for _ in self.trainer.loader:
            pass


def videos(folder, count):
    """Records of one prepared video, by so many names."""
    source = folder / 'source' / 'a'
    source.mkdir(parents=True)
    write(source / 'video.mp4', 2)
    prepare(source.parent, folder / 'prepared', size=96, workers=1)
    (path,) = (folder / 'prepared').rglob('*.mp4')
    return [Record(str(path), i % 10) for i in range(count)]


def queued():
    """Seconds that this process has waited for a core (Linux)."""
    return int(Path('/proc/self/schedstat').read_text().split()[1]) / 1e9


def without_queue(functions, rounds):
    """Median seconds of each function and, of these, those in which it had a core or needed none."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start, before = time.perf_counter(), queued()
            function()
            whole = time.perf_counter() - start
            seconds[name].append((whole, whole - queued() + before))
    return [
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in seconds.items()}
        for i in (0, 1)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--steps', type=int, default=16)
    parser.add_argument('--videos', type=int, default=160)
    options = parser.parse_args()
    logging.getLogger('libav').setLevel(logging.ERROR)
    torch.set_num_threads(1)
    run = Run(Tensors(BATCH * options.steps), workers=0)
    seconds = interleaved({'bare': run.bare, 'ours': run.ours}, options.rounds)
    clips = BATCH * options.steps / seconds['ours']
    print(
        f'{os.cpu_count()} cores, torch {torch.__version__}, bvtam_tiny_8x2, clips of 8 frames of 96 px\n'
        f'tensors: {clips:.1f} clips/s, {seconds["bare"] / seconds["ours"]:.2f}x of a bare loop'
    )
    with tempfile.TemporaryDirectory() as scratch:
        records = videos(Path(scratch), options.videos)
        clip = run.model.clip_config
        run = Run(VideoDataset(records, clip, train=TrainTransform(clip)), workers=1)
        functions = {'bare': run.bare, 'ours': run.ours, 'load': run.load}
        whole, own = without_queue(functions, options.rounds)
    ratios = [max(times['bare'], times['load']) / times['ours'] for times in (whole, own)]
    rates = {name: options.videos / seconds for name, seconds in whole.items()}
    print(
        f'videos: {rates["ours"]:.1f} clips/s, {ratios[0]:.2f}x of the slower of a bare loop '
        f'({rates["bare"]:.1f}) and the loader alone ({rates["load"]:.1f}); {ratios[1]:.2f}x without '
        'the wait for a core'
    )


if __name__ == '__main__':
    main()
