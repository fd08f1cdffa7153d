"""The benchmark of gestures in a row: the videos that it makes, and what counts as said right."""

import random

import pytest
from support.videos import pictures, write_pictures

import bvtam


@pytest.fixture
def gestures(benchmark):
    return benchmark('gestures')


def event(label, start, end, time):
    return {'label': label, 'index': 0, 'score': 1.0, 'start': start, 'end': end, 'time': time}


def test_what_is_right(gestures):
    truth = [('up', 1.0, 3.0), ('down', 3.0, 5.0), ('left', 6.0, 8.0)]
    up, down, left = event('up', 1, 2.9, 3.0), event('down', 3, 4.9, 5.4), event('left', 6, 8, 8.4)
    assert gestures.judged([up, down, left], truth)[:3] == (3, 0, 0)
    assert gestures.judged([up, down, left], truth)[3] == pytest.approx([0.0, 0.4, 0.4])
    assert gestures.judged([up, left], truth)[:3] == (2, 0, 0)
    assert gestures.judged([up, {**down, 'label': 'up'}, left], truth)[:3] == (2, 0, 1)
    assert gestures.judged([up, down, {**left, 'time': 8.6}], truth)[:3] == (2, 0, 1)
    twice = event('left', 6, 6.5, 7.0)
    assert gestures.judged([up, down, twice, left], truth)[:3] == (2, 1, 1)
    assert gestures.judged([up, down], truth, ['left'])[:3] == (3, 0, 0)
    assert gestures.judged([up, down, left], truth, ['left'])[:3] == (2, 0, 1)
    assert gestures.judged([event('x', 5.1, 5.6, 5.8)], truth)[:3] == (0, 0, 1)


@pytest.mark.parametrize('number', range(5))
def test_the_videos(gestures, tmp_path, number):
    way = gestures.WAYS[number]
    clips = [
        write_pictures(tmp_path / label / '1.mp4', list(pictures(30, 64, 48)), 25)
        for label in ('a', 'b')
    ]
    path = tmp_path / 'row.mp4'
    truth = gestures.joined(path, clips, way, random.Random(0))
    reader = bvtam.open_video(path)
    assert [label for label, _, _ in truth] == ['a', 'b']
    for _, start, end in truth:
        assert end - start == pytest.approx(1.2, abs=1 / way.fps + 1e-6)
    frames = reader.read(range(reader.num_frames)).float()
    assert frames.shape[2:] == (way.size[1], way.size[0]) and round(reader.fps) == way.fps
    pause = truth[1][1] - truth[0][2]
    if way.pause == 'none':
        assert pause == 0 and reader.duration == pytest.approx(truth[1][2])
    else:
        assert 0.5 <= pause <= 1.5
        first = round(truth[0][2] * way.fps) + 1
        change = (frames[first + 1] - frames[first]).abs().mean()
        assert change < 2 and (frames[first].mean() < 20) == (way.pause == 'black')
