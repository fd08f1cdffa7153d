"""`--frames` and `--frame-rate`: every command that takes folders of images is told how to read them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.cli import SAMPLE, run

import bvtam
from bvtam.data.datasets import VideoDataset
from bvtam.data.load import load_records
from bvtam.data.prepare.run import prepare
from bvtam.data.records import open_record
from bvtam.engine.data import load_data
from bvtam.engine.recipe import Recipe
from bvtam.errors import BvtamError
from bvtam.inference.extract import extract

HOW = '--frames', 'img_*.jpg', '--frame-rate', '10'
FRAMES = 20


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    model = bvtam.create_model(
        'bvtam_tiny_8x2', num_classes=2, width=8, layers=(2, 2, 2, 1), drop_rate=0
    )
    model.label_names = ['dark', 'light']
    model.clip_config = replace(model.clip_config, num_frames=4, resize=36, crop_size=32)
    return bvtam.save_pretrained(model, tmp_path_factory.mktemp('zoo') / 'zoo')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Two classes of two folders: frames as JPEG, and beside each the same as PNG."""
    top = tmp_path_factory.mktemp('data')
    for label, name in enumerate(('dark', 'light')):
        for video in range(2):
            folder = top / name / f'v{video}'
            folder.mkdir(parents=True)
            for i in range(1, FRAMES + 1):
                picture = Image.fromarray(np.full((40, 48, 3), 99 * label + i, np.uint8))
                picture.save(folder / f'img_{i:05d}.jpg')
                picture.save(folder / f'img_{i:05d}.png')
    return top


def test_every_command_takes_both(zoo, data, tmp_path, capfd):
    video, model = data / 'dark' / 'v0', ('--model', zoo)
    small = 'epochs=1', 'batch_size=2', 'data.workers=0', 'model_options={width: 8}'
    small += 'clip.num_frames=2', 'clip.resize=32', 'clip.crop_size=32'
    for number, args in enumerate(
        (
            ['predict', video, *model, '--save', tmp_path / 'a.mp4'],
            ['predict', video, *model, '--every', '1'],
            ['predict', video, *model, '--stream', '--fps', '5'],
            ['extract', data, '--out', tmp_path / 'rows', *model],
            ['eval', zoo, '--data', data, '--workers', '0'],
            ['train', 'quick', *small, '--data', data, '--out', tmp_path / 'run'],
            ['prepare', data, tmp_path / 'small', '--size', '32', '--workers', '1'],
        )
    ):
        code, out, err = run(capfd, *args, *HOW, '--json')
        assert code == 0, (args, err)
        found = json.loads(out)
        if number == 1:  # 20 frames at 10 a second
            assert [window['end'] for window in found[0]['windows']] == [1, 2]
        elif number == 2:
            assert found[-1]['time'] == pytest.approx(1.8)
    assert bvtam.open_video(tmp_path / 'a.mp4').duration == pytest.approx(2)
    assert bvtam.open_video(tmp_path / 'small/dark/v0.mp4').duration == pytest.approx(2)
    rows = bvtam.load_features(tmp_path / 'rows')
    assert max(float(found.times.max()) for found in rows.values()) > 1


def test_without_them_the_line_names_the_option(zoo, data, capfd):
    for args in (
        ['predict', data / 'dark' / 'v0', '--model', zoo],
        ['eval', zoo, '--data', data, '--workers', '0', '--on-error', 'raise'],
    ):
        code, _, err = run(capfd, *args)
        assert code == 1 and "--frames 'img_{:05d}.jpg'" in err.splitlines()[-1]


def test_they_are_refused_before_work_where_no_folder_is(zoo, tmp_path, capfd):
    for label in ('dark', 'light'):
        (tmp_path / 'data' / label).mkdir(parents=True)
        for video in '12':
            (tmp_path / 'data' / label / f'{video}.mp4').write_bytes(SAMPLE.read_bytes())
    for args in (
        ['predict', SAMPLE, '--model', zoo],
        ['predict', SAMPLE, '--model', zoo, '--stream'],
        ['extract', SAMPLE, '--out', tmp_path / 'rows', '--model', zoo],
        ['eval', zoo, '--data', tmp_path / 'data'],
        ['train', 'quick', '--data', tmp_path / 'data', '--out', tmp_path / 'run'],
        ['prepare', tmp_path / 'data', tmp_path / 'small'],
        ['export', zoo, tmp_path / 'a.onnx', '--int8', SAMPLE],
    ):
        for how, name in ((HOW[:2], 'frames'), (HOW[2:], r'fps (--frame-rate)')):
            code, _, err = run(capfd, *args, *how)
            assert code == 1 and f'{name}: only for folders of images' in err, args
    for made in ('rows', 'run', 'small', 'a.onnx'):
        assert not (tmp_path / made).exists()
    code, _, err = run(capfd, 'predict', SAMPLE, '--frame-rate', '10', '--fps', '10')
    assert code == 2 and 'give one of them' in ' '.join(err.split())
    for args in (['eval', zoo, '--data', 'motion'], ['prepare', 'motion', tmp_path / 'small']):
        assert run(capfd, *args, *HOW)[0] == 2


def test_a_recipe_says_both(data):
    told = [f'data.path={data}', 'data.frames=img_*.jpg', 'data.fps=12.5']
    recipe = Recipe.load('quick', told)
    train, val, *_ = load_data(recipe)
    assert {(r.frames, r.fps) for r in (*train, *val)} == {('img_*.jpg', 12.5)}
    with pytest.raises(BvtamError, match='not for data.motion'):
        Recipe.load('quick', ['data.motion.family=order', 'data.fps=10'])
    with pytest.raises(BvtamError, match='data.fps must be from 0'):
        Recipe.load('quick', ['data.fps=-1'])


def test_seconds_of_a_list_follow_the_rate(data, tmp_path):
    (tmp_path / 'list.csv').write_text('video,label,start,end\ndark/v0,0,1.0,1.5\n')
    records, _ = load_records(tmp_path / 'list.csv', root=data, frames='img_*.jpg', fps=10)
    clip = replace(bvtam.ClipConfig(), num_frames=5, resize=32, crop_size=32)
    assert VideoDataset(records, clip)[0]['frames'] == [10, 11, 12, 13, 14]
    records, _ = load_records(tmp_path / 'list.csv', root=data, frames='img_*.jpg', fps=20)
    with pytest.raises(BvtamError, match=r'no frame appears from 1 to 1\.5 s'):
        VideoDataset(records, clip)[0]


def test_a_list_says_the_rate_and_prepare_writes_it(data, tmp_path):
    (tmp_path / 'list.csv').write_text('video,fps\ndark/v0,10\ndark/v1,\n')
    records, _ = load_records(tmp_path / 'list.csv', root=data, frames='img_*.jpg')
    assert [open_record(record).fps for record in records] == [10, 25]
    records, _ = load_records(tmp_path / 'list.csv', root=data, frames='img_*.jpg', fps=5)
    assert [open_record(record).fps for record in records] == [5, 5]
    (tmp_path / 'bad.csv').write_text('video,fps\ndark/v0,0\n')
    with pytest.raises(BvtamError, match='line 2: fps must be above 0'):
        load_records(tmp_path / 'bad.csv', root=data)
    options = {'size': 32, 'workers': 1, 'frames': 'img_*.jpg', 'format': 'frames'}
    made = prepare(data / 'dark', tmp_path / 'out', **options, frame_rate=10)
    records, _ = load_records(made['list'])
    assert {(record.fps, record.first, record.last) for record in records} == {(10, 1, FRAMES)}
    with pytest.raises(BvtamError, match='was begun with frame_rate 10, not 5'):
        prepare(data / 'dark', tmp_path / 'out', **options, frame_rate=5)


def test_training_on_folders_may_be_measured_on_files(data, tmp_path):
    (tmp_path / 'val.csv').write_text(f'video,label\n{SAMPLE},light\n')
    both = [f'data.train={data}', f'data.val={tmp_path / "val.csv"}']
    train, val, *_ = load_data(Recipe.load('quick', [*both, 'data.frames=img_*.jpg']))
    assert len(train) == 4 and len(val) == 1


def test_files_beside_folders_keep_their_times(zoo, data, tmp_path):
    model, sources = bvtam.create_model(zoo), [str(SAMPLE), str(data / 'dark' / 'v0')]
    for _ in range(2):  # the second time nothing is done
        extract(model, sources, tmp_path / 'rows', frames='img_*.jpg', fps=1)
    rows = bvtam.load_features(tmp_path / 'rows')
    assert rows[sources[1]].times.max() > 10 > rows[sources[0]].times.max()
    with pytest.raises(BvtamError, match='was made with frames'):
        extract(model, sources, tmp_path / 'rows')
