"""`predict` against its own parts, put together the plain way."""

from __future__ import annotations

import json
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from support.models import Notes
from torch import nn

from bvtam.clip import ClipConfig
from bvtam.data.failures import Failures
from bvtam.data.video.file import VideoFile
from bvtam.data.video.in_memory import FrameArray
from bvtam.errors import BvtamError
from bvtam.inference import clips as clips_module
from bvtam.inference.predict import predict, predict_many

CONFIG = ClipConfig(num_frames=4, resize=32, crop_size=24, num_clips=2, num_crops=3)
LABELS = [f'act {i}' for i in range(7)]


class Probe(nn.Module):
    """Seven linear scores of all values of a clip: any other frame, order or crop changes them."""

    def __init__(self, clip=CONFIG, labels=LABELS):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (7, 3, clip.num_frames, clip.crop_size, clip.crop_size)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) / 40)
        self.norm = nn.BatchNorm3d(3)
        self.clip_config, self.label_names, self.num_classes = clip, labels, 7
        self.pretrained_cfg = {'architecture': 'probe_8x2'}
        self.modes, self.sizes = Notes(), Notes()

    def forward(self, x):
        self.sizes.append(len(x))
        self.modes.append((self.training, torch.is_grad_enabled(), x.dtype))
        return torch.einsum('bcthw,kcthw->bk', x, self.weight)


def write(path, pictures, rate=25):
    """An MPEG-4 file of pictures (V, H, W, 3)."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], 'yuv420p'
        stream.bit_rate = 4_000_000
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def blocks(count, seed):
    """Frames of 48 x 32, each of other random blocks."""
    values = np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    return values.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def video(tmp_path):
    return write(tmp_path / 'blocks.mp4', blocks(17, 1))


@pytest.fixture
def videos(tmp_path):
    """Five, the third of which is none."""
    paths = [tmp_path / f'{i}.mp4' for i in range(5)]
    for i, path in enumerate(paths):
        write(path, blocks(5 + 4 * i, i))
    paths[2].write_bytes(b'no video' * 100)
    return [str(path) for path in paths]


def reference(model, path, clips, lefts):
    """Mean probabilities over views, without any of the package's code."""
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])
    frames = (frames / 255 - np.array(CONFIG.mean)) / np.array(CONFIG.std)
    probabilities = []
    for clip in clips:
        for left in lefts:
            view = frames[clip][:, 4:28, left : left + 24]
            x = torch.from_numpy(view).permute(3, 0, 1, 2)
            logits = torch.einsum('cthw,kcthw->k', x, model.weight.detach().double())
            probabilities.append(logits.softmax(0))
    return torch.stack(probabilities).mean(0)


def test_predict_averages_the_views_of_a_video(video):
    model = Probe()
    result = predict(model, video, topk=3)
    clips = [[2, 6, 10, 14], [3, 7, 11, 15]]
    scores = reference(model, video, clips, lefts=(0, 12, 24))

    assert list(result) == ['video', 'model', 'frames', 'top']
    assert result['video'] == str(video)
    assert result['model'] == 'probe_8x2'
    assert result['frames'] == clips[0] + clips[1]
    order = scores.argsort(descending=True).tolist()[:3]
    assert [list(row) for row in result['top']] == [['label', 'index', 'score']] * 3
    assert [row['index'] for row in result['top']] == order
    assert [row['label'] for row in result['top']] == [LABELS[i] for i in order]
    assert [row['score'] for row in result['top']] == pytest.approx(
        scores[order].tolist(), abs=1e-5
    )
    assert json.loads(json.dumps(result)) == result
    # The probe can tell: another order of frames, other frames or another crop score otherwise.
    for other in (
        reference(model, video, [clips[0][::-1], clips[1][::-1]], (0, 12, 24)),
        reference(model, video, clips[:1], (0, 12, 24)),
        reference(model, video, clips, (12,)),
    ):
        assert (other - scores).abs().max() > 1e-3


def test_topk_is_clamped_and_scores_sum_to_one(video):
    top = predict(Probe(labels=None), str(video), topk=100)['top']
    assert sorted(row['index'] for row in top) == list(range(7))
    assert [row['label'] for row in top] == [str(row['index']) for row in top]
    assert sum(row['score'] for row in top) == pytest.approx(1, abs=1e-5)


def test_the_model_runs_in_eval_mode_and_is_left_as_it_was(video):
    model = Probe().train()
    model.norm.eval()
    predict(model, video)
    assert all(mode == (False, False, torch.float32) for mode in model.modes)
    assert model.training and not model.norm.training

    model.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict(model, video)
    assert model.training and not model.norm.training


def test_predict_uses_the_models_precision_and_name(video):
    model = Probe().eval().bfloat16()
    model.model_name = 'probe_8x2.mine'
    result = predict(model, video)
    assert {mode[2] for mode in model.modes} == {torch.bfloat16}
    assert result['model'] == 'probe_8x2.mine'
    assert not model.training


def test_what_predict_cannot_do_says_so(video, tmp_path):
    with pytest.raises(BvtamError, match='topk must be at least 1, not 0'):
        predict(Probe(), video, topk=0)
    with pytest.raises(BvtamError, match='probe_8x2 has 7 classes but 2 label names'):
        predict(Probe(labels=['a', 'b']), video)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.mp4'):
        predict(Probe(), tmp_path / 'nowhere.mp4')

    model = Probe()
    model.num_classes = 0
    with pytest.raises(BvtamError, match=r'probe_8x2 has no classifier \(num_classes=0\)'):
        predict(model, video)

    model = Probe()
    model.input_kind = 'image'
    with pytest.raises(
        BvtamError, match='probe_8x2 takes single images; predict needs a video model'
    ):
        predict(model, video)
    model = Probe()
    model.clip_config = None
    with pytest.raises(BvtamError, match='takes single images'):
        predict(model, video)

    for value in (float('nan'), float('inf')):
        model = Probe()
        with torch.no_grad():
            model.weight[3, 0, 0, 0, 0] = value
        with pytest.raises(BvtamError, match='probe_8x2 gave scores that are not finite'):
            predict(model, video)


def test_predict_takes_all_kinds_of_sources(video, tmp_path):
    model = Probe()
    expected = predict(model, video)
    pictures = VideoFile(video).read(range(17))
    for source, name in (
        (str(video), str(video)),
        (VideoFile(video), str(video)),
        (pictures, 'array'),
        (pictures.permute(0, 2, 3, 1).numpy(), 'array'),
        (FrameArray(pictures, name='mine'), 'mine'),
    ):
        assert predict(model, source) == expected | {'video': name}


def test_views_can_be_chosen(video):
    for clips, crops, frames, lefts in (
        (1, 1, [[2, 6, 10, 14]], (12,)),
        (1, None, [[2, 6, 10, 14]], (0, 12, 24)),
        (None, 1, [[2, 6, 10, 14], [3, 7, 11, 15]], (12,)),
    ):
        model = Probe()
        result = predict(model, video, topk=7, num_clips=clips, num_crops=crops)
        scores = reference(model, video, frames, lefts)
        assert result['frames'] == [index for clip in frames for index in clip]
        assert {row['index']: row['score'] for row in result['top']} == pytest.approx(
            dict(enumerate(scores.tolist())), abs=1e-5
        )
        assert model.clip_config is CONFIG
    with pytest.raises(BvtamError, match=r'clip\.num_crops must be one of .*, not 2'):
        predict(Probe(), video, num_crops=2)


@pytest.mark.parametrize('batch_size', [1, 4, 7, 100])
def test_many_videos_share_batches_and_score_as_they_do_alone(videos, batch_size):
    del videos[2]
    model, told = Probe(), []
    expected = [predict(model, video, topk=7) for video in videos]
    model.sizes.clear()
    results = list(
        predict_many(
            model, videos, 7, batch_size=batch_size, workers=2, progress=lambda *n: told.append(n)
        )
    )
    views = len(videos) * 2 * 3
    assert model.sizes == [min(batch_size, views - i) for i in range(0, views, batch_size)]
    assert told[0] == (0, 4) and told[-1] == (4, 4) and told == sorted(told)
    for result, wanted in zip(results, expected, strict=True):
        assert {k: result[k] for k in ('video', 'model', 'frames')} == {
            k: wanted[k] for k in ('video', 'model', 'frames')
        }
        assert [row['index'] for row in result['top']] == [row['index'] for row in wanted['top']]
        assert [row['score'] for row in result['top']] == pytest.approx(
            [row['score'] for row in wanted['top']], abs=1e-6
        )


def test_a_video_that_fails_is_skipped_and_listed(videos, tmp_path):
    failures = Failures(5, 0.2, tmp_path / 'errors.csv')
    results = list(predict_many(Probe(), videos, on_error='skip', failures=failures))
    assert [result['video'] for result in results] == videos[:2] + videos[3:]
    assert list(failures.reasons) == [videos[2]]
    assert 'cannot be opened as a video' in failures.path.read_text()

    with pytest.raises(BvtamError, match='1 of 5 videos failed, more than the allowed share'):
        list(predict_many(Probe(), videos, on_error='skip'))
    with pytest.raises(BvtamError, match='on_error must be one of raise, skip, not'):
        predict_many(Probe(), videos, on_error='substitute')


def test_a_video_that_fails_in_its_middle_gives_no_result(videos, monkeypatch):
    monkeypatch.setattr(clips_module, '_FRAMES_A_READ', 4)  # one clip at a time
    read_each = VideoFile.read_each

    def fails_at_the_second_clip(self, indices, function):
        if self.name == videos[3] and list(indices) == [3, 7, 11, 15]:
            raise OSError('gone')
        return read_each(self, indices, function)

    monkeypatch.setattr(VideoFile, 'read_each', fails_at_the_second_clip)
    failures = Failures(5, 1.0)
    results = list(predict_many(Probe(), videos, on_error='skip', failures=failures))
    assert [result['video'] for result in results] == [videos[i] for i in (0, 1, 4)]
    assert list(failures.reasons) == [videos[2], videos[3]]


def test_results_of_the_videos_before_come_first(videos, tmp_path):
    found = predict_many(Probe(), videos, batch_size=100)
    assert [next(found)['video'], next(found)['video']] == videos[:2]
    with pytest.raises(BvtamError, match=r'2\.mp4 cannot be opened as a video'):
        next(found)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.mp4'):
        list(predict_many(Probe(), tmp_path / 'nowhere.mp4'))


def test_between_results_the_model_is_as_it_came(videos):
    model = Probe().train()
    model.norm.eval()
    for _ in predict_many(model, [videos[0]] * 4, batch_size=2):
        assert model.training and not model.norm.training
        assert torch.is_grad_enabled()
    assert {mode[:2] for mode in model.modes} == {(False, False)}


def test_decoding_keeps_a_few_videos_ahead(monkeypatch):
    made = []

    class Counted(FrameArray):
        def read_each(self, indices, function):
            made.append(self.name)
            return super().read_each(indices, function)

    sources = [Counted(blocks(4, i), name=str(i)) for i in range(60)]
    results = predict_many(Probe(), sources, workers=2, batch_size=6)
    for _ in range(10):
        next(results)
    # 4 reads wait, 2 are under way, and 2 videos are in the net.
    assert 10 <= len(made) <= 20
    results.close()
    assert not any(t.name.startswith('bvtam-decode') for t in threading.enumerate())


# ---- the same video, saved otherwise ----

UPRIGHT = struct.pack('>9i', 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
QUARTER = struct.pack('>9i', 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise


def moving_texture(count, height, width):
    """(V, H, W, 3): waves that move, the same at any size."""
    time, y, x = np.meshgrid(
        np.arange(count) / count,
        (np.arange(height) + 0.5) / height,
        (np.arange(width) + 0.5) / width,
        indexing='ij',
    )
    waves = [np.sin(6 * x + 2 * y + 5 * time), np.sin(7 * y - 4 * time), np.sin(9 * (x - time))]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize('how', ['half size', '50 fps', '12.5 fps', 'rotated', 'all'])
def test_a_video_saved_otherwise_is_still_the_same(tmp_path, how):
    pictures, rate = moving_texture(64, 64, 96), 25
    original = predict(Probe(), write(tmp_path / 'original.mp4', pictures), topk=7)['top']
    if how in ('half size', 'all'):
        pictures = moving_texture(64, 32, 48)
    if how in ('50 fps', 'all'):
        pictures, rate = pictures.repeat(2, axis=0), 50
    if how == '12.5 fps':
        pictures, rate = pictures[::2], Fraction(25, 2)
    if how in ('rotated', 'all'):
        pictures = np.rot90(pictures, axes=(1, 2))  # counterclockwise, as a phone held upright does
    path = write(tmp_path / 'other.mp4', pictures, rate)
    if how in ('rotated', 'all'):
        data = path.read_bytes()
        assert data.count(UPRIGHT) == 2  # of the file and of the track
        place = data.rindex(UPRIGHT)
        path.write_bytes(data[:place] + QUARTER + data[place + 36 :])
    other = predict(Probe(), path, topk=7)['top']

    assert other[0]['index'] == original[0]['index']
    scores = [{row['index']: row['score'] for row in top} for top in (original, other)]
    moved = max(abs(scores[0][i] - scores[1][i]) for i in range(7))
    assert original[0]['score'] - original[1]['score'] > 3 * moved
    # The probe tells it from the same texture played backwards, and from one not turned upright.
    backwards = predict(Probe(), moving_texture(64, 64, 96)[::-1].copy(), topk=1)['top']
    lying = predict(Probe(), np.rot90(moving_texture(64, 64, 96), axes=(1, 2)).copy(), topk=1)[
        'top'
    ]
    for changed in (backwards, lying):
        wrong = abs(changed[0]['score'] - scores[0][changed[0]['index']])
        assert wrong > 3 * moved
