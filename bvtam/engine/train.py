"""The reference trainer: one process or many (`accelerate launch`), one recipe, one folder.

    runs/mine/recipe.yaml       the recipe, resolved
              metrics.jsonl     a line every few steps and one after each evaluation
              checkpoints/      to resume from (see checkpoint.py)
              best/ last/       the model as a zoo folder: predict, eval, push take it as it is
              curves.png, results.json, errors.csv, tensorboard/

A run that is killed at any moment and started again ends with the same weights and the same
metrics.jsonl, to the bit where the arithmetic is deterministic: every random draw comes from
(seed, step) or (seed, epoch, sample), and a checkpoint holds all other state.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.datasets import collate
from ..data.failures import Failures, machine_errors, starting_processes
from ..data.records import paths_and_sizes
from ..data.video.memory import prefetch
from ..deploy.optimize import warn_slow_bf16
from ..errors import BvtamError
from ..files import write_file
from ..hub.publish import save_pretrained
from . import checkpoint
from .balance import class_weights, sample_weights
from .data import Batches
from .distributed import Processes, Stopped, StopRequest, all_gather, quiet_worker, stop_signals
from .evaluate import evaluate
from .recipe import Recipe
from .run_folder import RESULTS, MetricsLog, locked, open_run, save_curves
from .setup import freeze_norms
from .step import TrainStep

log = logging.getLogger('bvtam')


class RunResults(TypedDict):
    """The end of a run, as results.json has it."""

    epochs: int
    steps: int
    last: dict[str, float]  # lines of metrics.jsonl: the last and the best evaluation
    best: dict[str, float]
    failed: int  # videos that could not be read
    out: NotRequired[str]  # the folder, from `train`


def _rank(evaluation: dict[str, Any]) -> tuple[float, float]:
    """What makes one evaluation better than another: the accuracy, then the loss, since a few clips
    are soon all right and the model still improves."""
    return evaluation['val_top1'], -evaluation['val_loss']


class Trainer:
    """One model, one recipe, one run.

    Args:
        model: a model of the zoo, with `clip_config` and `label_names`; trained in place.
        recipe: all settings.
        train_set, val_set: datasets of sample dicts, as `VideoDataset` gives them.
        out: folder of the run; None keeps everything in memory (no checkpoints, no metrics).
        progress: called after each step with the numbers of clips seen and to see in the whole run.
        on_log: called with each line of metrics.jsonl as a dict, and `clips_per_second` in it.
            Both are called in the main process alone.

    Raises:
        BvtamError: accelerate is missing, or a batch that cannot be shared out.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train_set: Dataset,
        val_set: Dataset | None = None,
        out: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
        on_log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        run = recipe.run
        self.recipe, self.train_set, self.val_set = recipe, train_set, val_set
        self.progress = progress
        self.out = Path(out) if out is not None else None
        self.processes = processes = Processes()
        if run.sync_bn and processes.world_size > 1 and processes.device.type == 'cpu':
            raise BvtamError('recipe: run.sync_bn: torch has it on GPUs alone; leave it out')
        balanced = recipe.data.sampler == 'balanced'
        self.batches = Batches(
            len(train_set),
            run.batch_size,
            run.accumulate,
            run.seed,
            processes.rank,
            processes.world_size,
            sample_weights(train_set, model.num_classes) if balanced else None,
        )
        if run.precision == 'bf16' and processes.is_main:
            warn_slow_bf16(processes.device)
        self.model = model.to(processes.device)
        freeze_norms(model, recipe.regularize.freeze_bn)  # before the optimizer collects parameters
        weight = class_weights(recipe.regularize.class_weight, train_set, model)
        self.train_step = TrainStep(model, recipe, processes, self.batches.steps, weight)
        self.epoch = 0
        self.best: dict[str, Any] = {}  # lines of the evaluations
        self.last: dict[str, Any] = {}
        self.pending: list[Tensor] = []  # losses since the last line, still on the device
        self.videos: list[list[str]] = []  # of the same steps
        self.failed: list[tuple[str, str]] = []  # in the same steps
        self.failures = Failures(len(train_set), recipe.data.max_failed)
        self.metrics = MetricsLog(self.out, on_log) if processes.is_main else MetricsLog(None, None)
        self.loader = self.loaded = None  # the decoding processes, and what comes from them
        self.stop_request = StopRequest()
        self._saved_at = self._logged_at = time.monotonic()
        self._clips = 0  # since the last line

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.train_step.count

    # ---- the loop ----

    def fit(self, resume: str = 'auto') -> RunResults:
        """Trains to the end of the recipe, from the newest checkpoint of the run if there is one.

        Args:
            resume: 'auto', or 'never' for a folder that must hold no run yet.

        Raises:
            BvtamError: another recipe in the folder, or another process; too many damaged videos;
                a loss or a weight that is not finite, with the step and the names of its videos.
            Stopped: SIGTERM or SIGINT came; the state is saved.
        """
        run, epochs = self.recipe.run, self.recipe.schedule.epochs
        with ExitStack() as stack:
            stack.enter_context(machine_errors(''))
            self.stop_request = stack.enter_context(stop_signals())
            stack.callback(self._close)
            start = self._open(resume, stack)
            while self.epoch < epochs:
                self._train_epoch(start)
                start = 0
                self.epoch += 1
                due = self.epoch == epochs or self.epoch % run.eval_every == 0
                if self.val_set is not None and due:
                    self._evaluate()
                self._publish('last')
                self._pause(0)
            return self._finish()

    def _train_epoch(self, start: int) -> None:
        batches, dataset = self.batches, self.train_set
        batches.epoch, batches.start = self.epoch, start
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(self.epoch)
        self.train_step.wrapped.train()
        freeze_norms(self.model, self.recipe.regularize.freeze_bn)
        self.loader = self.loader or self._loader()
        with starting_processes(self.recipe.data.workers):
            self.loaded = iter(self.loader)
        for step in range(start, batches.steps):
            parts = [next(self.loaded) for _ in range(batches.parts(step))]
            self.failed += [failure for part in parts for failure in part['failed']]
            self.videos.append([video for part in parts for video in part['video']])
            self.pending.append(self.train_step(parts, batches.samples(step)))
            self._clips += batches.samples(step)
            if self.progress and self.processes.is_main:
                done = min((step + 1) * batches.batch_size, len(dataset))
                epochs = self.recipe.schedule.epochs
                self.progress(self.epoch * len(dataset) + done, epochs * len(dataset))
            if step + 1 == batches.steps or self.step % self.recipe.run.log_every == 0:
                self._log_losses()
            self._pause(step + 1)

    def _pause(self, steps_done: int) -> None:
        """Between two steps: saves if it is time to, and stops if asked to.

        Args:
            steps_done: of the epoch; 0 once it is evaluated, which is always saved.
        """
        due = time.monotonic() - self._saved_at >= 60 * self.recipe.run.save_minutes
        due = not steps_done or (due and steps_done < self.batches.steps)
        # All stop after the same step; asking each other costs a wait, so it is not done every step.
        some = self.step % self.recipe.run.log_every and 0 < steps_done < self.batches.steps
        if some and self.processes.world_size > 1:
            return
        asked, due = self.processes.all_reduce_max(self.stop_request.signal, int(due))
        if asked or due:
            self._save(steps_done)
        if asked and self.epoch < self.recipe.schedule.epochs:
            name = signal.Signals(asked).name
            raise Stopped(f'stopped by {name} after step {self.step}; run it again to go on', asked)

    def _loader(self) -> DataLoader:
        workers = self.recipe.data.workers
        return DataLoader(
            self.train_set,
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=workers,
            prefetch_factor=prefetch(workers, self.batches.part * self.model.clip_config.num_bytes),
            persistent_workers=workers > 0,
            pin_memory=self.processes.device.type == 'cuda',
            worker_init_fn=quiet_worker,
        )

    def _close(self) -> None:
        self.loader = self.loaded = None  # ends the decoding processes, also where an error goes up
        self.metrics.close()

    # ---- what a run writes ----

    def _log_losses(self) -> None:
        """One line for the steps since the last one. Only here does training wait for the device."""
        loss = self._checked_losses().mean().item()
        row = {'epoch': self.epoch + 1, 'step': self.step, 'loss': loss, 'lr': self.train_step.lr}
        now = time.monotonic()
        self.metrics.write(row, {'clips_per_second': self._clips / (now - self._logged_at)})
        self._logged_at, self._clips = now, 0
        self.pending, self.videos = [], []

    def _checked_losses(self) -> Tensor:
        """Mean losses of the pending steps, over all processes, whose failed videos are counted too.

        Raises:
            BvtamError: a loss or a weight is not finite, or too many videos failed.
        """
        for part in all_gather(self.failed):
            for video, reason in part:
                self.failures.add(video, reason)
        self.failed = []
        numbers = [t for t in self.model.state_dict().values() if t.is_floating_point()]
        norm = torch.nn.utils.get_total_norm(numbers)  # finite if all of them are
        values = self.processes.all_reduce_mean(torch.stack([*self.pending, norm])).cpu().double()
        wrong = (~values.isfinite()).nonzero()
        if not len(wrong):
            return values[:-1]
        first = min(int(wrong[0]), len(self.pending) - 1)
        step = self.step - len(self.pending) + first + 1
        names = all_gather(self.videos[first] if self.videos else [])
        what = 'a weight' if wrong[0] == len(self.pending) else f'the loss {values[first].item()}'
        raise BvtamError(
            f'{what} is not finite at step {step} (epoch {self.epoch + 1}): lower optimizer.lr or set '
            'optimizer.clip_grad; the videos of that step: '
            + ', '.join(v for n in names for v in n)
        )

    def _evaluate(self) -> None:
        model = self._evaluated()
        self.processes.broadcast_buffers(model)
        result = evaluate(
            model,
            self.val_set,
            num_clips=1,
            num_crops=1,
            workers=self.recipe.data.workers,
            on_error='skip',
            max_failed=self.recipe.data.max_failed,
        )
        keys = ('loss', 'top1', 'top5', 'mean_class_accuracy', 'num_videos')
        self.last = {'epoch': self.epoch, 'step': self.step}
        self.last |= {f'val_{key}': result[key] for key in keys}
        if not self.best or _rank(self.last) > _rank(self.best):
            self.best = self.last
            self._publish('best')
        self.metrics.write(self.last)
        self._logged_at = time.monotonic()

    def _evaluated(self) -> nn.Module:
        """The model that counts: the moving average where there is one."""
        return self.train_step.ema.module if self.train_step.ema else self.model

    def _publish(self, which: str) -> None:
        if self.out:
            origin = f'Trained by `bvtam train`, {self.epoch} epochs; see recipe.yaml of the run.'
            self.processes.run_on_main(
                lambda: save_pretrained(self._evaluated(), self.out / which, origin, keep=True)
            )

    def _save(self, steps_done: int) -> None:
        """A checkpoint at `steps_done` steps of the epoch that is under way."""
        pending = self._checked_losses().tolist()
        self._saved_at = time.monotonic()
        if not self.out:
            return
        tensors = self.train_step.tensors()
        state = {
            'epoch': self.epoch,
            'steps_done': steps_done,
            'pending': pending,
            'best': self.best,
            'last': self.last,
            'failed': self.failures.reasons,
            'data': self.data,
            **self.train_step.state(),
        }

        def write() -> None:
            state['metrics_bytes'] = self.metrics.sync()
            folder, keep = self.out / 'checkpoints', self.recipe.run.keep
            checkpoint.save(folder, self.step, tensors, state, keep)

        self.processes.run_on_main(write)

    def _open(self, resume: str, stack: ExitStack) -> int:
        """Sets up the folder and the state of the run; steps of its epoch that are done already."""
        if self.out is None:
            return 0

        def claim() -> None:
            stack.enter_context(locked(self.out))
            open_run(self.out, self.recipe, resume)

        self.processes.run_on_main(claim)
        errors = self.out / 'errors.csv' if self.processes.is_main else None
        self.failures = Failures(len(self.train_set), self.recipe.data.max_failed, errors)
        newest = checkpoint.newest(self.out / 'checkpoints')
        state = checkpoint.read_state(newest) if newest else {'metrics_bytes': 0, 'step': 0}
        was = state.get('data', self.data)
        if changed := [key for key, now in self.data.items() if was.get(key) != now]:
            raise BvtamError(
                f'{self.out} holds a run on other data ({", ".join(changed)} differ): name another '
                'folder with --out'
            )
        self.metrics.cut(state['metrics_bytes'], state['step'])  # the rest will be written again
        return self._resume(newest, state) if newest else 0

    def _resume(self, folder: Path, state: dict[str, Any]) -> int:
        try:
            self.train_step.load(folder, state)
        except checkpoint.MISFITS as error:
            raise BvtamError(
                f'checkpoint {folder} is not of this run ({error}): remove it, or name another '
                'folder with --out'
            ) from None
        for video, reason in state['failed'].items():
            self.failures.add(video, reason)
        self.epoch, self.best, self.last = state['epoch'], state['best'], state['last']
        device = self.processes.device
        self.pending = [torch.tensor(loss, device=device) for loss in state['pending']]
        self.videos = [[] for _ in self.pending]
        done = self.epoch == self.recipe.schedule.epochs
        what = 'is finished: nothing is left to do' if done else f'goes on after step {self.step}'
        if self.processes.is_main:
            log.warning('the run in %s %s', self.out, what)
        return state['steps_done']

    @cached_property
    def data(self) -> dict[str, Any]:
        """What tells whether a resumed run has the data that it began with."""
        found = {'label names': self.model.label_names, 'number of classes': self.model.num_classes}
        for name, data in (('training', self.train_set), ('validation', self.val_set)):
            found_records = getattr(data, 'records', ())
            places = paths_and_sizes([record.source for record in found_records])
            records = [[*p, r.label] for p, r in zip(places, found_records, strict=True)]
            digest = blake2b(json.dumps(records).encode(), digest_size=8).hexdigest()
            found[f'{name} videos'] = [len(data) if data is not None else 0, digest]
        return found

    def _finish(self) -> RunResults:
        results: RunResults = {
            'epochs': self.epoch,
            'steps': self.step,
            'last': self.last,
            'best': self.best,
            'failed': len(self.failures),
        }
        if self.out and self.processes.is_main and not (self.out / RESULTS).exists():
            save_curves(self.out)
            write_file(self.out / RESULTS, json.dumps(results, indent=1) + '\n')
        if self.failures and self.processes.is_main:
            log.warning(self.failures.summary())
        return results
