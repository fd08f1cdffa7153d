"""Procedural clips as a training set and as a test set."""

from __future__ import annotations

import json
import pickle
import signal
from dataclasses import replace

import pytest
import torch
from support.cli import run
from support.runs import TINY, product, rows

import bvtam
from bvtam.data.motion.clips import MotionClips
from bvtam.data.transforms import to_crops
from bvtam.engine.data import Batches
from bvtam.engine.evaluate_motion import _Encoded, evaluate_motion
from bvtam.engine.recipe import Recipe
from bvtam.engine.run import build, train
from bvtam.engine.train import Stopped
from bvtam.errors import BvtamError

MOTION = (
    'data.motion.family=direction',
    'data.motion.clips=12',
    'data.motion.val_clips=16',
    'clip={num_frames: 4, resize: 32, crop_size: 32}',
)


def recipe(*settings):
    return Recipe.load('', [*TINY, *MOTION, *settings])


def test_a_run_on_motion_goes_on_where_it_was_stopped(tmp_path):
    whole = train(recipe(), tmp_path / 'whole')
    assert whole['best']['val_num_videos'] == 16 and whole['steps'] == 6
    with pytest.raises(Stopped):
        train(recipe(), tmp_path / 'run', progress=lambda done, _: done == 16 and signal.raise_signal(signal.SIGTERM))  # fmt: skip
    train(recipe(), tmp_path / 'run')
    assert product(tmp_path / 'run') == product(tmp_path / 'whole')
    assert len({row['loss'] for row in rows(tmp_path / 'run') if 'loss' in row}) == 4
    model = bvtam.create_model(f'local-dir:{tmp_path}/run/last', pretrained=True)
    assert model.label_names == MotionClips(family='direction').label_names
    assert (model.clip_config.num_frames, model.clip_config.crop_size) == (4, 32)


def test_the_sets_are_those_of_the_recipe():
    chosen = recipe('data.motion.encode=0.5', 'data.motion.held_out=true', 'seed=3')
    model, train_set, val_set = build(chosen)
    assert (train_set.seed, train_set.encode, len(train_set)) == (3, 0.5, 12)
    assert (val_set.seed, val_set.encode, len(val_set), val_set.split) == (0, 0, 16, 'val')
    assert model.label_names == train_set.label_names == val_set.label_names
    assert 'orbit_clockwise' in model.label_names and 'right' not in model.label_names


def test_parts_of_a_batch_have_one_length():
    _net, train_set, _val = build(recipe('clip.num_frames=8', 'data.motion.two_lengths=true'))

    def lengths(accumulate, rank=0, world=1):
        parts = Batches(12, 4, accumulate, 0, rank, world)
        return [
            train_set.__getitems__(pickle.loads(pickle.dumps(p)))[0]['clip'].shape[1] for p in parts
        ]

    whole = lengths(1)
    assert set(whole) == {4, 8}
    assert lengths(4) == [length for length in whole for _ in range(4)]
    assert lengths(1, 1, 2) == whole


def test_batches_of_two_lengths_are_the_same_clips(tmp_path):
    chosen = recipe('clip.num_frames=8', 'data.motion.two_lengths=true')
    _net, train_set, val_set = build(chosen)
    train_set.set_epoch(2)
    batches = [train_set.__getitems__([i, 5]) for i in range(12)]
    shapes = [{tuple(sample['clip'].shape) for sample in batch} for batch in batches]
    assert all(len(of_batch) == 1 for of_batch in shapes)
    assert set.union(*shapes) == {(3, 8, 32, 32), (3, 4, 32, 32)}
    assert {batch[1]['video'] for batch in batches} == {'motion/train/0/29'}
    assert len({batch[1]['label'] for batch in batches}) == 1
    assert len(train_set) == 12 and val_set.num_frames == 8
    assert train(chosen, tmp_path / 'run')['steps'] == 6


@pytest.mark.parametrize(
    'setting, message',
    [
        ('data.path=videos', 'give data.path .or train., or data.motion.family, not both'),
        ('augment.crop=center', 'augment.crop is not for data.motion'),
        (
            'data.motion.family=up',
            'data.motion.family must be one of , direction, order, stroke, shapes, all',
        ),
        ('data.motion.encode=2', 'data.motion.encode must be from 0 to 1'),
        ('num_classes=3', 'num_classes is 3, but these motion clips have 16'),
    ],
)
def test_what_does_not_go_with_motion_is_refused(tmp_path, setting, message):
    with pytest.raises(BvtamError, match=message):
        train(recipe(setting), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model that takes everything for 'left'."""
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=28, width=8)
    model.label_names = MotionClips(family='shapes').label_names
    model.clip_config = replace(model.clip_config, resize=32, crop_size=32)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.eye(28)[model.label_names.index('left')])
    return bvtam.save_pretrained(model, tmp_path_factory.mktemp('model') / 'model')


def test_accuracy_on_motion_family_by_family(folder, capfd):
    model = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    result = evaluate_motion(model, 56, workers=0)
    assert result['top1'] == pytest.approx(100 / 28)
    direction, order = result['families']['direction'], result['families']['order']
    assert direction['top1'] == pytest.approx(100 / 16) and order['top1'] == 0
    assert (direction['num_videos'], order['num_videos']) == (32, 24)
    assert (direction['frame_bound'], direction['pair_bound']) == (50, 100)
    assert (order['frame_bound'], order['pair_bound']) == (25, 50)

    command = ('eval', folder, '--data', 'motion', '--count', 28, '--workers', 0)
    code, out, err = run(capfd, *command, '--json')
    assert code == 0, err
    assert json.loads(out)['families']['direction']['num_videos'] == 16
    code, _, err = run(capfd, *command, '--crops', 3)
    assert code == 2 and '--crops is not for motion' in err
    code, _, err = run(capfd, 'eval', folder, '--data', 'videos', '--seed', 3)
    assert code == 2 and '--seed is for motion' in err


def test_by_way_of_video_files_the_clips_are_the_same(folder, tmp_path):
    model = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    plain = MotionClips(48, (240, 320), 'shapes', 1, split='test', length=2, cut_unit=12)
    filmed = _Encoded(plain, model.clip_config, tmp_path)
    for i in range(2):
        sample = filmed[i]
        want = to_crops(plain[i]['clip'][:, 1::3].transpose(0, 1), model.clip_config)
        error = (sample['clip'].float() - want.float()).abs().mean()
        assert 0 < error < 3  # grey levels, of the codec
        assert (sample['clip'].float() - want.flip(2).float()).abs().mean() > 3 * error
        assert sample['label'] == plain[i]['label'] and sample['frames'] == list(range(1, 48, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # it encodes 28 videos
def test_evaluation_by_way_of_video_files(folder):
    model = bvtam.create_model(f'local-dir:{folder}', pretrained=True)
    result = evaluate_motion(model, 28, videos=True)
    assert result['num_videos'] == 28 and result['top1'] == pytest.approx(100 / 28)
