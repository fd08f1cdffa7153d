"""Small data sets, models and runs for the tests of the trainer."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from bvtam.engine.recipe import Recipe
from bvtam.engine.setup import build_model
from bvtam.engine.train import Trainer
from bvtam.errors import BvtamError

TINY = (
    'model=bvtam_tiny_8x2',
    'model_options={width: 8, layers: [2, 2, 2, 1], drop_rate: 0}',
    'batch_size=4',
    'epochs=2',
    'lr=0.02',
    'log_every=2',
    'data.workers=0',
    'save_minutes=1000',
)


class Clips(Dataset):
    """Random clips of 4 frames of 32 x 32 pixels, a little brighter from class to class."""

    def __init__(self, count=10, classes=3, frames=4, size=32):
        self.count, self.classes, self.shape = count, classes, (3, frames, size, size)
        self.seen = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.seen.append(index)
        generator = torch.Generator().manual_seed(index)
        label = index % self.classes
        clip = torch.randint(0, 128, self.shape, generator=generator, dtype=torch.uint8)
        return {
            'clip': clip + 40 * label,
            'label': label,
            'index': index,
            'video': f'v{index}.mp4',
            'frames': [],
            'failed': [],
        }


class Faulty(Clips):
    """Floating-point clips of which one is not finite."""

    def __init__(self, bad, **options):
        super().__init__(**options)
        self.bad = bad

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample['clip'] = sample['clip'].float() / 100
        if index == self.bad:
            sample['clip'][0, 0, 0, 0] = float('nan')
        return sample


def recipe(*settings):
    return Recipe.load('', [*TINY, *settings])


def make(*settings, out=None, data=None, val=None, **options):
    """A trainer of the tiny model on random clips."""
    data = Clips() if data is None else data
    chosen = recipe(*settings)
    model = lively(build_model(chosen, list('abc'), 3))
    return Trainer(model, chosen, data, val, out, **options)


def lively(model):
    """As after some training: every branch counts, and norms fit what they see."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data = torch.rand(len(norm.weight), generator=generator) / 2 + 0.25
        norm.momentum = 1.0
    shape = (8, 3, 32, 32) if model.input_kind == 'image' else (8, 3, 4, 32, 32)
    with torch.no_grad():
        model.train()(torch.randn(shape, generator=generator))
    for norm in norms:
        norm.momentum = 0.1
    return model


def rows(out):
    return [json.loads(line) for line in (Path(out) / 'metrics.jsonl').read_text().splitlines()]


PRODUCT = ('metrics.jsonl', 'last/model.safetensors', 'best/model.safetensors', 'results.json')


def product(out, names=PRODUCT):
    """The bytes that two runs of one recipe must share."""
    return {name: (Path(out) / name).read_bytes() for name in names}


# ---- runs in processes of their own, which tests may kill ----


class Killer:
    """A progress callback: so many steps later, and a while, this process and its workers are hit."""

    def __init__(self, number, steps, seconds, alone=False):
        self.number, self.steps, self.seconds, self.calls = number, steps, seconds, 0
        self.kill = os.kill if alone else os.killpg
        self()

    def __call__(self, done=0, total=0):
        if self.calls == self.steps:
            target = os.getpid() if self.kill is os.kill else 0
            kill = threading.Timer(self.seconds, self.kill, (target, self.number))
            kill.daemon = True
            kill.start()
        self.calls += 1


def work(job):
    """What one process does: a run, with the signal that ends it, if any."""
    torch.set_num_threads(1)
    os.setsid()
    os.environ.update(job.get('env', {}))
    killer = Killer(*job['kill'], alone=job.get('alone', False)) if 'kill' in job else None
    train, val = Clips(job.get('count', 10)), Clips(job.get('val', 5))
    train = Faulty(job['bad']) if 'bad' in job else train
    trainer = make(
        *job['settings'], out=job['out'], data=train, val=val if len(val) else None, progress=killer
    )
    result = trainer.fit()
    if 'seen' in job:
        Path(f'{job["seen"]}.{trainer.processes.rank}').write_text(json.dumps(train.seen))
    return result


class Server:
    """A process that has imported everything and forks off the runs: they start in no time."""

    def __init__(self, log):
        self.log = log
        with open(log, 'w') as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ
                | {
                    'OMP_NUM_THREADS': '1',
                    'PYTHONPATH': os.pathsep.join(sys.path),
                    'TMPDIR': str(Path(log).parent),  # for what the killed leave behind
                },
            )

    def start(self, *settings, out, world=1, **job):
        """Starts a run; `wait` must follow. Of several processes one that dies takes all along."""
        jobs = [{'settings': settings, 'out': str(out), **job} for _ in range(world)]
        kill = job.get('kill')
        if world > 1:
            with socket.socket() as probe:
                probe.bind(('127.0.0.1', 0))
                port = probe.getsockname()[1]
            for rank, one in enumerate(jobs):
                names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
                values = (rank, rank, world, '127.0.0.1', port)
                one['env'] = {name: str(value) for name, value in zip(names, values, strict=True)}
                one['env']['ACCELERATE_USE_CPU'] = 'true'
                if kill and rank and kill[0] == signal.SIGKILL:
                    del one['kill']
        print(json.dumps(jobs), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def wait(self):
        """Exit codes of the processes, negative for signals."""
        return json.loads(self.process.stdout.readline())

    def run(self, *settings, out, **job):
        self.start(*settings, out=out, **job)
        codes = self.wait()
        assert not any(codes), Path(self.log).read_text()[-3000:]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(60) == 0


def serve():
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from torch.utils.data._utils import worker

    # Torch's own look at the parent, every 5 seconds, would hide that ours is missing.
    worker.MP_STATUS_CHECK_INTERVAL = 1000

    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        jobs, pids = json.loads(line), []
        for job in jobs:
            pids.append(os.fork())
            if not pids[-1]:
                _child(job)
        print(json.dumps(pids), file=out, flush=True)
        codes = {}
        while len(codes) < len(pids):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid] < 0:  # a launcher does so too
                for other in set(pids) - set(codes):
                    os.kill(other, signal.SIGKILL)
        print(json.dumps([codes[pid] for pid in pids]), file=out, flush=True)


def _child(job):
    sys.stdin.close()
    code = 1
    try:
        work(job)
        code = 0
    except BvtamError as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
        code = getattr(error, 'exit_code', 1)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        for process in multiprocessing.active_children():
            process.join(20)
        sys.stderr.flush()
        os._exit(code)


if __name__ == '__main__':
    serve()
