"""Frame indices against the official loader and plain references."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvtam.data.sampling import clip_indices
from bvtam.errors import BvtamError

ROWS = json.loads((Path(__file__).parent / 'data' / 'test_sampling.json').read_text())['rows']


@pytest.mark.parametrize('row', ROWS, ids=lambda r: f'{r["sampling"]}-{r["video_frames"]}')
def test_indices_equal_the_official_loaders(row):
    settings = {key: value for key, value in row.items() if key != 'indices_from_0'}
    clips = clip_indices(**settings)
    assert [len(clip) for clip in clips] == [row['num_frames']] * row['num_clips']
    assert [index for clip in clips for index in clip] == row['indices_from_0']


@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.sampled_from(['uniform', 'dense'])
)
def test_short_videos_repeat_their_frames_evenly(short, more, num_clips, sampling):
    num_frames = short + more - 1
    clips = clip_indices(short, num_frames, num_clips, sampling, frame_stride=3)
    assert clips == [clips[0]] * num_clips
    assert clips[0] == sorted(clips[0])
    counts = np.bincount(clips[0], minlength=short)
    assert len(counts) == short and counts.sum() == num_frames
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 64), st.integers(1, 500), st.integers(1, 12))
def test_uniform_frames_stay_in_their_segments(num_frames, more, num_clips):
    video_frames = num_frames + more
    for clip in clip_indices(video_frames, num_frames, num_clips):
        for i, frame in enumerate(clip):
            start, end = (
                Fraction(i * video_frames, num_frames),
                Fraction((i + 1) * video_frames, num_frames),
            )
            assert frame < end and frame + 1 > start


@given(st.integers(1, 64), st.integers(1, 500), st.integers(1, 12), st.integers(1, 8))
def test_dense_starts_are_numpys_and_wrap_around(num_frames, more, num_clips, stride):
    video_frames = num_frames + more
    starts = np.linspace(0, max(0, video_frames - num_frames * stride), num_clips).astype(int)
    clips = clip_indices(video_frames, num_frames, num_clips, 'dense', stride)
    assert clips == [
        [(int(start) + stride * i) % video_frames for i in range(num_frames)] for start in starts
    ]


def test_sampling_refuses_nonsense():
    with pytest.raises(BvtamError, match=r"sampling must be one of uniform, dense, not 'random'"):
        clip_indices(10, 4, sampling='random')
    with pytest.raises(BvtamError, match='video_frames must be at least 1, not 0'):
        clip_indices(0, 4)
    with pytest.raises(BvtamError, match='frame_stride must be at least 1, not -2'):
        clip_indices(10, 4, sampling='dense', frame_stride=-2)
