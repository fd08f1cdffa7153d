"""From a recipe to the model with its first weights, the optimizer and the schedule."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..clip import ClipConfig
from ..deploy.optimize import to_channels_last
from ..errors import BvtamError
from ..factory import create_model, list_models, model_source, names_weights
from ..weights import resolve
from .recipe import Recipe

log = logging.getLogger('bvtam')


# ---- the model ----


def build_model(recipe: Recipe, label_names: list[str] | None, num_classes: int) -> nn.Module:
    """The recipe's model on the CPU, with its first weights, ClipConfig and label names.

    Its `first_flip` is `clip.flip` of the first weights, None where they have none.

    Raises:
        BvtamError: an unknown name or option, first weights that do not fit.
    """
    torch.manual_seed(recipe.run.seed)
    model, first = _with_first_weights(recipe, label_names, num_classes)
    model.first_flip = first.flip if first else None
    if first and recipe.regularize.freeze_bn == 'auto':
        log.warning('regularize.freeze_bn: batch norms stay as in the first weights')
    # An image is a clip of one frame.
    clip = model.clip_config or ClipConfig(num_frames=1, flip=True).with_channels(model.in_chans)
    if first is not None:  # the colours that the weights have seen
        clip = replace(clip, colors=first.colors)
    model.clip_config = replace(clip, **recipe.clip)
    if recipe.run.channels_last:
        to_channels_last(model)
    model.set_grad_checkpointing(recipe.run.checkpointing)
    if recipe.run.cheap_recompute:
        if not hasattr(model, 'set_cheap_recompute'):
            raise BvtamError(
                f'run.cheap_recompute is for bLVNet and bLNet, and {model.model_name} is neither'
            )
        model.set_cheap_recompute()
    if recipe.run.sync_bn:
        model = convert_sync_batchnorm(model)  # torch's own would lose timm's activations
    return model


def _with_first_weights(
    recipe: Recipe, label_names: list[str] | None, num_classes: int
) -> tuple[nn.Module, ClipConfig | None]:
    """The model as `init` asks for, and the ClipConfig of its first weights, None without any."""
    init, options = recipe.init, dict(recipe.model_options)
    if recipe.regularize.drop_path:
        options['drop_path_rate'] = recipe.regularize.drop_path
    arch, _, tag = recipe.model.partition('.')
    pretrained = init in ('pretrained', 'auto')
    if not init and names_weights(recipe.model):
        pretrained = True
        log.warning('init: the weights of %s, which model= names', recipe.model)
    if init == 'auto' and arch in list_models() and not resolve.folders(arch, tag):
        pretrained = False
        log.warning(
            'init: no weights of %s on this machine, so it starts from scratch', recipe.model
        )
    if init == 'imagenet' and not re.match('bvtam_|blresnet', arch):
        options['backbone_pretrained'] = True
    model = create_model(recipe.model, pretrained=pretrained, num_classes=num_classes, **options)
    if model.label_names not in (None, label_names):
        model.reset_classifier(num_classes)
        log.warning('init: the classifier starts anew: its classes have other names')
    model.label_names = label_names
    if init == 'imagenet' and 'backbone_pretrained' not in options:
        initialise(model, _image_weights(arch))
    elif init not in ('', 'auto', 'pretrained', 'imagenet'):
        return model, initialise(model, init)
    return model, model.clip_config if pretrained else None


def _image_weights(arch: str) -> str:
    depth = re.match(r'bvtam_r(\d+)_', arch)
    name = f'blresnet{depth[1]}' if depth else ''
    if name not in list_models():
        raise BvtamError(f'{arch} has no ImageNet weights: name others with init=, or leave it out')
    return resolve.find(name).name


def initialise(model: nn.Module, source: str | os.PathLike[str]) -> ClipConfig | None:
    """Loads the weights of `source` into `model`, strictly, and returns their ClipConfig.

    Three things may differ, and all are reported: a first convolution of other channels is adapted,
    a classifier of other classes starts anew, and temporal operators that the source lacks, as image
    models do, keep their own start ("inflation").

    Args:
        source: a name with a tag, `hf-hub:` or `local-dir:`, a zoo folder, or the folder of a run.

    Raises:
        BvtamError: weights of another model.
        FileNotFoundError: no such folder.
    """
    given = create_model(model_source(source), pretrained=True, in_chans=model.in_chans)
    weights, target = given.state_dict(), model.state_dict()
    head = model.get_classifier(name_only=True)
    # A classifier is taken over where shapes agree, unless its classes are known to be others.
    same = given.label_names is None or model.label_names in (None, given.label_names)
    fresh = [
        name
        for name in target
        if name.startswith(f'{head}.')
        and not (same and name in weights and weights[name].shape == target[name].shape)
    ]
    temporal = [n for n in target if '.temporal.' in f'.{n}' and n not in weights]
    wrong = [n for n in target if n not in {*fresh, *temporal, *weights}]
    wrong += [n for n in weights if n not in target]
    wrong += [n for n in target if n in weights and n not in fresh and weights[n].shape != target[n].shape]  # fmt: skip
    if wrong:
        raise BvtamError(
            f'init: the weights of {source} do not fit {model.model_name}: {len(wrong)} names differ, '
            f'such as {", ".join(wrong[:3])}'
        )
    if fresh:
        log.warning('init: the classifier starts anew (%s has %d classes, the model %d)', source, given.num_classes, model.num_classes)  # fmt: skip
    if temporal:
        log.warning('init: %d temporal weights start anew, since %s has none', len(temporal), source)  # fmt: skip
    kept = {name: target[name] for name in (*fresh, *temporal)}
    model.load_state_dict({**weights, **kept})
    return given.clip_config


def freeze_norms(model: nn.Module, which: str) -> None:
    """Batch norms in eval mode, without gradients: 'all', or 'partial', all but the first (TSN).

    'auto' is 'all' where `build_model` gave the model first weights, else 'none'.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    known = norms if getattr(model, 'first_flip', None) is not None else []
    for norm in {'none': [], 'partial': norms[1:], 'all': norms, 'auto': known}[which]:
        norm.eval()
        norm.requires_grad_(False)


# ---- optimizer and schedule ----


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """By timm's factory; `lr_scale` of a group is its factor of the learning rate."""
    settings = recipe.optimizer
    factors = dict.fromkeys(model.parameters(), 1.0)
    if settings.layer_decay < 1:
        for group in param_groups_layer_decay(model, layer_decay=settings.layer_decay):
            factors |= dict.fromkeys(group['params'], group['lr_scale'])
    for parameter in model.get_classifier().parameters():
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


def warn_all_warmup(recipe: Recipe) -> None:
    """Warns of a run that ends before its learning rate is what the recipe says."""
    schedule = recipe.schedule
    if schedule.warmup_epochs >= schedule.epochs > 0:
        log.warning(
            'schedule.warmup_epochs: the learning rate rises from %g through all %d epochs, so that little '
            'is learned: give more epochs, or warmup_epochs=0',
            schedule.warmup_lr,
            schedule.epochs,
        )


def enough_epochs(recipe: Recipe, num_samples: int) -> Recipe:
    """The recipe with the epochs that `schedule.min_steps` asks for on a training set of that size."""
    steps = -(-num_samples // recipe.run.batch_size)
    epochs = -(-recipe.schedule.min_steps // steps)
    if epochs <= recipe.schedule.epochs:
        return recipe
    log.warning(
        'schedule.min_steps: %d epochs instead of %d, since %d training videos make %d steps an epoch',
        epochs,
        recipe.schedule.epochs,
        num_samples,
        steps,
    )
    return replace(recipe, schedule=replace(recipe.schedule, epochs=epochs))


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
