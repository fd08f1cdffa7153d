"""From a recipe to what a run needs: the net with its first weights, data, optimizer, schedule."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Sampler

from ..clip import ClipConfig
from ..data.sampling import sample_seed
from ..errors import BvtamError
from ..factory import create_model, list_models, model_source, names_weights
from ..weights import store
from .recipe import Recipe

log = logging.getLogger('bvtam')


# ---- the net ----


def build_net(recipe: Recipe, label_names: list[str] | None, num_classes: int) -> nn.Module:
    """The recipe's net on the CPU, with its first weights, ClipConfig and label names.

    Its `first_flip` is `clip.flip` of the first weights, None where they have none.

    Raises:
        BvtamError: an unknown name or option, first weights that do not fit.
    """
    options = dict(recipe.model_options)
    if recipe.regularize.drop_path:
        options['drop_path_rate'] = recipe.regularize.drop_path
    arch, _, tag = recipe.model.partition('.')
    pretrained = recipe.init in ('pretrained', 'auto')
    if not recipe.init and names_weights(recipe.model):
        pretrained = True
        log.warning('init: the weights of %s, which model= names', recipe.model)
    if recipe.init == 'auto' and arch in list_models() and not store.folders(arch, tag):
        pretrained = False
        log.warning(
            'init: no weights of %s on this machine, so it starts from scratch', recipe.model
        )
    if recipe.init == 'imagenet' and not re.match('bvtam_|blresnet', arch):
        options['backbone_pretrained'] = True
    torch.manual_seed(recipe.run.seed)
    net = create_model(
        recipe.model,
        pretrained=pretrained,
        num_classes=num_classes,
        **options,
    )
    if net.label_names not in (None, label_names):
        net.reset_classifier(num_classes)
        log.warning('init: the classifier starts anew: its classes have other names')
    net.label_names = label_names
    first = net.clip_config if pretrained else None
    if recipe.init == 'imagenet' and 'backbone_pretrained' not in options:
        initialise(net, _image_weights(arch))
    elif recipe.init not in ('', 'auto', 'pretrained', 'imagenet'):
        first = initialise(net, recipe.init)
    net.first_flip = first.flip if first else None
    # An image is a clip of one frame.
    clip = net.clip_config or ClipConfig(num_frames=1, flip=True).with_channels(net.in_chans)
    if first is not None:  # the colours that the weights have seen
        clip = replace(clip, colors=first.colors)
    net.clip_config = replace(clip, **recipe.clip)
    if recipe.run.channels_last:
        net.to(memory_format=torch.channels_last)
    net.set_grad_checkpointing(recipe.run.checkpointing)
    if recipe.run.cheap_recompute:
        if not hasattr(net, 'set_cheap_recompute'):
            raise BvtamError(f'run.cheap_recompute is for bLVNet and bLNet, and {arch} is neither')
        net.set_cheap_recompute()
    if recipe.run.sync_bn:
        net = convert_sync_batchnorm(net)  # torch's own would lose timm's activations
    return net


def _image_weights(arch: str) -> str:
    depth = re.match(r'bvtam_r(\d+)_', arch)
    name = f'blresnet{depth[1]}' if depth else ''
    if name not in list_models():
        raise BvtamError(f'{arch} has no ImageNet weights: name others with init=, or leave it out')
    return store.find(name).name


def initialise(net: nn.Module, source: str | os.PathLike[str]) -> ClipConfig | None:
    """Loads the weights of `source` into `net`, strictly, and returns their ClipConfig.

    Three things may differ, and all are reported: a first convolution of other channels is adapted,
    a classifier of other classes starts anew, and temporal operators that the source lacks, as image
    nets do, keep their own start ("inflation").

    Args:
        source: a name with a tag, `hf-hub:` or `local-dir:`, a zoo folder, or the folder of a run.

    Raises:
        BvtamError: weights of another network.
        FileNotFoundError: no such folder.
    """
    given = create_model(model_source(source), pretrained=True, in_chans=net.in_chans)
    weights, target = given.state_dict(), net.state_dict()
    head = net.get_classifier(name_only=True)
    fresh = [
        name
        for name in target
        if name.startswith(f'{head}.')
        and not _same_head(given, net, weights.get(name), target[name])
    ]
    temporal = [n for n in target if '.temporal.' in f'.{n}' and n not in weights]
    wrong = [n for n in target if n not in {*fresh, *temporal, *weights}]
    wrong += [n for n in weights if n not in target]
    wrong += [n for n in target if n in weights and n not in fresh and weights[n].shape != target[n].shape]  # fmt: skip
    if wrong:
        raise BvtamError(
            f'init: the weights of {source} do not fit {net.model_name}: {len(wrong)} names differ, '
            f'such as {", ".join(wrong[:3])}'
        )
    if fresh:
        log.warning('init: the classifier starts anew (%s has %d classes, the net %d)', source, given.num_classes, net.num_classes)  # fmt: skip
    if temporal:
        log.warning('init: %d temporal weights start anew, since %s has none', len(temporal), source)  # fmt: skip
    kept = {name: target[name] for name in (*fresh, *temporal)}
    net.load_state_dict({**weights, **kept})
    return given.clip_config


def _same_head(given: nn.Module, net: nn.Module, ours, target) -> bool:
    """A classifier is taken over where shapes agree, unless its classes are known to be others."""
    if ours is None or ours.shape != target.shape:
        return False
    return given.label_names is None or net.label_names in (None, given.label_names)


def freeze_norms(net: nn.Module, which: str) -> None:
    """Batch norms in eval mode, without gradients: 'all', or 'partial', all but the first (TSN)."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    for norm in {'none': [], 'partial': norms[1:], 'all': norms}[which]:
        norm.eval()
        norm.requires_grad_(False)


# ---- optimizer and schedule ----


def build_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """By timm's factory; `lr_scale` of a group is its factor of the learning rate."""
    settings = recipe.optimizer
    factors = dict.fromkeys(net.parameters(), 1.0)
    if settings.layer_decay < 1:
        for group in param_groups_layer_decay(net, layer_decay=settings.layer_decay):
            factors |= dict.fromkeys(group['params'], group['lr_scale'])
    for parameter in net.get_classifier().parameters():
        factors[parameter] *= settings.head_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, factor in factors.items():
        if parameter.requires_grad:
            decayed = settings.decay_all or parameter.ndim > 1
            key = factor, settings.weight_decay if decayed else 0.0
            groups.setdefault(key, []).append(parameter)
    momentum = {'momentum': settings.momentum} if settings.name in ('sgd', 'momentum') else {}
    try:
        optimizer = create_optimizer_v2(
            [
                {'params': parameters, 'lr_scale': factor, 'weight_decay': decay}
                for (factor, decay), parameters in groups.items()
            ],
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            **momentum,
        )
    except (ValueError, ImportError, AssertionError, RuntimeError) as error:
        raise BvtamError(f'recipe: optimizer.name: {error}') from None
    if getattr(optimizer, 'is_second_order', False):
        raise BvtamError(f'recipe: optimizer.name: {settings.name} needs second derivatives')
    return optimizer


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    """By timm's factory, on steps; `steps` are those of one epoch."""
    settings = recipe.schedule
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=settings.name,
        num_epochs=settings.epochs,
        decay_epochs=settings.decay_epochs,
        decay_rate=settings.decay_rate,
        min_lr=settings.min_lr,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=settings.warmup_lr,
        cooldown_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule


def current_lr(optimizer: torch.optim.Optimizer) -> float:
    """Of a group whose factor is 1, or as if there were one."""
    group = min(optimizer.param_groups, key=lambda group: abs(group['lr_scale'] - 1))
    return group['lr'] / group['lr_scale'] if group['lr_scale'] else 0.0


# ---- data ----


class Draw(int):
    """Index of a sample that was drawn `times` times before in the epoch, which gives it other views."""

    times: int

    def __new__(cls, index: int, times: int) -> Draw:
        self = super().__new__(cls, index)
        self.times = times
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Draw, (int(self), self.times)


class Part(list[int]):
    """Indices of the samples of one part of a step; `first` is the first of the whole step."""

    def __init__(self, indices: Iterable[int], first: int) -> None:
        super().__init__(indices)
        self.first = first

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, ([*self], self.first)


class Batches(Sampler[list[int]]):
    """The indices of each part of each step of an epoch, for one process.

    A step takes `batch_size` samples of a permutation that (seed, epoch) gives; every process takes
    its share of them, in `accumulate` parts. So one process and several see the same batches. The
    last step of an epoch is smaller; where its samples do not divide by the number of processes, some
    processes end theirs with a stand-in, another sample of the step (see `Trainer.train_step`).

    Args:
        weights: (num_samples,), for draws with replacement in proportion to them; None: each sample
            once.

    Raises:
        BvtamError: a batch that cannot be shared out evenly.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        if batch_size % (world * accumulate):
            raise BvtamError(
                f'recipe: run.batch_size {batch_size} cannot be shared by {world} processes with '
                f'run.accumulate {accumulate}: make it a multiple of {world * accumulate}'
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world, self.weights = rank, world, weights
        self.part = batch_size // (world * accumulate)
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.num_samples // self.batch_size)

    def samples(self, step: int) -> int:
        """Samples of one step, over all processes."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def parts(self, step: int) -> int:
        """Parts in which this process computes its share of one step."""
        return -(-self.samples(step) // (self.world * self.part))

    def __len__(self) -> int:
        return sum(self.parts(step) for step in range(self.start, self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        if self.weights is None:
            order = torch.randperm(self.num_samples, generator=generator)
            draws = range(self.num_samples)
        else:
            order = torch.multinomial(self.weights, self.num_samples, True, generator=generator)
            seen = Counter()
            draws = []
            for index in order.tolist():
                draws.append(Draw(index, seen[index]))
                seen[index] += 1
            order = torch.arange(self.num_samples)
        for step in range(self.start, self.steps):
            first = step * self.batch_size
            batch = order[first : first + self.samples(step)]
            share = -(-len(batch) // self.world)
            mine = batch[(self.rank + torch.arange(share) * self.world) % len(batch)]
            for part in mine.split(self.part):
                yield Part([draws[i] for i in part.tolist()], draws[int(batch[0])])
