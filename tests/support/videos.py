"""Videos of every container and codec that PyAV writes, and their frames by a plain decode."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

FRAMES = 36

GOP = {'g': '8'}


def pictures(count, width, height):
    """A texture that moves; every picture is another."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (2 * height, 2 * width, 3), np.uint8)
    texture = np.kron(texture[::8, ::8], np.ones((8, 8, 1), np.uint8))
    for i in range(count):
        yield np.roll(texture, (i, 2 * i), (0, 1))[:height, :width].copy()


def write(path, codec, options, pixels, ticks=None, size=(64, 48)):
    """A video at 25 frames a second, or with its frames at `ticks` of 1/90000 s."""
    if codec not in av.codecs_available:
        pytest.skip(f'this PyAV has no {codec}')
    fragments = {'movflags': 'frag_keyframe+empty_moov'} if path.stem == 'fragments' else {}
    format = 'mjpeg' if path.suffix == '.mjpeg' else None
    with av.open(str(path), 'w', options=fragments, format=format) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        stream.codec_context.thread_count = 1
        if ticks is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        for i, picture in enumerate(pictures(FRAMES, *size)):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            if ticks is not None:
                frame.pts, frame.time_base = ticks[i], Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path):
    """(T, C, H, W) and the frames' seconds, by the shortest way that PyAV offers."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    rgb = np.stack([frame.to_ndarray(format='rgb24') for frame in frames])
    return torch.from_numpy(rgb).permute(0, 3, 1, 2), [frame.time for frame in frames]
