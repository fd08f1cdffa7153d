"""Gestures in a stream: each said once, soon after its end, by times and not by numbers of frames."""

import json
import os
import threading
from types import SimpleNamespace

import pytest
import torch
from support.cli import SAMPLE, run
from support.models import classifier
from support.videos import save, write_pictures
from torch import nn

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError
from bvtam.inference.events import _LONGEST, Events, events

SIZE, SECONDS = 64, 1.2  # of the picture in pixels, of a gesture


class Way(nn.Module):
    """Says where the brightest part of a clip goes, as sure as `gain` makes it; counts its clips."""

    in_chans, num_classes = 3, 3
    clip_config = ClipConfig(num_frames=8, resize=SIZE, crop_size=SIZE)

    def __init__(self, gain=1.0, labels=('left', 'right', 'quiet')):
        super().__init__()
        self.gain, self.label_names, self.asked = gain, list(labels), []
        self.eval()

    def forward(self, x):
        self.asked.append(x)
        columns = (x - x.amin((3, 4), keepdim=True)).mean((1, 3)).pow(4)  # (B, T, W)
        places = columns @ torch.arange(float(SIZE)) / columns.sum(-1)
        way = places[:, -1] - places[:, 0]
        return self.gain * torch.stack([-way, way, 10 - way.abs()], 1)


def square(place, drift=0.0):
    picture = torch.full((3, SIZE, SIZE), 60, dtype=torch.uint8)
    stripes = (torch.arange(SIZE) + round(drift)) // 8 % 2 * 12
    picture += stripes.to(torch.uint8)
    left = round(place)
    picture[:, 24:40, left : left + 16] = 250
    return picture


def scene(plan, fps, drift=0.0, place=4.0):
    """(seconds, frame) of moves of a square: 'right' and 'left' take SECONDS, numbers are rests."""
    now, frames, ends = 0.0, [], []
    for part in plan:
        way = {'right': 40, 'left': -40}.get(part, 0)
        lasting = SECONDS if way else part
        count = round(lasting * fps)
        for i in range(count):
            second = now + i / fps
            moved = square(place + way * i / count, drift * second)
            frames.append((second, moved))
        place, now = place + way, now + count / fps
        if way:
            ends.append((part, now))
    return frames, ends


def write(path, frames, fps):
    return write_pictures(path, [frame.permute(1, 2, 0).numpy() for _, frame in frames], fps)


def found(finder, frames):
    said = [event for second, frame in frames for event in finder.push(second, frame)]
    return said, finder.finish()


@pytest.mark.parametrize('fps', [10, 15, 30])
def test_each_gesture_is_said_once_within_half_a_second(fps):
    model = Way()
    frames, ends = scene([1, 'right', 1, 'left', 0.7, 'right', 3, 'left', 1], fps)
    said, late = found(Events(model), frames)
    assert [event['label'] for event in said] == [label for label, _ in ends] and not late
    for event, (_, end) in zip(said, ends, strict=True):
        assert end - 0.15 <= event['end'] <= end + 0.15
        assert event['start'] == pytest.approx(end - SECONDS, abs=0.25)
        assert event['end'] < event['time'] <= end + 0.5 and event['score'] > 0.9
    assert len(model.asked) == len(ends)  # nothing can flicker


def test_the_score_is_that_of_the_piece_of_the_video():
    net = classifier()
    frames, _ = scene([1, 'right', 1, 'left', 1], 25)
    said, _ = found(Events(net, threshold=0), frames)
    assert len(said) == 2
    for event in said:
        piece = [p for second, p in frames if event['start'] - 0.4 < second <= event['end'] + 1e-9]
        want = bvtam.predict(net, torch.stack(piece), topk=1)['top'][0]
        assert event['index'] == want['index']
        assert event['score'] == pytest.approx(want['score'], abs=1e-5)


def test_the_threshold():
    frames, _ = scene([1, 'right', 1], 20)
    (event,), _ = found(Events(Way(gain=0.03)), frames)
    assert 0.5 < event['score'] < 0.9
    for change, count in ((-0.01, 1), (0.01, 0)):
        said, _ = found(Events(Way(gain=0.03), threshold=event['score'] + change), frames)
        assert len(said) == count


def test_a_rest_below_the_hold_is_part_of_a_gesture():
    frames, _ = scene([1, 'right', 0.3, 'left', 1], 30)
    for hold, count in ((0.2, 2), (0.35, 1)):
        model = Way()
        said, _ = found(Events(model, threshold=0, hold=hold, quiet=[]), frames)
        assert len(said) == count and len(model.asked) == 2  # the first may have been one
        assert said[-1]['time'] == pytest.approx(said[-1]['end'] + hold, abs=0.04)


def test_quiet_classes():
    frames, _ = scene([1, 'right', 1, 'left', 1], 20)
    for labels, quiet, want in (
        (('left', 'right', 'x'), None, ['right', 'left']),
        (('left', 'No_Gesture', 'x'), None, ['left']),
        (('left', 'No_Gesture', 'x'), ['left'], ['No_Gesture']),
        (('left', 'No_Gesture', 'x'), [], ['No_Gesture', 'left']),
    ):
        said, _ = found(Events(Way(labels=labels), quiet=quiet), frames)
        assert [event['label'] for event in said] == want
    assert Events(Way()).quiet == ('quiet',)
    assert Events(classifier()).quiet == ()


def test_what_moves_before_the_end_is_said_at_the_end():
    frames, _ = scene([1, 'right'], 20)
    finder = Events(Way())
    for _ in range(2):  # it is ready for another video
        said, late = found(finder, frames)
        assert not said and [event['label'] for event in late] == ['right']
        assert late[0]['time'] == frames[-1][0]
    assert Events(Way()).finish() == []


def test_a_cut_or_a_gap_ends_a_gesture():
    one, _ = scene([0.5, 'right'], 20)
    two, _ = scene(['left', 1], 20, place=44.0)
    last = one[-1][0]
    brighter = [(second + last + 0.05, frame // 2 + 100) for second, frame in two]
    said, _ = found(Events(Way()), one + brighter)
    assert [event['label'] for event in said] == ['right', 'left']
    assert said[0]['time'] == brighter[0][0] <= said[1]['start']
    later = [(second + last + 3, frame) for second, frame in one]
    said, _ = found(Events(Way()), one + later)
    assert [event['label'] for event in said] == ['right']
    assert said[0]['end'] == pytest.approx(last) and said[0]['time'] == later[0][0]


def test_a_background_that_moves_all_the_time():
    frames, ends = scene([2, 'right', 2, 'left', 2], 20, drift=20.0)
    said, _ = found(Events(Way()), frames)
    assert [event['label'] for event in said] == ['right', 'left']
    assert all(e['time'] <= end + 0.5 for e, (_, end) in zip(said, ends, strict=True))


def test_noise_and_twitches_are_no_gestures():
    generator, model = torch.Generator().manual_seed(0), Way()
    frames = []
    for i in range(200):
        noise = torch.randint(0, 13, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        frames.append((i / 20, square(30 if 100 <= i < 104 else 20) // 2 + noise))
    assert found(Events(model, threshold=0), frames) == ([], []) and not model.asked


def test_memory_is_constant():
    finder, held = Events(Way()), []
    for second, frame in scene([1, 'right', 1, 'left'] * 10, 30)[0]:
        finder.push(second, frame)
        held.append(len(finder._frames))
    assert max(held) <= 30 * _LONGEST + 1 < len(held) / 4


def test_fewer_frames_a_second(monkeypatch):
    frames, _ = scene([1, 'right', 1], 60)
    video = SimpleNamespace(play=lambda: iter(frames))
    monkeypatch.setattr('bvtam.inference.events.open_video', lambda *args: video)
    for fps in (30.0, 10.0):
        seen = []
        monkeypatch.setattr(
            Events, 'push', lambda self, second, frame, seen=seen: seen.append(second) or []
        )
        list(events(Way(), 'camera', fps=fps))
        assert len(seen) == pytest.approx(len(frames) / 60 * fps, abs=1)


def test_events_before_damage_are_said(monkeypatch):
    frames, _ = scene([1, 'right', 1, 'left'], 20)

    def play():
        yield from frames
        raise VideoError('camera: damaged')

    monkeypatch.setattr(
        'bvtam.inference.events.open_video', lambda *args: SimpleNamespace(play=play)
    )
    answers = events(Way(), 'camera')
    assert next(answers)['label'] == 'right'
    with pytest.raises(VideoError, match='camera: damaged'):
        next(answers)


def test_a_pipe_is_answered_while_it_comes(tmp_path):
    path, pipe = tmp_path / 'video.ts', tmp_path / 'pipe'
    frames, _ = scene([1, 'right', 1, 'left', 1, 'right', 1], 25)
    pictures = [frame.permute(1, 2, 0).numpy() for _, frame in frames]
    save(path, 'mpeg2video', pictures, {'bf': '0'}, rate=25)
    os.mkfifo(pipe)
    data, went_on = path.read_bytes(), threading.Event()

    def feed():
        with open(pipe, 'wb', buffering=0) as file:
            file.write(data[: len(data) * 3 // 4])
            assert went_on.wait(60)
            file.write(data[len(data) * 3 // 4 :])

    thread = threading.Thread(target=feed)
    thread.start()
    answers = bvtam.events(Way(), pipe)
    early = next(answers)
    went_on.set()
    said = [early, *answers]
    thread.join()
    assert [event['label'] for event in said] == ['right', 'left', 'right']


def test_bad_options():
    for options, message in (
        ({'threshold': 1.5}, 'threshold must be from 0 to 1, not 1.5'),
        ({'threshold': float('nan')}, 'threshold must be from 0 to 1, not nan'),
        ({'hold': 0}, 'hold must be above 0 and at most 5 s, not 0'),
        ({'quiet': ['quite']}, "quiet: no class of the model is 'quite'.*quiet"),
    ):
        with pytest.raises(BvtamError, match=message):
            Events(Way(), **options)
    with pytest.raises(BvtamError, match='fps must be above 0, not 0'):
        next(events(Way(), torch.zeros(3, 3, 8, 8, dtype=torch.uint8), fps=0))
    with pytest.raises(BvtamError, match='threshold must be'):  # at once, not with the first frame
        events(Way(), 'camera', threshold=7)
    with pytest.raises(BvtamError, match='fps must be 1 or more to see gestures, not 0.5'):
        events(Way(), 'camera', fps=0.5)
    with pytest.raises(BvtamError, match='takes single images'):
        Events(bvtam.create_model('blresnet50'))


def test_the_command(capfd, tmp_path):
    net = classifier()
    net.label_names = ['a', 'b', 'c', 'd', 'idle']
    folder = bvtam.save_pretrained(net, tmp_path / 'bvtam_tiny_8x2.own')
    video = tmp_path / 'video.mp4'
    frames, _ = scene([1, 'right', 1, 'left', 1], 20)
    write(video, frames, 20)

    def predict(*args):
        return run(capfd, 'predict', *args, '--model', f'local-dir:{folder}')

    loaded = bvtam.optimize(bvtam.create_model(f'local-dir:{folder}', pretrained=True).eval())
    want = list(events(loaded, video, 0.1, 0.3, ['idle', 'b']))
    options = ['--stream', '--events', '--threshold', 0.1, '--hold', 0.3, '--quiet', 'b']
    code, out, err = predict(video, *options, '--json')
    assert code == 0 and [json.loads(line) for line in out.splitlines()] == want and len(want) > 0
    assert err == 'never said: idle, b\n'
    code, out, err = predict(video, '--stream', '--events', '--threshold', 0)
    assert code == 0 and err == 'never said: idle\n'
    assert f' s  {want[0]["score"]:.4f}  {want[0]["label"]}  (' in out
    for args, message in (
        (['--events'], '--events is for --stream'),
        (['--stream', '--hold', 1], '--hold is for --events'),
        (['--stream', '--events', '--last', 3], '--last is not for --events'),
        (['--stream', '--events', '--topk', 3], '--topk is not for --events'),
    ):
        code, _, err = predict(SAMPLE, *args)
        assert code == 2 and message in ' '.join(err.replace('│', '').split())
    code, _, err = predict(SAMPLE, '--stream', '--events', '--quiet', 'z')
    assert code == 1 and err.startswith("bvtam: quiet: no class of the model is 'z'"), err
