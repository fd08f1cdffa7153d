"""Frame indices against the official loader and plain references."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import golden

from bvtam.data.sampling import clip_indices, sample_seed, train_indices
from bvtam.errors import BvtamError

ROWS = json.loads((golden.FOLDER / 'test_sampling.json').read_text())['rows']


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
            start = Fraction(i * video_frames, num_frames)
            assert frame < start + Fraction(video_frames, num_frames) and frame + 1 > start


@given(st.integers(1, 64), st.integers(1, 500), st.integers(1, 12), st.integers(1, 8))
def test_dense_starts_are_numpys_and_wrap_around(num_frames, more, num_clips, stride):
    video_frames = num_frames + more
    starts = np.linspace(0, max(0, video_frames - num_frames * stride), num_clips).astype(int)
    clips = clip_indices(video_frames, num_frames, num_clips, 'dense', stride)
    assert clips == [
        [(int(start) + stride * i) % video_frames for i in range(num_frames)] for start in starts
    ]


def draw(seed, *args, **settings):
    return train_indices(*args, torch.Generator().manual_seed(seed), **settings)


@given(
    st.integers(1, 64),
    st.integers(1, 500),
    st.integers(0, 2**64 - 1),
    st.sampled_from(['shared', 'segment']),
)
def test_training_takes_a_frame_of_each_segment(num_frames, more, seed, offsets):
    video_frames = num_frames + more
    clip = draw(seed, video_frames, num_frames, offsets=offsets)
    assert len(clip) == num_frames and clip == sorted(clip)
    lowest, highest = Fraction(0), Fraction(video_frames, num_frames)
    for i, frame in enumerate(clip):
        start = Fraction(i * video_frames, num_frames)
        assert frame < start + Fraction(video_frames, num_frames) and frame + 1 > start
        lowest, highest = max(lowest, frame - start), min(highest, frame + 1 - start)
    if offsets == 'shared':  # some one offset lies in all of these frames
        assert lowest < highest and len(set(clip)) == num_frames


def test_where_segments_are_whole_frames_offsets_are_the_official_ones():
    clips = [draw(seed, 40, 4) for seed in range(300)]
    assert {tuple(clip) for clip in clips} == {(o, 10 + o, 20 + o, 30 + o) for o in range(10)}


def test_offsets_of_segments_are_independent():
    clips = [draw(seed, 40, 4, offsets='segment') for seed in range(2000)]
    assert {(clip[0], clip[3]) for clip in clips} == {
        (a, b) for a in range(10) for b in range(30, 40)
    }


@pytest.mark.parametrize('offsets', ['shared', 'segment'])
def test_each_frame_is_as_likely_as_its_share_of_the_segment(offsets):
    video_frames, num_frames, draws = 13, 4, 4000
    clips = np.array([draw(seed, 13, 4, offsets=offsets) for seed in range(draws)])
    tick = video_frames / num_frames
    for i in range(num_frames):
        for frame in range(video_frames):
            share = max(0, min(frame + 1, (i + 1) * tick) - max(frame, i * tick)) / tick
            count = (clips[:, i] == frame).sum()
            assert abs(count - draws * share) <= 4 * (draws * share * (1 - share)) ** 0.5


@given(st.integers(1, 20), st.integers(1, 90), st.integers(1, 6), st.integers(0, 99))
def test_dense_training_clips_start_anywhere_and_wrap_around(num_frames, more, stride, seed):
    video_frames = num_frames + more
    clip = draw(seed, video_frames, num_frames, sampling='dense', frame_stride=stride)
    assert 0 <= clip[0] <= max(0, video_frames - num_frames * stride)
    assert clip == [(clip[0] + stride * i) % video_frames for i in range(num_frames)]


def test_dense_training_starts_are_those_between_the_tests_first_and_last():
    starts = [draw(s, 30, 4, sampling='dense', frame_stride=5)[0] for s in range(400)]
    ends = [clip[0] for clip in clip_indices(30, 4, 2, 'dense', 5)]
    assert set(starts) == set(range(ends[0], ends[1] + 1)) and len(set(starts)) == 11


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from(['uniform', 'dense']))
def test_short_videos_train_on_the_clip_of_the_test(short, more, sampling):
    generator = torch.Generator()
    before = generator.get_state()
    clip = train_indices(short, short + more, generator, sampling, 3, 'segment')
    assert [clip] == clip_indices(short, short + more, 1, sampling, 3)
    assert torch.equal(generator.get_state(), before)


def test_only_the_given_generator_decides():
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(7)
    drawn = [train_indices(500, 8, generator, offsets=o) for o in ('shared', 'segment') * 2]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(clip) for clip in drawn}) == 4
    torch.manual_seed(1)
    generator.manual_seed(7)
    assert drawn == [train_indices(500, 8, generator, offsets=o) for o in ('shared', 'segment') * 2]


def test_sample_seeds_are_those_of_b2sum():
    # printf 0,0,0 | b2sum -l 64; its bytes in reverse.
    assert sample_seed(0, 0, 0) == 0xFE82A2578E1C3E3F
    assert sample_seed(1, 2, np.int64(3)) == 0x2A1C1F70103935E2
    assert sample_seed(-1, 0, 2**32) == 0x14F86CEBAEA078DD
    seeds = {sample_seed(*key) for key in np.ndindex(4, 5, 200)}
    assert len(seeds) == 4000 and all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) == torch.Generator().manual_seed(max(seeds)).initial_seed()


def test_sampling_refuses_nonsense():
    with pytest.raises(BvtamError, match=r"sampling must be one of uniform, dense, not 'random'"):
        clip_indices(10, 4, sampling='random')
    with pytest.raises(BvtamError, match='video_frames must be at least 1, not 0'):
        clip_indices(0, 4)
    with pytest.raises(BvtamError, match='frame_stride must be at least 1, not -2'):
        clip_indices(10, 4, sampling='dense', frame_stride=-2)
    generator = torch.Generator()
    with pytest.raises(BvtamError, match=r"offsets must be one of shared, segment, not 'tsn'"):
        train_indices(10, 4, generator, offsets='tsn')
    with pytest.raises(BvtamError, match=r"sampling must be one of uniform, dense, not 'tsn'"):
        train_indices(10, 4, generator, sampling='tsn')
    with pytest.raises(BvtamError, match='num_frames must be at least 1, not 0'):
        train_indices(10, 0, generator)
