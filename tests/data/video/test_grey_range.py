"""Monochrome video (4:0:0) is read by its range tag."""

import av
import numpy as np
import pytest

from bvtam.data.video.open import open_video

LEVELS = (16, 60, 126, 235)


@pytest.mark.parametrize('bits', (8, 10))
@pytest.mark.parametrize('color_range', ('limited', 'full'))
def test_grey_is_read_by_its_range(tmp_path, bits, color_range):
    if 'libx265' not in av.codecs_available:
        pytest.skip('no encoder of monochrome H.265')
    path, pix_fmt = tmp_path / 'grey.mp4', 'gray' if bits == 8 else 'gray10le'
    with av.open(str(path), 'w') as container:
        params = f'lossless=1:log-level=0:range={color_range}'
        stream = container.add_stream('libx265', rate=25, options={'x265-params': params})
        stream.width, stream.height, stream.pix_fmt = 128, 128, pix_fmt
        tag = 1 if color_range == 'limited' else 2
        stream.codec_context.color_range = tag
        for number, level in enumerate(LEVELS):
            if bits == 8:
                picture = np.full((128, 128), level, np.uint8)
            else:
                picture = np.full((128, 128), level * 4, np.uint16)
            frame = av.VideoFrame.from_ndarray(picture, pix_fmt)
            frame.color_range, frame.pts = tag, number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    seen = open_video(path).read([0, 1, 2, 3]).float().mean((1, 2, 3)).numpy()
    wanted = np.array(LEVELS, float)
    if color_range == 'limited':
        wanted = (wanted - 16) * 255 / 219
    np.testing.assert_allclose(seen, wanted, atol=1)
