"""One optimizer step: the parts of a batch, mixed precision, mixup, schedule and moving average."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.sampling import sample_seed
from ..data.transforms import normalize
from ..errors import BvtamError
from . import checkpoint
from .distributed import Processes
from .recipe import Recipe
from .setup import build_optimizer, build_schedule, current_lr

log = logging.getLogger('bvtam')


class TrainStep:
    """Makes one optimizer step at each call, and holds all that a step changes.

    Args:
        model: of the zoo, on the device of this process; trained in place.
        recipe: all settings.
        processes: those that share each batch.
        steps: of one epoch.
        class_weight: (K,), the factor of each class in the loss; None: all are 1.

    Attributes:
        wrapped: the model as a step calls it: compiled, its gradients averaged over all processes.
        ema: the moving average of the weights, or None.
        count: steps done.
        lr: learning rate of the last step, where a group's factor is 1.

    Raises:
        BvtamError: mixup or CutMix on batches of one clip.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        processes: Processes,
        steps: int,
        class_weight: Tensor | None = None,
    ) -> None:
        run, device = recipe.run, processes.device
        self.model, self.recipe, self.processes, self.device = model, recipe, processes, device
        self.class_weight = None if class_weight is None else class_weight.to(device)
        self.optimizer = build_optimizer(model, recipe)
        self.schedule = build_schedule(self.optimizer, recipe, steps)
        self.wrapped = processes.wrap(torch.compile(model) if run.compile else model)
        self.precision = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(run.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.precision == 'fp16')
        self.ema = self._average(steps)
        self.mix = self._mixer()
        self.count, self.lr = 0, recipe.optimizer.lr

    def __call__(self, parts: list[dict[str, Any]], total: int | None = None) -> Tensor:
        """One step on the parts of this process's share of a batch.

        Args:
            parts: batches as `collate` gives them; `clip` is uint8 (B, C, T, H, W), or floating
                point and normalised, `label` (B,).
            total: samples of the step over all processes; None: each has as many. Where they do not
                divide by the processes, the last sample of some is a padding sample, left out of the
                loss.

        Returns:
            This process's share of the mean loss, times the number of processes; it is on the
            device, and nothing waits for it.
        """
        # Dropout, drop path and mixup draw from here, so a step can be repeated by its number.
        torch.manual_seed(sample_seed(self.recipe.run.seed, self.count, self.processes.rank))
        share = sum(len(part['label']) for part in parts)
        world_size = self.processes.world_size
        total = total or world_size * share
        padding = share - len(range(self.processes.rank, total, world_size))
        loss_of_step = torch.zeros((), device=self.device)
        mixed_by = torch.get_rng_state()  # all parts of a batch are mixed by the same draw
        for i in range(len(parts)):
            last = i == len(parts) - 1
            # Gradients are averaged over the processes once in a step.
            with self.processes.no_sync(self.wrapped, not last):
                losses = self._losses(*self._inputs(parts, i, mixed_by))
                losses = losses[: len(losses) - padding] if last else losses
                loss = losses.sum() * (world_size / total)
                self.scaler.scale(loss).backward()
            loss_of_step = loss_of_step + loss.detach()
        if self.recipe.optimizer.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_grad)
        self.lr = current_lr(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.count += 1
        self.schedule.step_update(self.count)
        if self.ema:
            self.ema.update(self.model, self.count)
        return loss_of_step

    def _losses(self, clip: Tensor, target: Tensor) -> Tensor:
        """(B,)"""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits = self.wrapped(clip)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = self.class_weight
        return F.cross_entropy(
            logits,
            target,
            None if weight is None else weight.to(logits.dtype),
            label_smoothing=self.recipe.regularize.label_smoothing,
            reduction='none',
        )

    def _inputs(
        self, parts: list[dict[str, Any]], index: int, mixed_by: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Clips and targets of one part; mixup and CutMix act on all parts as if they were one."""
        clip, target = (parts[index][key] for key in ('clip', 'label'))
        alike = [i for i, part in enumerate(parts) if part['clip'].shape[1:] == clip.shape[1:]]
        before = parts[alike[alike.index(index) - 1]]  # each clip is mixed with the one before it
        among = self.mix is not None and len(alike) > 1
        if among:
            clip = torch.cat([before['clip'][-1:], clip])
            target = torch.cat([before['label'][-1:], target])
        clip = clip.to(self.device, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        if clip.dtype == torch.uint8:
            clip = normalize(clip, self.model.clip_config)
        if self.mix:
            with torch.random.fork_rng(devices=[], enabled=index > 0):
                torch.set_rng_state(mixed_by)
                clip, target = self.mix(tv_tensors.Video(clip), target)
            clip = clip.as_subclass(Tensor)
        if among:
            clip, target = clip[1:], target[1:]
        if self.model.input_kind == 'image':
            clip = clip.squeeze(2)
        return clip, target

    def _mixer(self) -> nn.Module | None:
        """torchvision's mixup or CutMix: on a video they draw once for all of its frames."""
        augment, world_size = self.recipe.augment, self.processes.world_size
        batch_size, num_classes = self.recipe.run.batch_size, self.model.num_classes
        if (augment.mixup or augment.cutmix) and batch_size // world_size < 2:
            raise BvtamError(
                f'recipe: augment.{"mixup" if augment.mixup else "cutmix"} mixes the clips that a process '
                f'has of a batch: run.batch_size must be at least {2 * world_size}, not {batch_size}'
            )
        if augment.mixup:
            return v2.MixUp(alpha=augment.mixup, num_classes=num_classes)
        return v2.CutMix(alpha=augment.cutmix, num_classes=num_classes) if augment.cutmix else None

    def _average(self, steps: int) -> ModelEmaV3 | None:
        decay, warmup = self.recipe.regularize.ema, self.recipe.regularize.ema_warmup
        if not decay:
            return None
        left = decay ** (steps * self.recipe.schedule.epochs - 1)
        if not warmup and left > 0.1 and self.processes.is_main:
            log.warning(
                'regularize.ema: after all steps of this run %.0f %% of the average is the model of '
                'its first step; make it smaller, or set regularize.ema_warmup=true',
                100 * left,
            )
        return ModelEmaV3(self.model, decay=decay, use_warmup=warmup)

    # ---- in a checkpoint ----

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that a step changes, by the file that holds them."""
        found = {
            'model': self.model.state_dict(),
            'optimizer': checkpoint.optimizer_tensors(self.model, self.optimizer),
        }
        return found | ({'ema': self.ema.module.state_dict()} if self.ema else {})

    def state(self) -> dict[str, Any]:
        """The rest of what a step changes, for JSON."""
        return {
            'step': self.count,
            'lr': self.lr,
            'scaler': self.scaler.state_dict(),
            'groups': checkpoint.group_settings(self.optimizer),
        }

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Inverse of `tensors` and `state`.

        Raises:
            One of `checkpoint.MISFITS`: they are not those of this model and optimizer.
        """
        self.model.load_state_dict(checkpoint.read_tensors(folder, 'model'))
        tensors = checkpoint.read_tensors(folder, 'optimizer')
        checkpoint.load_optimizer(self.model, self.optimizer, tensors, state['groups'])
        if self.ema:
            self.ema.module.load_state_dict(checkpoint.read_tensors(folder, 'ema'))
        self.scaler.load_state_dict(state['scaler'])
        self.count, self.lr = state['step'], state['lr']
        self.schedule.step_update(self.count)
