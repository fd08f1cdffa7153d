"""A net on frames one by one against the same net on the whole video."""

import json
import os
import threading
from types import SimpleNamespace

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cli import SAMPLE, run
from support.models import CLIP, assert_streams, classifier, clip, random_net

import bvtam
from bvtam.data.transforms import to_clip
from bvtam.data.video.open import open_video
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError
from bvtam.inference.stream import predict_stream
from bvtam.layers.tam import TAM
from bvtam.layers.temporal import temporal_op


@settings(deadline=None, max_examples=25)
@given(
    pairs=st.integers(1, 12),
    temporal=st.sampled_from(('tam', 'tsm', 'none')),
    temporal_range=st.sampled_from((1, 3, 5, 7)),
    causal=st.booleans(),
    height=st.integers(17, 70),
    width=st.integers(17, 70),
    batch=st.integers(1, 2),
)
def test_blvnet(pairs, temporal, temporal_range, causal, height, width, batch):
    causal = causal and temporal != 'tsm'
    net = random_net(
        'bvtam_tiny_8x2', temporal=temporal, temporal_range=temporal_range, causal=causal, width=8
    )
    stream, _ = assert_streams(net, clip(2 * pairs, height, width, batch))
    if causal or temporal == 'none':
        assert stream.delay == 0
    elif temporal_range == 3 or temporal == 'tsm':
        assert stream.delay == 2 * (1 + 3 + 2)  # a pair for each operator: stem, modules, layer 4


NETS = {
    'tam_resnet18_f8': {},
    'tsm_resnet50_f8': {'backbone': 'test_resnet', 'temporal_every': 2},
    'tam_resnet50_f8': {'backbone': 'test_resnet', 'temporal_pool': True},
    'tsn_resnet50_f8': {'backbone': 'test_resnet'},
}
BACKBONES = (
    'regnety_002',
    'regnetv_040',
    'convnext_atto',
    'efficientnet_b0',
    'mobilenetv3_small_050',
)


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('frames', [1, 2, 9, 16])
def test_resnets(name, frames):
    assert_streams(random_net(name, **NETS[name]), clip(frames, 40, 33))


@pytest.mark.parametrize('backbone', BACKBONES)
def test_other_backbones(backbone):
    assert_streams(random_net('tam_resnet50_f8', backbone=backbone, causal=False), clip(7, 64, 64))


def test_a_frame_may_change_once_it_is_pushed():
    net, video = random_net('bvtam_tiny_8x2'), clip(6, 32, 32)
    buffer = torch.empty(32, 32, 3, dtype=torch.float64)
    stream, steps = bvtam.stream(net), []
    for frame in video[0].unbind(1):
        buffer.copy_(frame.permute(1, 2, 0))
        steps += stream.push(buffer.permute(2, 0, 1)[None])
    with torch.no_grad():
        torch.testing.assert_close((steps + stream.finish())[-1].logits, net(video))


def test_a_causal_net_does_not_see_what_comes():
    for name, options in (
        ('bvtam_tiny_8x2', {}),
        ('tam_resnet50_f8', {'backbone': 'test_resnet', 'temporal_range': 5}),
    ):
        net, video = random_net(name, causal=True, **options), clip(12, 32, 32)
        changed = video.clone()
        changed[:, :, 8:] += 1
        steps = 8 // net.frames_per_step
        with torch.no_grad():
            before, after = net.forward_features(video), net.forward_features(changed)
        assert torch.equal(before[:, :, :steps], after[:, :, :steps])
        assert not torch.equal(before[:, :, steps:], after[:, :, steps:])
        stream, _ = assert_streams(net, video)
        assert stream.delay == 0


def test_causal_is_for_tam():
    with pytest.raises(BvtamError, match='causal=True is for'):
        temporal_op('tsm', 8, causal=True)
    with pytest.raises(BvtamError, match='leave out causal=True'):
        bvtam.create_model('tam_resnet50_f8', temporal_pool=True, causal=True)
    assert TAM(8, 3, causal=True).reach('pair') == (1, 0)


def test_the_running_answer_is_of_the_last_steps():
    net, video = random_net('bvtam_tiny_8x2'), clip(20, 32, 32)
    _, steps = assert_streams(net, video, last=3)
    with torch.no_grad():
        for step in steps:
            first = max(0, step.index - 2)
            x = torch.stack([s.features for s in steps[first : step.index + 1]], 2)
            torch.testing.assert_close(step.logits, net.forward_head(x))


def test_memory_is_constant():
    net = random_net('bvtam_tiny_8x2')
    stream, held = bvtam.stream(net, last=4), []
    for number in range(100):
        stream.push(clip(1, 32, 32, seed=number)[:, :, 0])
        held.append(sum(len(stage.held) for stage in stream._stages) + len(stream._recent))
    assert max(held) == max(held[:40]) <= 3 * len(stream._stages) + 4


def test_nets_without_classifier_or_pooling():
    net = bvtam.create_model('bvtam_tiny_8x2', num_classes=0).eval()
    video = torch.randn(1, 3, 8, 32, 32)
    *_, step = bvtam.stream(net)(video.unbind(2))
    assert step.logits is None
    with torch.no_grad():
        torch.testing.assert_close(step.embedding, net(video))
    net = bvtam.create_model('bvtam_tiny_8x2', num_classes=0, global_pool='').eval()
    *_, step = bvtam.stream(net)(video.unbind(2))
    assert step.embedding is None and step.features.shape[1] == net.num_features


def test_what_cannot_stream():
    with pytest.raises(BvtamError, match='BLResNet cannot stream'):
        bvtam.stream(bvtam.create_model('blresnet50'))
    net = bvtam.create_model('bvtam_tiny_8x2')
    with pytest.raises(BvtamError, match=r'call model.eval\(\) first'):
        bvtam.stream(net.train())
    with pytest.raises(BvtamError, match='last must be 1 step or more, not 0'):
        bvtam.stream(net.eval(), last=0)
    stream = bvtam.stream(net)
    with pytest.raises(ValueError, match=r'expected a frame \(B, C=3, H, W\), got .* \(3, 8, 8\)'):
        stream.push(torch.zeros(3, 8, 8))
    stream.push(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match='as before, got'):
        stream.push(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match='push the last one once more'):
        stream.finish()


def whole(net, video, indices):
    """Probabilities of one clip of these frames."""
    with torch.no_grad():
        return net(to_clip(open_video(video).read(indices), CLIP)).softmax(1)[0]


@pytest.mark.parametrize(
    ('name', 'options'),
    [('bvtam_tiny_8x2', {}), ('tam_resnet50_f8', {'backbone': 'test_resnet'})],
    ids=['bvtam', 'resnet'],
)
def test_answers_about_a_file(name, options):
    net, reader = classifier(name, **options), open_video(SAMPLE)
    answers = list(predict_stream(net, SAMPLE, topk=5))
    per_step = net.frames_per_step
    assert reader.num_frames % 2 == 0
    assert [a['frame'] for a in answers] == list(range(per_step - 1, reader.num_frames, per_step))
    times = reader.times[per_step - 1 :: per_step]
    assert [a['time'] for a in answers] == pytest.approx(times.tolist(), abs=1e-6)
    want = whole(net, SAMPLE, range(reader.num_frames))
    got = {t['index']: t['score'] for t in answers[-1]['top']}
    assert [got[i] for i in range(5)] == pytest.approx(want.tolist(), abs=1e-5)


def test_fewer_frames_a_second_and_a_lone_last_one():
    net, reader = classifier(), open_video(SAMPLE)
    answers = list(predict_stream(net, SAMPLE, topk=5, fps=reader.fps / 2))
    assert [a['frame'] for a in answers] == list(range(2, reader.num_frames, 4))
    video = torch.zeros(7, 3, 40, 50, dtype=torch.uint8).random_(0, 256)
    (*_, last) = predict_stream(net, video, topk=5)
    want = whole(net, video, [0, 1, 2, 3, 4, 5, 6, 6])
    got = {t['index']: t['score'] for t in last['top']}
    assert last['frame'] == 6
    assert [got[i] for i in range(5)] == pytest.approx(want.tolist(), abs=1e-5)
    with pytest.raises(BvtamError, match='fps must be above 0, not 0'):
        next(predict_stream(net, video, fps=0))


def test_a_gap_in_a_video_is_not_made_up_for(monkeypatch):
    seconds = [0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 5.1, 5.2, 5.3, 5.4]
    pictures = torch.zeros(10, 3, 40, 50, dtype=torch.uint8)
    video = SimpleNamespace(play=lambda: zip(seconds, pictures, strict=True))
    monkeypatch.setattr('bvtam.inference.stream.open_video', lambda *args: video)
    net = classifier('tam_resnet50_f8', backbone='test_resnet')
    answers = list(predict_stream(net, 'camera', fps=5))
    assert [a['time'] for a in answers] == [0.0, 0.2, 0.4, 5.0, 5.2, 5.4]


def write(path, frames):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg2video', rate=25, options={'bf': '0'})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], 'yuv420p'
        for frame in frames.permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode(None))


def test_a_pipe_is_answered_while_it_comes(tmp_path):
    """Half of a video is enough for answers about it."""
    path, pipe = tmp_path / 'video.ts', tmp_path / 'pipe'
    frames = torch.zeros(200, 3, 48, 64, dtype=torch.uint8).random_(0, 256)
    write(path, frames)
    os.mkfifo(pipe)
    data, went_on = path.read_bytes(), threading.Event()

    def feed():
        with open(pipe, 'wb', buffering=0) as file:
            file.write(data[: len(data) // 2])
            assert went_on.wait(60)
            file.write(data[len(data) // 2 :])

    thread = threading.Thread(target=feed)
    thread.start()
    net = classifier()
    answers = predict_stream(net, pipe)
    early = [next(answers) for _ in range(5)]
    went_on.set()
    answers = early + list(answers)
    thread.join()
    assert answers == list(predict_stream(net, path)) and len(answers) == 100


def test_a_pipe_that_stalls_is_given_up(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    try:
        for data in (b'', SAMPLE.read_bytes()[:1000]):
            os.write(writer, data)
            with pytest.raises(VideoError, match=r'pipe gave nothing for 0.5 s'):
                list(predict_stream(classifier(), pipe, time_limit=0.5))
    finally:
        os.close(writer)


def test_play_gives_all_frames(tmp_path):
    for source in (SAMPLE, torch.zeros(5, 3, 8, 9, dtype=torch.uint8).random_(0, 256)):
        reader = open_video(source)
        times, frames = zip(*reader.play(), strict=True)
        assert list(times) == pytest.approx(reader.times.tolist(), abs=1e-6)
        assert torch.equal(torch.stack(frames), reader.read(range(reader.num_frames)))
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(SAMPLE.read_bytes()[:-3000])
    with pytest.raises(VideoError):
        list(open_video(broken).play())


def test_the_command(capfd, tmp_path):
    folder = bvtam.save_pretrained(classifier(), tmp_path / 'bvtam_tiny_8x2.own')

    def predict(*args):
        return run(capfd, 'predict', *args, '--model', f'local-dir:{folder}')

    code, out, err = predict(SAMPLE, '--stream', '--json', '--topk', 2, '--last', 4)
    loaded = bvtam.create_model(f'local-dir:{folder}', pretrained=True).eval()
    want = list(predict_stream(bvtam.optimize(loaded),
                               SAMPLE, topk=2, last=4))  # fmt: skip
    assert code == 0 and json.loads(out) == want and not err
    code, out, _ = predict(SAMPLE, '--stream')
    assert code == 0 and ' s  0.' in out
    for args, message in (
        (['--last', 2], '--last is for --stream'),
        (['--stream', '--every', 2], '--every is not for --stream'),
        (['--stream', SAMPLE], '--stream is of one video'),
    ):
        code, _, err = predict(SAMPLE, *args)
        assert code == 2 and message in ' '.join(err.replace('│', '').split())
