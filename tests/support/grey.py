"""Videos whose grey levels tell which video and which frame a picture is."""

import numpy as np

from .videos import save

FRAMES, FPS, SIDE = 8, 4, 32


def level(video, frame):
    """Grey level of a frame of one of 5 videos; all 40 of them are 6 apart."""
    return 10 + 48 * video + 6 * frame


def which(clip):
    """(video, frame) of each frame of a clip (C, T, S, S)."""
    return [divmod(round((float(f.float().mean()) - 10) / 6), FRAMES) for f in clip.unbind(1)]


def write_grey(path, video):
    frames = (np.full((SIDE, SIDE, 3), level(video, i), np.uint8) for i in range(FRAMES))
    save(path, 'mpeg4', frames, rate=FPS, bit_rate=1_000_000)


def same(one, two):
    """Whether two samples or batches are equal."""
    return one.keys() == two.keys() and all(
        one[key].equal(two[key]) if hasattr(one[key], 'equal') else one[key] == two[key]
        for key in one
    )
