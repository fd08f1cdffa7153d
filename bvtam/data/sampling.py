"""The frames of a video that are picked for its clips, in testing and in training."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch

from ..clip import SAMPLINGS, ClipConfig
from ..errors import BvtamError

OFFSETS = ('shared', 'segment')


def clip_indices(
    video_frames: int,
    num_frames: int,
    num_clips: int = 1,
    sampling: str = 'uniform',
    frame_stride: int = 1,
) -> list[list[int]]:
    """Frame indices, counted from 0, of every test-time clip of one video.

    'uniform' cuts the video into T equal segments and takes the frame in the middle of each;
    further clips move all of these by one frame to either side, never out of their segment.
    'dense' takes every `frame_stride`-th frame from starts spread over the video, and goes on at
    its beginning where the video ends too early. Both equal the official loader's indices
    (IBM/action-recognition-pytorch).

    A video of V <= T frames gives the same clip every time: frame i*V//T at place i, so that all
    frames come in order and each is repeated as often as any other, give or take one.

    Args:
        video_frames: frames V in the video.
        num_frames: frames T in a clip.
        num_clips: clips C of the video.
        sampling: 'uniform' or 'dense'.
        frame_stride: distance between the frames of a dense clip, in frames of the video.

    Returns:
        C lists of T indices, each in [0, V).

    Raises:
        BvtamError: an unknown `sampling`, or a count or stride below 1.
    """
    _check(
        sampling,
        video_frames=video_frames,
        num_frames=num_frames,
        num_clips=num_clips,
        frame_stride=frame_stride,
    )
    if video_frames <= num_frames:
        return [_repeated(video_frames, num_frames) for _ in range(num_clips)]
    clips = _uniform if sampling == 'uniform' else _dense
    return clips(video_frames, num_frames, num_clips, frame_stride)


def view_indices(clip: ClipConfig, video_frames: int, first: int = 0) -> list[list[int]]:
    """`clip_indices` as `clip` says, of a video or of a part of one that begins at the frame `first`."""
    clips = clip_indices(
        video_frames, clip.num_frames, clip.num_clips, clip.sampling, clip.frame_stride
    )
    return [[first + i for i in indices] for indices in clips]


def train_indices(
    video_frames: int,
    num_frames: int,
    generator: torch.Generator,
    sampling: str = 'uniform',
    frame_stride: int = 1,
    offsets: str = 'shared',
) -> list[int]:
    """Frame indices, counted from 0, of one random clip of a video, for training.

    'uniform' cuts the video into T equal segments, whose bounds may lie inside a frame, and takes
    one frame of each: at the same random offset in all of them ('shared', the official loader of
    IBM/action-recognition-pytorch), or at one drawn for each ('segment', TSN). A frame is as likely
    as the share of the segment that it fills. Where T divides V this is the official rule. Elsewhere
    that rounds the segments down to V//T frames and never sees the V mod T last frames, up to half
    of a video, which the test-time clips do see.
    'dense' takes every `frame_stride`-th frame from a random start, from 0 to V - T*stride, and goes
    on at the video's beginning where it ends too early.

    A video of V <= T frames leaves nothing to draw: it gives the clip of `clip_indices`.

    Args:
        video_frames, num_frames, sampling, frame_stride: as of `clip_indices`.
        generator: the only source of randomness, on the CPU.
        offsets: 'shared' or 'segment', for uniform sampling.

    Returns:
        T indices, each in [0, V); those of a uniform clip in order.

    Raises:
        BvtamError: an unknown `sampling` or `offsets`, or a count or stride below 1.
    """
    _check(sampling, video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    if offsets not in OFFSETS:
        raise BvtamError(f'offsets must be one of {", ".join(OFFSETS)}, not {offsets!r}')
    if video_frames <= num_frames:
        return _repeated(video_frames, num_frames)
    if sampling == 'dense':
        starts = max(0, video_frames - num_frames * frame_stride) + 1
        start = int(torch.randint(starts, (), generator=generator))
        return [(start + frame_stride * i) % video_frames for i in range(num_frames)]
    # In T-ths of a frame a segment is V long, and every offset in it a whole number.
    draws = 1 if offsets == 'shared' else num_frames
    offset = torch.randint(video_frames, (draws,), generator=generator)
    return ((torch.arange(num_frames) * video_frames + offset) // num_frames).tolist()


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed in [0, 2**64) of everything random about one training sample.

    It is the first 8 bytes of the BLAKE2b hash of the text 'seed,epoch,index', little endian: the
    same on every machine and in every version, whichever process loads the sample and whatever was
    loaded before it. `torch.Generator().manual_seed(sample_seed(...))` draws its frames and its
    augmentation anew.
    """
    text = f'{int(seed)},{int(epoch)},{int(index)}'
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), 'little')


def _check(sampling: str, **counts: int) -> None:
    if sampling not in SAMPLINGS:
        raise BvtamError(f'sampling must be one of {", ".join(SAMPLINGS)}, not {sampling!r}')
    for name, value in counts.items():
        if value < 1:
            raise BvtamError(f'{name} must be at least 1, not {value}')


def _repeated(video_frames: int, num_frames: int) -> list[int]:
    """The one clip of a video that is no longer than it."""
    return [i * video_frames // num_frames for i in range(num_frames)]


def _uniform(video_frames: int, num_frames: int, num_clips: int, _stride: int) -> list[list[int]]:
    # In floating point, since the released scores were measured with its rounding. The bounds are
    # exact: frame f lasts from f to f+1, and may be taken for any segment that it reaches into.
    tick = video_frames / num_frames
    return [
        [
            min(
                max(int(tick / 2 + shift + tick * i), i * video_frames // num_frames),
                ((i + 1) * video_frames - 1) // num_frames,
            )
            for i in range(num_frames)
        ]
        for shift in range(-((num_clips - 1) // 2), num_clips // 2 + 1)
    ]


def _dense(video_frames: int, num_frames: int, num_clips: int, stride: int) -> list[list[int]]:
    span = max(0, video_frames - num_frames * stride)
    starts = np.linspace(0, span, num_clips).astype(int).tolist()
    return [[(start + stride * i) % video_frames for i in range(num_frames)] for start in starts]
