"""From folders of videos, or of images, to a model; and what is refused before anything is written."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import run
from support.runs import TINY, lively, recipe, rows
from support.videos import write_pictures

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.load import load_records
from bvtam.data.records import Record
from bvtam.engine.data import RunData, build_datasets, load_data
from bvtam.engine.recipe import Recipe
from bvtam.engine.run import finetune, train
from bvtam.engine.setup import build_model, enough_epochs, warn_all_warmup
from bvtam.errors import BvtamError
from bvtam.inference.predict import predict

CLIP = ClipConfig(num_frames=4, resize=32, crop_size=32, flip=True)
SMALL = 'clip={num_frames: 4, resize: 32, crop_size: 32}'
SHORT = {'epochs': 2, 'batch_size': 4, 'workers': 0, 'log_every': 1}
IMAGE = ('model=blresnet50', 'model_options={width: 8, layers: [2, 2, 2, 1], drop_rate: 0}')


def write_video(path, level, seed):
    noise = np.random.default_rng(seed)
    pictures = [noise.integers(level, level + 40, (32, 48, 3)).astype(np.uint8) for _ in range(6)]
    write_pictures(path, pictures, 10)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Two classes of five videos."""
    folder = tmp_path_factory.mktemp('videos')
    for i in range(5):
        write_video(folder / 'dim light' / f'{i}.mp4', 20, i)
        write_video(folder / 'bright light' / f'{i}.mp4', 200, i)
    return folder


@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    """A model with weights, by the name bvtam_tiny_8x2.mine, of three other classes."""
    folder = tmp_path_factory.mktemp('zoo')
    torch.manual_seed(0)
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3, width=8, layers=(2, 2, 2, 1))
    lively(model).clip_config, model.label_names = CLIP, list('xyz')
    bvtam.save_pretrained(model, folder / 'bvtam_tiny_8x2.mine')
    return folder


@pytest.fixture(scope='module')
def finetuned(videos, zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp('finetuned') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('BVTAM_ZOO', str(zoo))
        settings = {**SHORT, 'epochs': 4, 'lr': 1e-3}
        model = finetune(videos, 'bvtam_tiny_8x2.mine', out, **settings)
    return model, out


def test_folders_of_videos_become_a_model(finetuned, videos, zoo, monkeypatch):
    model, out = finetuned
    assert model.label_names == ['bright light', 'dim light'] and not model.training
    assert model.clip_config.to_dict() == CLIP.to_dict()
    best = bvtam.create_model(f'local-dir:{out / "best"}', pretrained=True).eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, best.state_dict()[name])
    found = predict(best, videos / 'dim light' / '0.mp4', topk=2)
    assert {top['label'] for top in found['top']} == set(model.label_names)
    assert (out / 'curves.png').exists() and (out / 'last' / 'README.md').exists()
    vals = [row for row in rows(out) if 'val_loss' in row]
    assert len(vals) == 4 and {row['val_num_videos'] for row in vals} == {2}
    losses = [row['loss'] for row in rows(out) if 'loss' in row]
    assert len(losses) == 4 * 2 and sum(losses[-2:]) < sum(losses[:2])
    chosen = Recipe.load(out / 'recipe.yaml')
    assert chosen.optimizer.layer_decay == 0.9 and chosen.data.path == str(videos)
    assert chosen.init == 'auto'
    assert chosen.regularize.freeze_bn == 'auto'
    first = bvtam.create_model('local-dir:' + str(zoo / 'bvtam_tiny_8x2.mine'), pretrained=True)
    names = [name for name, _ in first.named_buffers() if name.endswith('running_mean')]
    assert names and all(
        torch.equal(model.get_buffer(name), first.get_buffer(name)) for name in names
    )


def test_the_first_weights_are_those_of_the_name(finetuned, videos, zoo, tmp_path, monkeypatch):
    monkeypatch.setenv('BVTAM_ZOO', str(zoo))
    model = finetune(
        videos, 'bvtam_tiny_8x2.mine', tmp_path / 'run', lr=0, warmup_epochs=0, **SHORT
    )
    start = bvtam.create_model('bvtam_tiny_8x2.mine', pretrained=True)
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True)]
    assert same == [True] * (len(same) - 2) + [False] * 2  # but for the classifier


def test_the_command(finetuned, videos, tmp_path, capfd, caplog):
    out = tmp_path / 'run'
    command = ['train', *TINY, 'epochs=1', '--data', videos, '--out', out, '--json']
    command += [SMALL, 'init=']
    for code, text in ((0, ''), (0, 'is finished: nothing is left to do')):
        found, stdout, stderr = run(capfd, *command)
        assert found == code and text in stderr + caplog.text
        results = json.loads(stdout)
        assert results['epochs'] == 1 and results['out'] == str(out)
        assert (out / 'best' / 'config.json').exists()
    found, stdout, stderr = run(capfd, *command, '--resume', 'never')
    assert found == 1 and not stdout and 'holds a run' in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    'names, settings, first, flip, flips, said',
    [
        ('open shut', '', True, True, None, 'clips are mirrored, since no label names'),
        ('open shut', '', True, True, None, 'augment.flip=off'),
        ('open shut', '', None, False, None, 'since no first weights tell that it does no harm'),
        ('open shut', '', False, False, None, 'no clip is mirrored, since clip.flip of the first'),
        ('open shut', 'clip.flip=true', False, True, None, 'clips are mirrored'),
        ('open shut', 'clip.flip=false', True, False, None, ''),
        ('open shut', 'flip=on', False, True, None, ''),
        ('open shut', 'flip=off', True, False, None, ''),
        ('gauche droite', '', True, False, None, 'no clip is mirrored, since labels name direc'),
        ('gauche open', '', True, False, None, 'no clip is mirrored, since labels name direc'),
        ('tick star', '', True, False, None, 'no clip is mirrored, since labels name direc'),
        ('circlecc star', '', True, False, None, 'no clip is mirrored, since labels name direc'),
        ('left right tick', '', True, False, {0: 1, 1: 0}, 'clips of 2 labels are mirrored with'),
        ('left right open', '', True, False, {0: 1, 1: 0}, 'labels swapped, and no others, since'),
        ('left right open', '', False, False, {0: 1, 1: 0}, 'labels swapped, and no others'),
        ('left right open', '', None, False, {0: 1, 1: 0}, 'labels swapped, and no others'),
        ('1 2', '', True, False, None, 'numbers as labels do not tell'),
        ('class_1 class_2', '', None, False, None, 'numbers as labels do not tell'),
        ('', '', True, False, None, 'numbers as labels do not tell'),
    ],
)
def test_what_is_mirrored_is_decided_with_care_and_told(
    names, settings, first, flip, flips, said, caplog
):
    model = SimpleNamespace(first_flip=first, clip_config=CLIP, label_names=names.split() or None, input_kind='clip')  # fmt: skip
    data = RunData([Record('a.mp4', 0)], [Record('a.mp4', 0)], None, 1)
    train_set, val_set = build_datasets(recipe(*settings.split()), model, data)
    assert model.clip_config.flip == val_set.read.clip.flip == flip
    assert train_set.read.train.flip_labels == flips
    assert said in caplog.text and bool(said) == bool(caplog.records)


def test_small_sets_get_more_epochs(videos, tmp_path, caplog):
    chosen = recipe(f'data.path={videos}', SMALL, 'epochs=2', 'batch_size=4', 'min_steps=5')
    out = tmp_path / 'run'
    results = train(chosen, out)
    assert results['epochs'] == 3 and results['steps'] == 6
    assert '3 epochs instead of 2, since 8 training videos make 2 steps an epoch' in caplog.text
    assert Recipe.load(out / 'recipe.yaml').schedule.epochs == 3
    assert [row['lr'] for row in rows(out) if 'lr' in row][-1] < chosen.optimizer.lr / 2
    assert train(chosen, out)['steps'] == 6  # the same command goes on with the same run
    assert 'is finished: nothing is left to do' in caplog.text
    assert enough_epochs(chosen, 1000).schedule.epochs == 2
    asked = [
        Recipe.load('finetune', pairs) for pairs in ([], ['epochs=3'], ['epochs=3', 'min_steps=9'])
    ]
    assert [enough_epochs(each, 40).schedule.epochs for each in asked] == [20, 3, 3]
    assert 'warmup_epochs' not in caplog.text
    warn_all_warmup(Recipe.load('finetune', ['epochs=1']))
    assert 'the learning rate rises from 1e-06 through all 1 epochs' in caplog.text


def test_flip_of_the_first_weights_is_known(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv('BVTAM_ZOO', str(zoo))
    for settings, flip in (
        ((), None),
        (('init=bvtam_tiny_8x2.mine',), True),
        (('model=bvtam_tiny_8x2.mine', 'init=pretrained', 'clip.flip=false'), True),
    ):
        assert build_model(recipe(*settings), None, 3).first_flip is flip


def test_a_damaged_video_is_replaced_and_reported(videos, tmp_path):
    folder = tmp_path / 'videos'
    for path in videos.glob('*/*.mp4'):
        link = folder / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    bad = load_data(recipe(f'data.path={folder}'))[0][0].source
    chosen = recipe(f'data.path={folder}', SMALL, 'max_failed=0.5')
    (tmp_path / 'x').write_bytes(b'no video' * 100)
    (tmp_path / 'x').replace(bad)
    results = train(chosen, tmp_path / 'run')
    assert results['failed'] == 1 and results['steps'] == 4
    with (tmp_path / 'run' / 'errors.csv').open(newline='') as file:
        assert [row['video'] for row in csv.DictReader(file)] == [bad]


def test_eval_finds_what_a_run_held_out(videos, tmp_path, monkeypatch, capfd):
    chosen = recipe(f'data.path={videos}', 'seed=3', 'epochs=1', SMALL)
    held_out = load_data(chosen)[1]
    assert held_out != load_data(recipe(f'data.path={videos}'))[1]
    train(chosen, tmp_path / 'run')
    measured = []

    def load(*args, **options):
        found = load_records(*args, **options)
        measured.append(found[0])
        return found

    monkeypatch.setattr('bvtam.data.load.load_records', load)
    common = '--data', videos, '--val-share', 0.2, '--workers', 0
    for model in (tmp_path / 'run', tmp_path / 'run' / 'last'):
        run(capfd, 'eval', model, *common)
        assert measured.pop() == held_out


def refused(message, *settings, out, kind=BvtamError):
    with pytest.raises(kind) as caught:
        train(recipe(*settings), out)
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not out.exists()


def test_data_that_cannot_be_trained_on(videos, tmp_path):
    out = tmp_path / 'run'
    refused('no data: name a dataset with --data DIR', out=out)
    refused('nowhere: no such folder', 'data.path=/nowhere', out=out, kind=FileNotFoundError)
    small = tmp_path / 'small'
    write_video(small / 'a' / '0.mp4', 10, 0)
    write_video(small / 'b' / '0.mp4', 10, 0)
    write_video(small / 'b' / '1.mp4', 10, 0)
    refused("the class 'a' has one video, too few for", f'data.path={small}', out=out)
    (small / 'a' / '0.mp4').unlink()
    refused('class folder', f'data.path={small}', out=out)
    table = tmp_path / 'list.csv'
    table.write_text(''.join(f'{p},{i}\n' for i, p in enumerate(sorted(videos.glob('*/*.mp4')))))
    settings = (f'data.train={table}', 'num_classes=4')
    refused('label 4 is outside the 4 classes', *settings, out=out)
    refused('num_classes is 5, but the dataset has 2', f'data.path={videos}', 'num_classes=5', out=out)  # fmt: skip
    refused("unknown model 'bvtam_tiny'", f'data.path={videos}', 'model=bvtam_tiny', out=out)
    refused('no option', f'data.path={videos}', 'model_options={widht: 8}', out=out)
    refused('clip.crop_size 300 is larger', f'data.path={videos}', 'clip.crop_size=300', out=out)


def listed(videos, tmp_path, *labels, name='list.txt', **settings):
    """A list of five videos for each label, and a recipe on it."""
    paths = sorted(videos.glob('*/*.mp4'))
    lines = [f'{path},{label}' for i, path in enumerate(paths) for label in [labels[i // 5]]]
    (tmp_path / name).write_text('\n'.join(lines))
    pairs = [f'{key}={value}' for key, value in settings.items()]
    return recipe(*(pairs or [f'data.path={tmp_path / name}']), 'epochs=1', SMALL)


@pytest.mark.parametrize('labels', [(1, 2), (0, 7), (100234, 100777), ('007', '010')])
def test_numbers_that_are_no_indices_are_names(videos, tmp_path, labels, caplog, capfd):
    chosen, names = listed(videos, tmp_path, *labels), [str(int(label)) for label in labels]
    results = train(chosen, tmp_path / 'run')
    text = f'names of 2 classes ({", ".join(names)}); num_classes={int(labels[1]) + 1}'
    assert text in caplog.text
    assert results['last']['val_num_videos'] == 2
    model = bvtam.create_model(tmp_path / 'run', pretrained=True)
    assert model.label_names == names and model.num_classes == 2
    command = ['eval', tmp_path / 'run', '--data', tmp_path / 'list.txt', '--workers', 0, '--json']
    code, stdout, _ = run(capfd, *command)
    assert code == 0 and [c['label'] for c in json.loads(stdout)['per_class']] == names
    (tmp_path / 'list.txt').write_text(f'{next(videos.glob("*/*.mp4"))},3')
    code, _, stderr = run(capfd, *command)
    assert code == 1 and 'label 3 is out of range, from 0 to 1' in stderr


def test_indices_stay_indices(videos, tmp_path, caplog):
    train_records, _, names, _ = load_data(listed(videos, tmp_path, 1, 0))
    assert names is None and {r.label for r in train_records} == {0, 1} and not caplog.records
    table = tmp_path / 'list.txt'
    chosen = listed(videos, tmp_path, 1, 4, **{'data.train': table, 'num_classes': 6})
    train_records, _, names, _ = load_data(chosen)
    assert names is None and {r.label for r in train_records} == {1, 4}
    train(chosen, tmp_path / 'run')
    assert '4 of 6 classes have no training video' in caplog.text and ': 0, 2, 3, 5' in caplog.text


def test_balanced_classes_are_settings(videos, tmp_path):
    names = tmp_path / 'names.txt'
    paths = sorted(videos.glob('*/*.mp4'))
    names.write_text(''.join(f'{p},{"walk" if i < 2 else "run"}\n' for i, p in enumerate(paths)))
    common = f'data.train={names}', 'epochs=1', SMALL
    refused("no class is named 'wal'; did you mean walk", *common, 'class_weight={wal: 2}', out=tmp_path / 'a')  # fmt: skip
    refused('has 3 numbers for 2 classes', *common, 'class_weight=[1, 2, 3]', out=tmp_path / 'a')
    assert train(recipe(*common, 'sampler=balanced'), tmp_path / 'run')['steps'] == 3
    assert train(recipe(*common, 'class_weight={walk: 2}'), tmp_path / 'weights')['steps'] == 3
    chosen = Recipe.load(tmp_path / 'weights' / 'recipe.yaml')
    assert chosen.regularize.class_weight == {'walk': 2}


def test_labels_that_cannot_be_right_are_told_before_training(videos, tmp_path):
    out, video = tmp_path / 'run', next(videos.glob('*/*.mp4'))
    numbers, names, none = (tmp_path / f'{x}.csv' for x in ('numbers', 'names', 'none'))
    numbers.write_text(f'{video},0\n')
    names.write_text(f'{video},walk\n')
    none.write_text(f'video,label\n{video},\n')
    refused('are numbers and those of', f'data.train={numbers}', f'data.val={names}', out=out)
    two = tmp_path / 'two.csv'
    two.write_text(f'{video},walk\n{video},run\n')
    refused(f'{video} has two labels, walk and run: training', f'data.train={two}', out=out)
    for settings in ((f'data.train={none}',), (f'data.path={none}',), (f'data.train={numbers}', f'data.val={none}')):  # fmt: skip
        refused(f'{video} has no label: give it one', *settings, out=out)
    many = tmp_path / 'many.txt'
    lines = [f'{video},{2 * i},{i}' for i in range(25001)]
    many.write_text('\n'.join(['video,label,start', *lines]))
    refused('has 25,001 classes, and at most 25,000', f'data.train={many}', out=out)
    with pytest.raises(BvtamError, match='num_classes must be from 0 to 25000, not 100778'):
        recipe('num_classes=100778')


# ---- images, and from them to videos ----


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for split, count in (('train', 4), ('val', 2)):
        for label, level in (('cat', 40), ('dog', 160)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(i).integers(level, level + 40, (80, 70, 3))
                Image.fromarray(noise.astype(np.uint8)).save(place / f'{i}.png')
    return folder


def test_images_then_short_clips_then_longer_ones(images, videos, tmp_path, caplog):
    clip = 'clip={resize: 64, crop_size: 64}'
    image = (*IMAGE, clip, 'batch_size=4', 'epochs=1', 'workers=0', f'data.path={images}')
    results = train(Recipe.load('image', image), tmp_path / 'image')
    assert results['steps'] == 2 and results['last']['val_num_videos'] == 4
    best = f'local-dir:{tmp_path / "image" / "best"}'
    image_model = bvtam.create_model(best, pretrained=True)
    assert image_model.label_names == ['cat', 'dog'] and image_model.input_kind == 'image'
    card = (tmp_path / 'image' / 'best' / 'README.md').read_text()
    assert 'pipeline_tag: image-classification' in card and 'frames' not in card
    again = (f'model={best}', 'model_options={}', *image[2:], 'init=pretrained')
    assert train(Recipe.load('image', again), tmp_path / 'again')['steps'] == 2

    sizes = 'resize: 32, crop_size: 32'
    stages = (('short', 'bvtam_tiny_8x2', 4, 'image'), ('long', 'bvtam_r50_16x2', 8, 'short'))
    for name, model, frames, before in stages:
        caplog.clear()
        pairs = f'model={model}', f'clip={{num_frames: {frames}, {sizes}}}', 'epochs=1', 'lr=0'
        chosen = recipe(*pairs, f'init={tmp_path / before}', f'data.path={videos}')
        train(chosen, tmp_path / name)
        assert ('temporal weights start anew' in caplog.text) == (before == 'image')
        assert ('classifier starts anew' in caplog.text) == (before == 'image')
        was, now = (
            bvtam.create_model(f'local-dir:{tmp_path / run / "last"}', pretrained=True)
            for run in (before, name)
        )
        assert now.clip_config.num_frames == frames
        for key, value in was.named_parameters():
            if not key.startswith('fc.') or before == 'short':
                assert torch.equal(dict(now.named_parameters())[key], value)
