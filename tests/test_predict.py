"""`predict` against its own parts, put together the plain way."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from torch import nn

from bvtam.clip import ClipConfig
from bvtam.errors import BvtamError
from bvtam.inference.predict import predict

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
        self.modes = []

    def forward(self, x):
        self.modes.append((self.training, torch.is_inference_mode_enabled(), x.dtype))
        return torch.einsum('bcthw,kcthw->bk', x, self.weight)


@pytest.fixture
def video(tmp_path):
    """17 frames of 48 x 32, each of other random blocks."""
    path = tmp_path / 'blocks.mp4'
    random = np.random.default_rng(1)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
        for _ in range(17):
            blocks = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path


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
    assert all(mode == (False, True, torch.float32) for mode in model.modes)
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
        BvtamError, match='probe_8x2 takes single images; predict needs a video net'
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
