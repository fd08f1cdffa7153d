"""`windows` against windows cut by hand, each of them predicted as a video of its own."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.models import Notes
from torch import nn

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.video.in_memory import FrameArray
from bvtam.errors import BvtamError
from bvtam.inference.clips import cut
from bvtam.inference.predict import predict
from bvtam.inference.windows import windows, windows_many

CONFIG = ClipConfig(num_frames=4, resize=16, crop_size=16, num_clips=2, num_crops=3)


class Probe(nn.Module):
    """Five linear scores of all values of a clip."""

    num_classes, pretrained_cfg = 5, {'architecture': 'probe'}
    label_names = 'abcde'

    def __init__(self, clip=CONFIG):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3, 4, 16, 16, generator=generator) / 25)
        self.clip_config, self.sizes = clip, Notes()

    def forward(self, x):
        self.sizes.append(len(x))
        return torch.einsum('bcthw,kcthw->bk', x, self.weight)


def pictures(count):
    """(V, 16, 24, 3) random blocks."""
    values = np.random.default_rng(0).integers(0, 256, (count, 2, 3, 3), dtype=np.uint8)
    return values.repeat(8, axis=1).repeat(8, axis=2)


def by_hand(times, duration, every, length):
    """[(start, end, frames)] in exact arithmetic."""
    found, start = [], Fraction(0)
    while True:
        end = start + length
        if found and duration - start < length / 2:
            found[-1][1] = duration
            break
        found.append([start, min(end, duration)])
        if end >= duration:
            break
        start += every
    found[-1][1] = duration
    frames = []
    for start, end in found:
        inside = [i for i, time in enumerate(times) if start <= time < end]
        frames.append(inside or [max(i for i, time in enumerate(times) if time <= start)])
    return [(start, end, f) for (start, end), f in zip(found, frames, strict=True)]


# In 120ths of a second, so that frames often appear just as a window begins.
ticks = st.integers(1, 120)


@given(steps=st.lists(ticks, min_size=1, max_size=30), every=ticks, longer=st.integers(0, 240))
@example(steps=[12] * 8, every=12, longer=0)  # 3 * 0.1 is above 0.3 in floating point
def test_windows_cover_every_frame_of_a_video(steps, every, longer):
    times = [Fraction(sum(steps[:i]), 120) for i in range(len(steps))]
    duration, every, length = (Fraction(n, 120) for n in (sum(steps), every, every + longer))
    expected = by_hand(times, duration, every, length)
    as_read = torch.tensor([float(time) for time in times], dtype=torch.float64)
    found = cut(as_read, float(duration), float(every), float(length))

    assert [list(range(w.first, w.last)) for w in found] == [frames for _, _, frames in expected]
    assert [w.start for w in found] == pytest.approx([float(s) for s, _, _ in expected])
    assert [w.end for w in found] == pytest.approx([float(e) for _, e, _ in expected])
    assert {i for w in found for i in range(w.first, w.last)} == set(range(len(times)))
    assert all(w.end - w.start >= float(length) / 2 - 1e-6 for w in found[1:])


@pytest.mark.parametrize(
    'duration, every, length, expected',
    [
        (10, 4, 4, [(0, 4), (4, 8), (8, 10)]),  # half a window is one
        (9, 4, 4, [(0, 4), (4, 9)]),  # less goes to the one before
        (8, 4, 4, [(0, 4), (4, 8)]),
        (3, 4, 4, [(0, 3)]),
        (1, 4, 4, [(0, 1)]),
        (6, 1, 4, [(0, 4), (1, 5), (2, 6)]),  # none that would be a part of another
        (6.5, 1, 4, [(0, 4), (1, 5), (2, 6), (3, 6.5)]),
    ],
)
def test_the_end_of_a_video(duration, every, length, expected):
    times = torch.arange(duration * 2, dtype=torch.float64) / 2
    assert [(w.start, w.end) for w in cut(times, duration, every, length)] == expected


@pytest.mark.parametrize('every, length', [(1.0, None), (0.5, 1.2), (0.3, 0.3)])
@pytest.mark.parametrize('batch_size', [1, 5, 64])
def test_a_window_is_predicted_as_a_video_of_its_own(every, length, batch_size):
    frames, model, told = pictures(52), Probe(), []
    result = windows(
        model,
        FrameArray(frames, fps=10),
        every,
        length,
        topk=5,
        batch_size=batch_size,
        progress=lambda *n: told.append(n),
    )
    assert list(result) == ['video', 'model', 'every', 'length', 'windows']
    assert (result['video'], result['model']) == ('array', 'probe')
    assert (result['every'], result['length']) == (every, every if length is None else length)
    assert json.loads(json.dumps(result)) == result

    times = [Fraction(i, 10) for i in range(52)]
    seconds = [Fraction(str(n)) for n in (every, result['length'])]
    expected = by_hand(times, Fraction(52, 10), *seconds)
    views = len(expected) * 2 * 3
    assert model.sizes == [min(batch_size, views - i) for i in range(0, views, batch_size)]
    assert told == [(i, len(expected)) for i in range(len(expected) + 1)]
    for window, (start, end, inside) in zip(result['windows'], expected, strict=True):
        assert (window['start'], window['end']) == pytest.approx((float(start), float(end)))
        alone = predict(Probe(), frames[inside])
        assert window['frames'] == [inside[0] + i for i in alone['frames']]
        assert [row['index'] for row in window['top']] == [row['index'] for row in alone['top']]
        assert [row['score'] for row in window['top']] == pytest.approx(
            [row['score'] for row in alone['top']], abs=1e-6
        )
    winners = {window['top'][0]['label'] for window in result['windows']}
    assert len(winners) > 1  # or any mix-up of windows would pass


def test_one_window_is_what_predict_sees():
    frames = pictures(30)
    (window,) = windows(Probe(), frames, every=100, batch_size=1)['windows']
    whole = predict(Probe(), frames)
    assert (window['start'], window['end']) == (0, 1.2)
    assert window['frames'] == whole['frames'] and window['top'] == whole['top']


def test_windows_go_by_the_times_of_the_frames(tmp_path):
    path, ticks = tmp_path / 'uneven.mp4', [0, 1, 2, 3, 10, 20, 21, 22, 23]  # tenths
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.width, stream.height, stream.pix_fmt = 24, 16, 'yuv420p'
        for tick, picture in zip(ticks, pictures(9), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = tick, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = ClipConfig(num_frames=4, resize=16, crop_size=16)
    found = windows(Probe(clip), path, every=0.5, topk=1)
    assert found['video'] == str(path)
    assert [window['frames'] for window in found['windows']] == [
        [0, 1, 2, 3],
        [3, 3, 3, 3],  # still on screen
        [4, 4, 4, 4],
        [4, 4, 4, 4],
        [5, 6, 7, 8],
    ]


def test_a_long_video_is_read_some_windows_at_a_time():
    reads = []

    class Watched(FrameArray):
        def read_each(self, indices, function):
            reads.append(list(indices))
            return super().read_each(indices, function)

    clip = ClipConfig(num_frames=4, resize=16, crop_size=16)
    result = windows(Probe(clip), Watched(pictures(2000), fps=10), every=0.8, topk=1)
    assert len(result['windows']) == 250
    assert len(reads) == 16 and max(map(len, reads)) == 64
    assert sorted(index for read in reads for index in read) == sorted(
        index for window in result['windows'] for index in window['frames']
    )


def test_what_windows_cannot_do_says_so(tmp_path):
    frames = pictures(5)
    for every in (0, -1, float('nan'), float('inf')):
        with pytest.raises(BvtamError, match=r'every must be at least 0\.001 seconds, not'):
            windows(Probe(), frames, every)
    with pytest.raises(BvtamError, match=r'length 0\.5 is below every 1, so that some frames'):
        windows(Probe(), frames, 1, 0.5)
    with pytest.raises(BvtamError, match='batch_size must be from 1 to 10000, not 0'):
        windows(Probe(), frames, 1, batch_size=0)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.mp4'):
        windows(Probe(), tmp_path / 'nowhere.mp4', 1)

    class Gone(FrameArray):
        def read_each(self, indices, function):
            raise OSError('gone')

    model = Probe().train()
    with pytest.raises(OSError, match='gone'):
        windows(model, Gone(frames), 1)
    assert model.training


def test_one_video_is_not_taken_for_its_letters():
    video = str(Path(bvtam.__file__).parent / 'assets' / 'sample.mp4')
    (result,) = windows_many(Probe(), video, 2)
    assert result == windows(Probe(), video, 2)
