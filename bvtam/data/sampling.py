"""Which frames of a video make its test-time clips."""

from __future__ import annotations

from ..clip import SAMPLINGS
from ..errors import BvtamError


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
    if sampling not in SAMPLINGS:
        raise BvtamError(f'sampling must be one of {", ".join(SAMPLINGS)}, not {sampling!r}')
    counts = {
        'video_frames': video_frames,
        'num_frames': num_frames,
        'num_clips': num_clips,
        'frame_stride': frame_stride,
    }
    for name, value in counts.items():
        if value < 1:
            raise BvtamError(f'{name} must be at least 1, not {value}')

    if video_frames <= num_frames:
        clip = [i * video_frames // num_frames for i in range(num_frames)]
        return [list(clip) for _ in range(num_clips)]
    clips = _uniform if sampling == 'uniform' else _dense
    return clips(video_frames, num_frames, num_clips, frame_stride)


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
    # As numpy.linspace computes it: a step in floating point, the last start exact.
    step = span / max(1, num_clips - 1)
    starts = [int(c * step) for c in range(num_clips)]
    if num_clips > 1:
        starts[-1] = span
    return [[(start + stride * i) % video_frames for i in range(num_frames)] for start in starts]
