"""Whole runs: what they leave, what stops them, what they start from, what they refuse."""

from __future__ import annotations

import errno
import json
import math

import pytest
import safetensors.torch
import torch
from support.runs import Clips, Faulty, lively, make, product, recipe, rows

import bvtam
from bvtam.engine import checkpoint, run_folder
from bvtam.engine.evaluate import evaluate
from bvtam.engine.recipe import Recipe
from bvtam.engine.run_folder import locked
from bvtam.engine.setup import build_model
from bvtam.engine.train import Trainer
from bvtam.errors import BvtamError


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run that has come to its end, and what `fit` said."""
    out, told = tmp_path_factory.mktemp('run') / 'out', []
    trainer = make(out=out, val=Clips(6), progress=lambda *done: told.append(done))
    return trainer, out, trainer.fit(), told


def test_what_a_run_leaves(finished):
    trainer, out, results, told = finished
    names = {'recipe.yaml', 'metrics.jsonl', 'checkpoints', 'best', 'last', 'curves.png'}
    names |= {'results.json', 'tensorboard'}
    assert {path.name for path in out.iterdir() if path.name[0] != '.'} == names
    assert Recipe.load(out / 'recipe.yaml') == trainer.recipe
    assert told == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]
    lines = rows(out)
    assert [line['step'] for line in lines] == [2, 3, 3, 4, 6, 6]
    vals = [line for line in lines if 'val_loss' in line]
    assert json.loads((out / 'results.json').read_text()) == results
    best = max(vals, key=lambda line: (line['val_top1'], -line['val_loss']))
    assert results['last'] == vals[1] and results['best'] == best
    assert (results['epochs'], results['steps'], results['failed']) == (2, 6, 0)
    assert len(checkpoint.all_checkpoints(out / 'checkpoints')) == 2
    assert (out / 'curves.png').read_bytes()[:4] == b'\x89PNG'
    last = bvtam.create_model(f'local-dir:{out / "last"}', pretrained=True)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, last.state_dict()[name])
    assert last.label_names == list('abc') and last.clip_config == trainer.model.clip_config
    again = evaluate(last, Clips(6), workers=0)
    assert again['loss'] == pytest.approx(vals[1]['val_loss'], rel=1e-6)
    assert again['top1'] == vals[1]['val_top1']


def test_tensorboard(finished):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, out, _, _ = finished
    events = EventAccumulator(str(out / 'tensorboard')).Reload()
    want = {line['step']: line['loss'] for line in rows(out) if 'loss' in line}
    found = {e.step: e.value for e in events.Scalars('loss')}
    assert found == pytest.approx(want) and events.Scalars('clips_per_second')[0].value > 0


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def test_a_finished_run_does_nothing_and_says_so(finished, caplog):
    _, out, results, _ = finished
    before = times(out)
    data = Clips()
    assert make(out=out, data=data, val=Clips(6)).fit() == results
    assert f'{out} is finished: nothing is left to do' in caplog.text
    assert not data.seen
    assert times(out) == before


def refused(message, action, kind=BvtamError):
    with pytest.raises(kind) as caught:
        action()
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_run_is_not_overwritten(finished, tmp_path):
    _, out, _, _ = finished
    before = times(out)
    refused('lr was 0.02 and is 0.03', lambda: make('lr=0.03', out=out).fit())
    refused('holds a run: name another folder', lambda: make(out=out).fit('never'))
    refused('resume must be auto or never', lambda: make(out=out).fit('maybe'))
    other = tmp_path / 'mine'
    other.mkdir()
    (other / 'thesis.txt').write_text('mine')
    refused('holds thesis.txt and no run', lambda: make(out=other).fit())
    assert {p.name for p in other.iterdir()} <= {'thesis.txt', '.lock'}
    refused('thesis.txt cannot be written: File exists', make(out=other / 'thesis.txt').fit)
    refused('cannot be written: Not a directory', make(out=other / 'thesis.txt' / 'x').fit)
    assert (other / 'thesis.txt').read_text() == 'mine'
    assert times(out) == before
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'recipe.yaml').write_text('a: [')
    refused('recipe.yaml cannot be read', make(out=tmp_path / 'broken').fit)


def test_of_equal_accuracies_the_smaller_loss_is_the_best(monkeypatch):
    lines = iter([(50, 2.0), (75, 1.5), (75, 1.0), (75, 1.2), (60, 0.5)])
    keys = ('val_top5', 'val_mean_class_accuracy', 'val_num_videos')

    def evaluated(*args, **options):
        top1, loss = next(lines)
        return {'top1': top1, 'loss': loss} | {key.removeprefix('val_'): 4 for key in keys}

    monkeypatch.setattr('bvtam.engine.train.evaluate', evaluated)
    results = make('epochs=5', data=Clips(4), val=Clips(4)).fit()
    assert (results['best']['epoch'], results['best']['val_loss']) == (3, 1.0)
    assert results['last']['val_top1'] == 60


def test_two_processes_on_one_folder(finished):
    _, out, _, _ = finished
    with locked(out):
        refused('is being written by another process', make(out=out, val=Clips(6)).fit)
    make(out=out, val=Clips(6)).fit()


@pytest.mark.parametrize('at', ['checkpoint', 'best', 'metrics'])
def test_no_space_left(tmp_path, monkeypatch, at):
    """The run stops with one line; what was written is whole, and the next one goes on from it."""
    out = tmp_path / 'out'
    calls = []

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    def later(original, count):
        def function(*args, **kwargs):
            calls.append(1)
            return (full if len(calls) > count else original)(*args, **kwargs)

        return function

    with monkeypatch.context() as patch:
        if at == 'checkpoint':
            patch.setattr(checkpoint, 'atomic_folder', later(checkpoint.atomic_folder, 1))
        elif at == 'best':
            function = safetensors.torch.save_file
            patch.setattr(safetensors.torch, 'save_file', later(function, 6))
        else:
            patch.setattr(run_folder, 'append_own', later(run_folder.append_own, 5))
        with pytest.raises(BvtamError, match='cannot be written: No space left on device'):
            make(out=out, val=Clips(6)).fit()
    kept = checkpoint.newest(out / 'checkpoints')
    assert kept is not None and checkpoint.read_state(kept)['epoch'] == 1
    assert not (out / 'results.json').exists()
    make(out=out, val=Clips(6)).fit()
    make(out=tmp_path / 'whole', val=Clips(6)).fit()
    assert product(out) == product(tmp_path / 'whole')


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    out = tmp_path / 'out'
    make(out=out, val=Clips(6)).fit()
    with (out / 'metrics.jsonl').open('a') as file:  # as a run that was killed leaves it
        file.write('{"step": 7}\n')
    before = times(out), rows(out)
    refused('other data (training videos differ)', make(out=out, data=Clips(6), val=Clips(6)).fit)
    refused('other data (validation videos differ)', make(out=out, val=Clips(8)).fit)
    for names, what in (('abx', 'label names'), ('abcd', 'label names, number of classes')):
        model = build_model(recipe(), list(names), len(names))
        trainer = Trainer(model, recipe(), Clips(), Clips(6), out)
        refused(f'other data ({what} differ): name another folder', trainer.fit)
    assert (times(out), rows(out)) == before


def test_other_files_beside_the_nets_stay(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    trainer = make(out=out, val=Clips(4))
    monkeypatch.setattr(trainer, '_evaluate', interrupt(trainer, trainer._evaluate, epoch=2))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    (out / 'last' / 'notes.txt').write_text('mine')
    (out / 'last' / 'more').mkdir()
    (out / 'last' / 'more' / 'model.onnx').write_text('mine too')
    make(out=out, val=Clips(4)).fit()
    assert (out / 'last' / 'notes.txt').read_text() == 'mine'
    assert (out / 'last' / 'more' / 'model.onnx').read_text() == 'mine too'


def test_what_cannot_be_used():
    refused('run.batch_size 4 cannot be shared by 1 processes', lambda: make('accumulate=3'))
    refused('optimizer.name', lambda: make('optimizer.name=sgdd'))
    refused('optimizer.name: adahessian needs second', lambda: make('optimizer.name=adahessian'))
    refused('recipe: optimizer.name: ', lambda: make('optimizer.name=fusedadam'))


def test_synchronised_norms_keep_what_follows_them():
    settings = ('model=tsm_resnet50_f8', 'model_options={backbone: regnety_002}')
    plain = build_model(recipe(*settings), list('abc'), 3).eval()
    model = build_model(recipe(*settings, 'sync_bn=true'), list('abc'), 3).eval()
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    x = torch.randn(1, 3, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize('name', ['lamb', 'adafactorbv'])
def test_other_optimizers_go_on_too(tmp_path, monkeypatch, name):
    """Some keep counts beside their tensors, or types."""
    settings = (f'optimizer.name={name}', 'epochs=3')
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    make(*settings, out=whole, val=Clips(4)).fit()
    trainer = make(*settings, out=out, val=Clips(4))
    monkeypatch.setattr(trainer, '_evaluate', interrupt(trainer, trainer._evaluate, epoch=3))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    make(*settings, out=out, val=Clips(4)).fit()
    assert product(out) == product(whole)


def interrupt(trainer, action, epoch):
    def function():
        if trainer.epoch == epoch:
            raise KeyboardInterrupt
        action()

    return function


# ---- what goes wrong ----


def finite(out):
    """Whether all that a run has saved is; the number of files."""
    files = list(out.rglob('*.safetensors'))
    assert all(
        t.isfinite().all() for path in files for t in safetensors.torch.load_file(path).values()
    )
    return len(files)


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    out, data = tmp_path / 'out', Faulty(6, count=30)
    trainer = make('log_every=5', 'save_minutes=0', data=data, out=out)
    trainer.batches.epoch = 0
    batches = list(trainer.batches)
    step = next(i for i, part in enumerate(batches) if 6 in part)
    names = ', '.join(f'v{i}.mp4' for i in batches[step])
    refused(
        f'the loss nan is not finite at step {step + 1} (epoch 1): lower optimizer.lr or set '
        f'optimizer.clip_grad; the videos of that step: {names}',
        trainer.fit,
    )
    assert finite(out) == 2 * min(2, step)
    assert not (out / 'last').exists() and not (out / 'results.json').exists()


@pytest.mark.parametrize('often', [0, 1000])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, often):
    out = tmp_path / 'out'
    data = Clips(4)  # an epoch is one step
    trainer = make(f'save_minutes={often}', data=data, val=Clips(4), out=out)
    trainer.train_step.optimizer.register_step_post_hook(
        lambda *_: trainer.model.fc.bias.data.fill_(math.inf)
    )
    names = ', '.join(f'v{i}.mp4' for part in trainer.batches for i in part)
    refused('a weight is not finite at step 1 (epoch 1): lower optimizer.lr', trainer.fit)
    refused(f'the videos of that step: {names}', trainer._checked_losses)
    assert finite(out) == 0 and not (out / 'best').exists()


class Damaged(Clips):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index < 2:
            sample['failed'] = [(f'bad{index}.mp4', 'noise')]
        return sample


def test_damaged_videos_are_counted_and_listed(tmp_path):
    out = tmp_path / 'out'
    results = make('max_failed=0.2', data=Damaged(), out=out).fit()
    assert results['failed'] == 2
    lines = (out / 'errors.csv').read_text().splitlines()
    assert sorted(lines[1:]) == ['bad0.mp4,noise', 'bad1.mp4,noise']
    assert make('max_failed=0.2', data=Damaged(), out=out).fit() == results
    refused('2 of 10 videos failed', make('max_failed=0.1', data=Damaged()).fit)


# ---- first weights ----

IMAGE = ('model=blresnet50', 'model_options={width: 8, layers: [2, 2, 2, 1], drop_rate: 0}')


def zoo_folder(path, *settings, names='abc'):
    model = lively(build_model(recipe(*settings), list(names), len(names)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    return model, bvtam.save_pretrained(model, path)


def test_image_weights_are_inflated(tmp_path, caplog):
    given, folder = zoo_folder(tmp_path / 'image', *IMAGE, names='abcd')
    model = build_model(recipe(f'init={folder}'), list('abc'), 3)
    plain = build_model(recipe(), list('abc'), 3)
    source, start, found = given.state_dict(), plain.state_dict(), model.state_dict()
    fresh = [name for name in found if name.startswith('fc.') or '.temporal.' in name]
    for name, value in found.items():
        want = start[name] if name in fresh else source[name]
        assert torch.equal(value, want), name
    assert set(found) - set(source) == {n for n in fresh if 'temporal' in n} and len(fresh) > 2
    assert 'the classifier starts anew' in caplog.text and '4 classes, the model 3' in caplog.text
    assert 'temporal weights start anew' in caplog.text


def test_a_classifier_is_kept_only_for_the_same_classes(tmp_path, caplog):
    given, folder = zoo_folder(tmp_path / 'video')
    same = build_model(recipe(f'init={folder}'), list('abc'), 3)
    assert torch.equal(same.fc.weight, given.fc.weight) and 'anew' not in caplog.text
    other = build_model(recipe(f'init={folder}'), list('abx'), 3)
    assert not torch.equal(other.fc.weight, given.fc.weight)
    assert torch.equal(other.stem.conv1.weight, given.stem.conv1.weight)
    assert 'the classifier starts anew' in caplog.text


@pytest.mark.parametrize(
    'options', ['{width: 16, layers: [2, 2, 2, 1]}', '{width: 8, layers: [2, 2, 3, 1]}']
)
def test_weights_of_another_net_are_refused(tmp_path, options):
    _, folder = zoo_folder(tmp_path / 'image', *IMAGE)
    chosen = recipe(f'model_options={options}', f'init={folder}')
    refused('do not fit bvtam_tiny_8x2', lambda: build_model(chosen, None, 3))
    missing = recipe(f'init={tmp_path / "nowhere"}')
    refused('nowhere: no such folder', lambda: build_model(missing, None, 3), FileNotFoundError)
    (tmp_path / 'empty').mkdir()
    empty = recipe(f'init={tmp_path / "empty"}')
    refused('holds no model', lambda: build_model(empty, None, 3), FileNotFoundError)
    refused('has no ImageNet weights', lambda: build_model(recipe('init=imagenet'), None, 3))


def test_finetuning_goes_on_with_the_colours_that_the_weights_have_seen(tmp_path):
    _, folder = zoo_folder(tmp_path / 'model', 'clip.colors=jpeg')
    model = build_model(recipe(f'init={folder}'), list('abc'), 3)
    assert model.clip_config.colors == 'jpeg'
    model = build_model(recipe(f'init={folder}', 'clip.colors=tagged'), list('abc'), 3)
    assert model.clip_config.colors == 'tagged'
