"""Models of other numbers of channels than three: grey frames for one, a clear word for the rest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli import run
from support.grey import write_grey

import bvtam
from bvtam.data.datasets import VideoDataset
from bvtam.data.load import load_records
from bvtam.data.motion.clips import MotionClips
from bvtam.data.transforms import TrainTransform, normalize, to_crops
from bvtam.data.video.open import open_video
from bvtam.engine.evaluate_motion import evaluate_motion
from bvtam.engine.setup import initialise
from bvtam.errors import BvtamError
from bvtam.inference import demo
from bvtam.inference.extract import extract
from bvtam.inference.stream import predict_stream

SMALL = {'width': 8, 'layers': (2, 2, 2, 1), 'drop_rate': 0}


def model_of(channels, classes=2, **options):
    model = bvtam.create_model(
        'bvtam_tiny_8x2', num_classes=classes, in_chans=channels, **SMALL, **options
    )
    model.clip_config = replace(model.clip_config, num_frames=4, resize=36, crop_size=32)
    return model.eval()


@pytest.fixture(scope='module')
def grey(tmp_path_factory):
    """A zoo folder of a grey model, and a folder of classes."""
    top = tmp_path_factory.mktemp('grey')
    model = model_of(1)
    model.label_names = ['dark', 'light']
    for video in range(4):
        folder = top / 'data' / model.label_names[video // 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_grey(folder / f'{video}.mp4', video)
    return bvtam.save_pretrained(model, top / 'model'), top / 'data'


def test_mean_and_std_are_of_the_channels_of_the_model():
    assert model_of(1).clip_config.mean == (0.449,) and model_of(1).clip_config.std == (0.226,)
    assert model_of(5).clip_config.mean == (0.449,) * 5
    assert model_of(3).clip_config.mean == (0.485, 0.456, 0.406)


def test_grey_levels_are_those_of_pillow():
    frames = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8)
    frames[0] = 255
    clip = replace(model_of(1).clip_config, resize=40, crop_size=40)
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    expected = torch.from_numpy(np.stack([np.asarray(p.convert('L')) for p in pictures]))
    assert torch.equal(to_crops(frames, clip)[0, 0], expected[..., 4:44])
    crops = frames.transpose(0, 1)[None, ..., :40]
    assert torch.equal(normalize(crops, clip), normalize(expected[None, None, ..., :40], clip))
    train = TrainTransform(clip, color_jitter=0.4, rand_augment=2, random_erasing=1.0)
    assert train(frames, 0, torch.Generator().manual_seed(0))[0].shape == (1, 4, 40, 40)


def test_grey_frames_in_memory_are_videos():
    grey = np.random.default_rng(0).integers(0, 256, (4, 20, 24), np.uint8)
    for frames in (grey[..., None], torch.from_numpy(grey)[:, None], list(grey)):
        read = open_video(frames).read(range(4))
        assert torch.equal(read, torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1))
    model = model_of(1)
    assert bvtam.predict(model, grey[..., None]) == bvtam.predict(model, grey[:, None].repeat(3, 1))


def test_every_command_feeds_a_grey_model(grey, tmp_path, capfd):
    folder, data = grey
    video = str(next(data.rglob('*.mp4')))
    model = '--model', str(folder)
    views = '--save', str(tmp_path / 'a.mp4'), '--evidence', str(tmp_path / 'e.png')
    for args in (
        ['predict', video, *model, *views],
        ['predict', video, *model, '--every', '1', '--timeline', str(tmp_path / 't.png')],
        ['predict', video, *model, '--stream'],
        ['extract', str(data), '--out', str(tmp_path / 'rows'), *model, '--what', 'pair'],
        ['eval', str(folder), '--data', str(data), '--workers', '0'],
        ['eval', str(folder), '--data', str(data), '--workers', '0', '--crops', '3'],
        ['verify', str(folder)],
    ):
        code, out, err = run(capfd, *args, '--json')
        assert code == 0, err
        json.loads(out)
    assert demo.look(bvtam.create_model(folder), video)[0].keys() == {'dark', 'light'}


def test_a_grey_model_is_trained_on_videos_and_on_images(grey, tmp_path, capfd):
    small = (
        'epochs=1',
        'batch_size=4',
        'data.workers=0',
        'model_options={in_chans: 1, width: 8, layers: [2, 2, 2, 1]}',
    )
    sizes = 'clip.num_frames=2', 'clip.resize=32', 'clip.crop_size=32'
    code, _, err = run(capfd, 'train', 'quick', *small, *sizes, '--data', str(grey[1]), '--out', str(tmp_path / 'a'))  # fmt: skip
    assert code == 0, err
    trained = bvtam.create_model(tmp_path / 'a')
    assert trained.in_chans == 1 and trained.clip_config.mean == (0.449,)
    assert len(bvtam.predict(trained, str(next(grey[1].rglob('*.mp4'))))['top']) == 2
    for label in 'ab':
        (tmp_path / 'images' / label).mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (40, 40), (60 * i, 9, 9)).save(
                tmp_path / 'images' / label / f'{i}.png'
            )
    code, _, err = run(capfd, 'train', 'quick', *small, 'model=blresnet50', 'clip.crop_size=32', 'clip.resize=32', '--data', str(tmp_path / 'images'), '--out', str(tmp_path / 'b'))  # fmt: skip
    assert code == 0, err


def test_a_grey_model_starts_from_weights_of_colour(tmp_path, caplog):
    first = model_of(3, 4)
    folder = bvtam.save_pretrained(first, tmp_path / 'first')
    model = model_of(1)
    initialise(model, folder)
    grey, colour = model.stem.conv1.weight, first.stem.conv1.weight
    assert torch.allclose(grey, colour.sum(1, keepdim=True))
    assert 'adapted from 3 to 1 channels' in caplog.text


def test_motion_clips_are_made_grey(grey):
    labels = MotionClips(family='shapes').label_names
    model = model_of(1, len(labels))
    model.label_names = labels
    assert evaluate_motion(model, 4, workers=0)['num_videos'] == 4


@pytest.mark.parametrize('channels', [2, 5])
def test_other_numbers_of_channels_are_refused_before_work(channels, grey, tmp_path, capfd):
    model, video = model_of(channels), 'not there.mp4'
    told = rf'takes {channels} channels.*tensors \(B, {channels}, T, H, W\) in Python'
    records, _ = load_records(grey[1])
    for ask in (
        lambda: bvtam.predict(model, video),
        lambda: bvtam.windows(model, video, 1.0),
        lambda: bvtam.evidence(model, video),
        lambda: next(predict_stream(model, video)),
        lambda: extract(model, video, tmp_path / 'rows'),
        lambda: bvtam.evaluate(model, records),
        lambda: evaluate_motion(model, 4),
        lambda: VideoDataset(records, model.clip_config),
    ):
        with pytest.raises(BvtamError, match=told) as error:
            ask()
        assert '\n' not in str(error.value)
    options = f'model_options={{in_chans: {channels}, width: 8}}', 'data.workers=0'
    for more in (['--data', str(grey[1])], ['data.motion.family=order']):
        code, _, err = run(capfd, 'train', 'quick', *options, *more, '--out', tmp_path / 'run')
        assert code == 1 and f'takes {channels} channels' in err
    folder = bvtam.save_pretrained(model, tmp_path / 'model')
    code, _, err = run(capfd, 'export', folder, tmp_path / 'model.onnx', '--int8', grey[1])
    assert code == 1 and f'takes {channels} channels' in err
    assert not (tmp_path / 'rows').exists() and not (tmp_path / 'model.onnx').exists()
    assert model(torch.zeros(1, channels, 4, 32, 32)).shape == (1, 2)


def test_a_mean_of_other_channels_is_told():
    model = model_of(1)
    model.clip_config = replace(model.clip_config, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(BvtamError, match='takes 1 channel, but clip.mean and clip.std are of 3'):
        bvtam.predict(model, 'not there.mp4')
