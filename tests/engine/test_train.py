"""The trainer against plain loops and formulas, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
import pickle
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.runs import Clips, make, recipe, rows
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bvtam
from bvtam.data.datasets import collate
from bvtam.data.records import Record
from bvtam.data.sampling import sample_seed
from bvtam.data.transforms import normalize
from bvtam.engine.balance import sample_weights
from bvtam.engine.data import Batches
from bvtam.engine.recipe import Recipe
from bvtam.engine.setup import build_model, build_optimizer, build_schedule, freeze_norms
from bvtam.engine.train import Trainer
from bvtam.errors import BvtamError

CURVE = golden.FOLDER / 'train_curve.json'
FROZEN = 'freeze_bn=all'


def batch(indices=range(4), data=None):
    data = data or Clips()
    return collate([data[i] for i in indices])


def plain_inputs(model, part):
    return normalize(part['clip'], model.clip_config), part['label']


def close(a, b, rel=1e-5):
    assert a == pytest.approx(b, rel=rel, abs=1e-12)


# ---- one step ----


def test_recorded_training_is_repeated():
    from bvtam.models.bl_resnet import checkpoint_filter_fn

    case = golden.load('train_blvnet_tam_r50_8x2')
    model = bvtam.create_model('bvtam_r50_8x2', num_classes=174, drop_rate=0.0).double()
    model.load_state_dict(checkpoint_filter_fn(golden.state_dict(case)))
    settings = case['optimizer']
    pairs = [f'{key}={settings[key]}' for key in ('lr', 'momentum', 'weight_decay')]
    assert settings['nesterov'] and settings['name'] == 'SGD'
    pairs += ['optimizer.name=sgd', 'schedule.name=constant', 'batch_size=4']
    chosen = Recipe.load('', pairs)
    trainer = Trainer(model, chosen, Clips())
    norms = []

    def note(*_):
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())

    trainer.train_step.optimizer.register_step_pre_hook(note)
    model.train()
    part = {'clip': golden.clip(case).double(), 'label': torch.tensor(case['targets'])}
    losses = [trainer.train_step([part]).item() for _ in case['loss_before_step']]
    close(losses, case['loss_before_step'], rel=1e-8)
    close(norms, case['grad_norm'], rel=1e-8)


def losses_of(*settings, steps=4, **options):
    """Losses of some steps on random batches of 8, in as many parts as the recipe says."""
    trainer = make('batch_size=8', 'lr=0.01', 'clip_grad=0.5', *settings, **options)
    trainer.train_step.wrapped.train()
    trainer.batches.epoch = 0
    freeze_norms(trainer.model, trainer.recipe.regularize.freeze_bn)
    size = 8 // trainer.recipe.run.accumulate
    found = []
    for step in range(steps):
        indices = [(3 * step + i) % 10 for i in range(8)]
        parts = [batch(indices[i : i + size]) for i in range(0, 8, size)]
        found.append(trainer.train_step(parts).item())
    return found, trainer


@pytest.mark.parametrize('kind', ['', 'mixup=0.8', 'cutmix=0.8'])
def test_a_batch_is_taken_and_mixed_as_a_whole_in_any_number_of_parts(kind):
    settings = [FROZEN, *kind.split()]
    whole, a = losses_of(*settings)
    assert len({round(loss, 4) for loss in whole}) == 4
    if kind:
        plain, _ = losses_of(FROZEN)
        assert all(abs(x - y) > 1e-4 for x, y in zip(plain, whole, strict=True))
    for count in (2, 8):
        parts, b = losses_of(*settings, f'accumulate={count}')
        close(parts, whole)
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_parts_of_another_length_are_mixed_with_their_like():
    trainer = make(FROZEN, 'mixup=1', 'batch_size=8', 'accumulate=4')
    long, short = Clips(), Clips(frames=2)
    parts = [batch([2 * i, 2 * i + 1], data) for i, data in enumerate([long, short] * 2)]
    assert trainer.train_step(parts).isfinite()


def test_a_batch_of_one_clip_cannot_be_mixed():
    with pytest.raises(
        BvtamError, match='augment.mixup mixes .* run.batch_size must be at least 2'
    ):
        make('batch_size=1', 'mixup=0.2')


def test_recomputing_stages_gives_the_same_losses():
    close(losses_of('checkpointing=true')[0], losses_of()[0])


def test_half_precision_is_near(monkeypatch):
    told = []
    monkeypatch.setattr('bvtam.engine.train.warn_slow_bf16', told.append)
    found, trainer = losses_of('precision=bf16')
    close(found, losses_of()[0], rel=0.05)
    assert told == [trainer.processes.device]
    assert next(trainer.model.parameters()).dtype == torch.float32
    assert 'forward' not in vars(trainer.model)


@pytest.mark.slow
def test_compiled_is_near():
    close(losses_of('compile=true', FROZEN)[0], losses_of(FROZEN)[0], rel=1e-3)


def plain_mixup(clips, target, alpha):
    share = torch.distributions.Beta(alpha, alpha).sample(()).item()
    rolled = [x.roll(1, 0) for x in (clips, target)]
    return [share * x + (1 - share) * y for x, y in zip((clips, target), rolled, strict=True)]


def plain_cutmix(clips, target, alpha):
    share = torch.distributions.Beta(alpha, alpha).sample(()).item()
    height, width = clips.shape[-2:]
    x, y = torch.randint(width, (1,)).item(), torch.randint(height, (1,)).item()
    half = [int(0.5 * math.sqrt(1 - share) * n) for n in (width, height)]
    left, right = max(x - half[0], 0), min(x + half[0], width)
    top, bottom = max(y - half[1], 0), min(y + half[1], height)
    clips = clips.clone()
    before = clips.roll(1, 0)
    clips[..., top:bottom, left:right] = before[..., top:bottom, left:right]
    share = 1 - (right - left) * (bottom - top) / (width * height)
    return clips, share * target + (1 - share) * target.roll(1, 0)


def plain_loss(model, part, step=0, mix=None, alpha=1, smoothing=0, weights=(1, 1, 1)):
    """The mean cross-entropy of one step from its formula."""
    clips, target = plain_inputs(model, part)
    target = F.one_hot(target, 3).float()
    torch.manual_seed(sample_seed(0, step, 0))
    if mix:
        clips, target = mix(clips, target, alpha)
    target = (1 - smoothing) * target + smoothing / 3
    return -(torch.tensor(weights) * target * model(clips).log_softmax(1)).sum(1).mean().item()


@pytest.mark.parametrize(
    'settings, mix, smoothing',
    [
        (('label_smoothing=0.2',), None, 0.2),
        (('augment.mixup=0.7',), plain_mixup, 0),
        (('augment.cutmix=1', 'label_smoothing=0.1'), plain_cutmix, 0.1),
    ],
)
def test_targets_are_mixed_and_smoothed(settings, mix, smoothing):
    trainer = make(*settings)
    model = copy.deepcopy(trainer.model).train()
    trainer.train_step.wrapped.train()
    for step in range(4):  # draws differ from step to step
        part = batch()
        model.load_state_dict(trainer.model.state_dict())
        want = plain_loss(model, part, step, mix, 1 if smoothing else 0.7, smoothing)
        close(trainer.train_step([part]).item(), want)


@pytest.mark.parametrize('settings', [(), ('label_smoothing=0.1', 'mixup=0.5')])
def test_classes_are_weighted_as_torch_does(settings):
    data = Clips()
    data.records = [Record(f'{i}.mp4', label) for i, label in enumerate([0] * 6 + [1, 1, 2, 2])]
    for setting, weights in (
        ('class_weight=balanced', [10 / 18, 10 / 6, 10 / 6]),
        ('class_weight=[1, 2, 0.5]', [1, 2, 0.5]),
        ('class_weight={b: 3}', [1, 3, 1]),
    ):
        trainer = make(setting, *settings, data=data)
        torch.testing.assert_close(trainer.train_step.class_weight, torch.tensor(weights).float())
        model, part = copy.deepcopy(trainer.model).train(), batch()
        mixed = {'mix': plain_mixup, 'alpha': 0.5, 'smoothing': 0.1} if settings else {}
        want = plain_loss(model, part, weights=weights, **mixed)
        trainer.train_step.wrapped.train()
        close(trainer.train_step([part]).item(), want)
    with pytest.raises(BvtamError, match='balanced by the records of a data set'):
        make('class_weight=balanced')


def test_a_balanced_epoch_has_all_classes_alike_and_each_view_once():
    records = [Record('a.mp4', 0)] * 95 + [Record('b.mp4', 1)] * 5
    weights = sample_weights(SimpleNamespace(records=records), 3)
    batches = Batches(100, 10, weights=weights)
    drawn = [i for part in batches for i in part]
    assert 35 < sum(i >= 95 for i in drawn) < 65 and len(drawn) == len(batches) * 10 == 100
    views = [(int(i), i.times) for i in drawn]
    assert len({*views}) == 100
    again = [i for part in pickle.loads(pickle.dumps(list(batches))) for i in part]
    assert [(int(i), i.times) for i in again] == views
    shares = [list(Batches(100, 10, 1, 0, rank, 2, weights)) for rank in (0, 1)]
    assert sorted(chain(*shares[0], *shares[1])) == sorted(drawn)
    batches.epoch, batches.start = 1, 3
    assert [i for part in batches for i in part] != drawn[30:]


def test_a_short_average_is_told(caplog):
    make('regularize.ema=0.999')
    assert 'regularize.ema: after all steps of this run 100 % of the average' in caplog.text
    caplog.clear()
    make('regularize.ema=0.999', 'ema_warmup=true')
    make('regularize.ema=0.5', 'epochs=5')
    make()
    assert not caplog.records


@pytest.mark.parametrize('warmup', [False, True])
def test_moving_average_of_weights(warmup):
    trainer = make('regularize.ema=0.8', f'ema_warmup={warmup}')
    trainer.train_step.wrapped.train()
    average = None
    for step in range(4):
        trainer.train_step([batch([step, step + 1, 5])])
        now = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        average = average or now
        decay = 1 - (1 + step) ** (-2 / 3) if warmup else 0.8
        for name, value in now.items():
            exact = value.is_floating_point()
            average[name] = decay * average[name] + (1 - decay) * value if exact else value
    for name, value in trainer.train_step.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name])
    assert trainer._evaluated() is trainer.train_step.ema.module


def test_a_step_waits_for_nothing():
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            aten = torch.ops.aten
            if function in (aten._local_scalar_dense.default, aten.nonzero.default):
                waits.append(function)
            return function(*args, **(kwargs or {}))

    trainer = make('clip_grad=1', 'regularize.ema=0.9', 'label_smoothing=0.1', 'accumulate=2')
    trainer.train_step.wrapped.train()
    parts = [batch([0, 1]), batch([2, 3])]
    trainer.train_step(parts)
    with Watch():
        loss = trainer.train_step(parts)
        assert not waits
        loss.item()
    assert len(waits) == 1


def test_batch_norms_that_are_frozen_stay_to_the_bit():
    for which, trained in (('all', 0), ('partial', 1)):
        trainer = make(f'freeze_bn={which}', 'epochs=1', val=Clips(4))
        norms = [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [copy.deepcopy(norm.state_dict()) for norm in norms]
        weight = trainer.model.fc.weight.clone()
        trainer.fit()
        same = [
            all(torch.equal(value, was[name]) for name, value in norm.state_dict().items())
            for norm, was in zip(norms, before, strict=True)
        ]
        assert same == [False] * trained + [True] * (len(norms) - trained)
        assert not torch.equal(weight, trainer.model.fc.weight)


@pytest.mark.parametrize('first_flip, trained', [(None, True), (False, False), (True, False)])
def test_batch_norms_are_frozen_by_themselves_where_there_are_first_weights(first_flip, trained):
    model = build_model(recipe(), list('abc'), 3)
    model.first_flip = first_flip  # as build_model leaves it
    freeze_norms(model.train(), 'auto')
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {norm.training for norm in norms} == {trained}
    assert {p.requires_grad for norm in norms for p in norm.parameters()} == {trained}


# ---- optimizer and schedule ----


def cosine(t, epoch, s):
    return s['min'] + (s['lr'] - s['min']) * (1 + math.cos(math.pi * t / (s['epochs'] * epoch))) / 2


def drops(t, epoch, s):
    return s['lr'] * 0.1 ** math.floor(t / (1.5 * epoch))


def constant(t, epoch, s):
    return s['lr']


@pytest.mark.parametrize('formula', [cosine, drops, constant])
@pytest.mark.parametrize('warmup', [0, 0.5, 2])
def test_schedules(formula, warmup):
    name = {cosine: 'cosine', drops: 'step', constant: 'constant'}[formula]
    s = {'lr': 0.3, 'min': 0.01 if formula is cosine else 0, 'epochs': 4}
    chosen = recipe(
        f'schedule.name={name}',
        'lr=0.3',
        f'min_lr={s["min"]}',
        'epochs=4',
        'decay_epochs=1.5',
        f'warmup_epochs={warmup}',
        'warmup_lr=1e-3',
        'layer_decay=0.5',
        'head_lr=4',
    )
    model = build_model(chosen, None, 3)
    optimizer = build_optimizer(model, chosen)
    schedule, steps = build_schedule(optimizer, chosen, 6), 6
    for t in range(4 * steps):
        want = formula(t, steps, s)
        if t < warmup * steps:
            want = 1e-3 + (0.3 - 1e-3) * t / (warmup * steps)
        for group in optimizer.param_groups:
            close(group['lr'], want * group['lr_scale'], rel=1e-9)
        schedule.step_update(t + 1)


def test_the_rate_in_the_log_is_that_of_the_step(tmp_path):
    trainer = make('log_every=1', 'epochs=2', 'lr=0.5', 'layer_decay=0.5', out=tmp_path / 'run')
    used = []
    trainer.train_step.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append({g['lr_scale']: g['lr'] for g in optimizer.param_groups})
    )
    trainer.fit()
    want = [0.25 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]
    close([row['lr'] for row in rows(tmp_path / 'run')], want)
    close([groups[1.0] for groups in used], want)
    close([groups[0.5] for groups in used], [0.5 * lr for lr in want])


def test_every_layer_has_its_rate_and_decay():
    chosen = recipe('layer_decay=0.5', 'head_lr=3', 'weight_decay=0.1', 'decay_all=false', 'lr=1')
    model = build_model(chosen, None, 3)
    factors, decays = {}, {}
    names = {p: name for name, p in model.named_parameters()}
    for group in build_optimizer(model, chosen).param_groups:
        for p in group['params']:
            factors[names[p]], decays[names[p]] = group['lr_scale'], group['weight_decay']
    assert set(factors) == set(names.values())
    assert factors['fc.weight'] == factors['fc.bias'] == 3
    order = ['stem.', 'layer1.', 'layer2.', 'layer3.', 'layer4.']
    levels = [{f for name, f in factors.items() if name.startswith(layer)} for layer in order]
    assert all(max(a) < min(b) for a, b in pairwise(levels))
    assert max(levels[-1]) == 0.5 and all(math.log2(f).is_integer() for s in levels for f in s)
    for p, name in names.items():
        assert decays[name] == (0.1 if p.ndim > 1 else 0)
    plain = build_optimizer(model, recipe('weight_decay=0.1')).param_groups
    assert [(g['lr_scale'], g['weight_decay']) for g in plain] == [(1, 0.1)]


# ---- every sample once ----


def test_every_sample_once_an_epoch_for_any_number_of_processes():
    for count in (1, 2, 5, 8, 13, 24):
        for world, size, accumulate in ((1, 4, 1), (1, 4, 2), (2, 4, 2), (3, 6, 1), (4, 16, 2)):
            one, orders = Batches(count, size), []
            ranks = [Batches(count, size, accumulate, 0, rank, world) for rank in range(world)]
            for epoch in (0, 1):
                one.epoch = epoch
                assert sum(map(one.samples, range(one.steps))) == count
                orders.append([i for part in one for i in part])
                steps, loaders = list(one), []
                for r in ranks:
                    r.epoch = epoch
                    assert r.steps == one.steps == len(steps)
                    assert len(list(r)) == len(r) == sum(map(r.parts, range(r.steps)))
                    loaders.append(iter(r))
                for step, samples in enumerate(steps):
                    shares, real = [], []
                    for rank, (r, loader) in enumerate(zip(ranks, loaders, strict=True)):
                        shares.append([i for _ in range(r.parts(step)) for i in next(loader)])
                        real.append(shares[-1][: len(range(rank, len(samples), world))])
                        assert len(shares[-1]) - len(real[-1]) < 2
                    assert len({len(share) for share in shares}) == 1  # none waits for another
                    assert sorted(chain(*real)) == sorted(samples)
            assert sorted(orders[0]) == sorted(orders[1]) == list(range(count))
            assert count < 8 or orders[0] != orders[1]


def test_an_epoch_takes_all_samples_into_account(tmp_path):
    data = Clips(7)
    trainer = make('batch_size=4', 'epochs=1', 'lr=0', FROZEN, data=data, out=tmp_path / 'run')
    trainer.fit()
    assert sorted(data.seen) == list(range(7))
    trainer.model.eval()
    with torch.no_grad():
        clips, labels = plain_inputs(trainer.model, batch(range(7)))
        losses = F.cross_entropy(trainer.model(clips), labels, reduction='none')
    order = data.seen[:7]
    steps = [losses[order[:4]].mean().item(), losses[order[4:]].mean().item()]
    (row,) = rows(tmp_path / 'run')
    close(row['loss'], sum(steps) / 2)


# ---- a whole run ----


def curve():
    found = []
    options = ('regularize.ema=0.9', 'augment.mixup=0.2', 'model_options.drop_rate=0.2')
    options += (FROZEN, 'lr=0.01', 'clip_grad=0.5')  # where rounding does not grow
    trainer = make(*options, 'epochs=3', 'log_every=1', val=Clips(6), on_log=found.append)
    trainer.fit()
    return [row.get('loss', row.get('val_loss')) for row in found]


def test_the_recorded_curve_is_repeated():
    """A change that should not move numbers must not: `python tests/test_train.py` records anew."""
    close(curve(), json.loads(CURVE.read_text()))


if __name__ == '__main__':
    torch.set_num_threads(1)
    CURVE.write_text(json.dumps(curve(), indent=1) + '\n')
