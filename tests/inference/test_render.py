"""Timelines and annotated videos, read back by PyAV and Pillow."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from bvtam.data.video import reader
from bvtam.data.video.in_memory import FrameArray
from bvtam.errors import BvtamError
from bvtam.inference.render import save_annotated, save_timeline

GREY, WHITE = 100, 255


def top(*scores, names='abcdefghijklmnop'):
    rows = [{'label': names[i], 'index': i, 'score': score} for i, score in scores]
    return sorted(rows, key=lambda row: -row['score'])


def window(start, end, *scores):
    return {'start': start, 'end': end, 'frames': [0], 'top': top(*scores)}


def of_windows(*found):
    every = found[1]['start'] if len(found) > 1 else 1.0
    return {
        'video': 'somewhere/video.mp4',
        'model': 'probe',
        'every': every,
        'length': every,
        'windows': list(found),
    }


def of_video(*scores):
    return {'video': 'video.mp4', 'model': 'probe', 'frames': [0], 'top': top(*scores)}


def write(path, ticks, size=(96, 64), base=Fraction(1, 25), **options):
    """Grey pictures shown at `ticks`."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=1 / base)
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        for tick in ticks:
            picture = np.full((size[1], size[0], 3), GREY, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path):
    """Seconds and pictures (H, W, 3) of all frames, without the package's reader."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.time for f in frames], [f.to_ndarray(format='rgb24').astype(int) for f in frames]


def bar_share(picture):
    """How much of the width the bar of the first row fills: its blue is darker in red than in blue."""
    row = picture[1]
    return float((row[:, 2] - row[:, 0] > 60).mean())


# ---- annotated videos ----


def test_an_mp4_has_every_frame_at_its_time(tmp_path):
    ticks = [0, 1, 2, 9, 10, 11, 30, 31]
    video = write(tmp_path / 'in.mp4', ticks)
    told = []
    save_annotated(
        of_video((3, 0.75), (0, 0.25)),
        video,
        tmp_path / 'out.mp4',
        progress=lambda *n: told.append(n),
    )
    times, pictures = read(tmp_path / 'out.mp4')
    assert times == pytest.approx([tick / 25 for tick in ticks], abs=1e-3)
    assert told == [(i, 8) for i in range(9)]
    for picture in pictures:
        assert picture.shape == (64, 96, 3)
        assert bar_share(picture) == pytest.approx(0.75, abs=0.1)
        assert abs(picture[40:] - GREY).max() < 12  # nothing below the panel
        assert picture[:12].max() > 180  # the white of the text
    with av.open(str(tmp_path / 'out.mp4')) as container:
        (stream,) = container.streams
        assert stream.codec_context.name in ('h264', 'mpeg4')
        assert stream.codec_context.pix_fmt == 'yuv420p'


def test_frames_show_the_window_that_they_are_in(tmp_path):
    video = np.full((40, 64, 96, 3), GREY, np.uint8)  # 25 frames a second
    apart = of_windows(window(0, 0.8, (0, 1.0)), window(0.8, 1.6, (0, 0.2)))
    save_annotated(apart, video, tmp_path / 'apart.mp4')
    shares = [bar_share(picture) for picture in read(tmp_path / 'apart.mp4')[1]]
    assert shares == pytest.approx([1.0] * 20 + [0.2] * 20, abs=0.1)

    # Middles at 0.4, 0.8 and 1.2 seconds: the nearest changes at 0.6 and 1.0.
    overlapping = of_windows(
        window(0, 0.8, (0, 0.9)), window(0.4, 1.2, (0, 0.5)), window(0.8, 1.6, (0, 0.1))
    )
    save_annotated(overlapping, video, tmp_path / 'overlapping.mp4')
    shares = [bar_share(picture) for picture in read(tmp_path / 'overlapping.mp4')[1]]
    assert shares == pytest.approx([0.9] * 15 + [0.5] * 10 + [0.1] * 15, abs=0.1)


def test_odd_sizes_and_any_text(tmp_path):
    names = ['走る 🏃 العربية', 'a\nb\x00' + 'long ' * 500, '', '\ud800']
    result = of_video()
    result['top'] = top((0, 0.5), (1, 0.3), (2, 0.2), (3, 0.0), names=names)
    for height, width in ((63, 95), (8, 9), (300, 24)):
        video = np.full((3, height, width, 3), GREY, np.uint8)
        save_annotated(result, video, tmp_path / 'odd.mp4', topk=4)
        assert read(tmp_path / 'odd.mp4')[1][0].shape == (height + height % 2, width + width % 2, 3)
        save_annotated(result, video, tmp_path / 'odd.gif', topk=4)
        assert read(tmp_path / 'odd.gif')[1][0].shape == (height, width, 3)


def test_at_most_topk_labels_are_drawn(tmp_path):
    video = np.full((2, 160, 96, 3), GREY, np.uint8)
    heights = []
    for topk in (1, 2, 4, 100):
        result = of_video(*((i, 0.5) for i in range(16)))
        save_annotated(result, video, tmp_path / 'out.mp4', topk=topk)
        drawn = abs(read(tmp_path / 'out.mp4')[1][0] - GREY).max((1, 2)) > 30
        assert not drawn[82:].any()  # half of the frame at most
        heights.append(drawn.sum())
    assert heights[1] == pytest.approx(2 * heights[0], abs=2)
    assert heights[2] == pytest.approx(4 * heights[0], abs=2)
    assert heights[3] > heights[2]


def test_a_gif_is_small_and_as_long_as_the_video(tmp_path):
    video = FrameArray(np.full((51, 100, 640, 3), GREY, np.uint8), fps=25)  # 2.04 seconds
    save_annotated(of_video((0, 0.5)), video, tmp_path / 'out.gif')
    times, pictures = read(tmp_path / 'out.gif')
    assert times == pytest.approx([i / 10 for i in range(21)])
    assert pictures[0].shape == (50, 320, 3)
    for picture in pictures:
        assert bar_share(picture) == pytest.approx(0.5, abs=0.05)
        assert abs(picture[40:] - GREY).max() < 12
    with Image.open(tmp_path / 'out.gif') as image:
        lasting = []
        for i in range(image.n_frames):
            image.seek(i)
            lasting.append(image.info['duration'])
        assert sum(lasting) == 2040 and image.info['loop'] == 0
        assert lasting == [100] * 20 + [40]


def test_a_gif_repeats_no_frame(tmp_path):
    video = write(tmp_path / 'in.mp4', [0, 1, 2, 3, 10, 12], base=Fraction(1, 5))
    save_annotated(of_video((0, 0.5)), video, tmp_path / 'out.gif')
    assert read(tmp_path / 'out.gif')[0] == pytest.approx([0, 0.2, 0.4, 0.6, 2.0, 2.4])


@pytest.mark.parametrize('suffix', ['.mp4', '.gif'])
def test_pictures_of_a_video_stay_themselves(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 3), dtype=np.uint8)
    video = values.repeat(32, axis=1).repeat(32, axis=2)
    save_annotated(of_video((0, 0.5)), FrameArray(video, fps=5), tmp_path / f'out{suffix}')
    times, pictures = read(tmp_path / f'out{suffix}')
    assert times == pytest.approx([i / 5 for i in range(6)], abs=1e-3)
    for before, after in zip(video.astype(int), pictures, strict=True):
        assert abs(before - after)[64:].mean() < 8
    assert all(abs(a - b).mean() > 30 for a, b in pairwise(pictures))


def test_frames_are_read_some_at_a_time(tmp_path, monkeypatch):
    sizes = []

    class Watched(FrameArray):
        def read_each(self, indices, function):
            sizes.append(len(indices))
            return super().read_each(indices, function)

    monkeypatch.setattr(reader, '_CHUNK_BYTES', 10 * 3 * 32 * 32)
    video = Watched(np.full((64, 32, 32, 3), GREY, np.uint8))
    save_annotated(of_video((0, 0.5)), video, tmp_path / 'out.mp4')
    assert sizes == [1, 10, 10, 10, 10, 10, 10, 3]
    assert len(read(tmp_path / 'out.mp4')[0]) == 64


def test_the_video_itself_is_never_written(tmp_path):
    video = write(tmp_path / 'in.mp4', range(5))
    (tmp_path / 'link.mp4').symlink_to(video)
    (tmp_path / 'hard.mp4').hardlink_to(video)
    before = video.read_bytes()
    for path in ('in.mp4', 'link.mp4', 'hard.mp4'):
        with pytest.raises(BvtamError, match='is the video itself; give the annotated one another'):
            save_annotated(of_video((0, 0.5)), video, tmp_path / path)
    assert video.read_bytes() == before


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    class Gone(FrameArray):
        def read_each(self, indices, function):
            if 1 in indices:
                raise OSError('gone')
            return super().read_each(indices, function)

    out = tmp_path / 'out'
    out.mkdir()
    for name in ('a.mp4', 'a.gif'):
        (out / name).write_bytes(b'before')
        with pytest.raises(BvtamError, match='^gone$'):
            video = Gone(np.full((64, 32, 32, 3), GREY, np.uint8), fps=10)
            save_annotated(of_video((0, 0.5)), video, out / name)
        assert (out / name).read_bytes() == b'before'
    assert sorted(os.listdir(out)) == ['a.gif', 'a.mp4']


def test_what_cannot_be_written_says_so(tmp_path):
    video = np.full((2, 32, 32, 3), GREY, np.uint8)
    result = of_video((0, 0.5))
    for name in ('out.avi', 'out'):
        with pytest.raises(BvtamError, match=r'must end in \.mp4 or \.gif'):
            save_annotated(result, video, tmp_path / name)
    with pytest.raises(BvtamError, match='topk must be at least 1, not 0'):
        save_annotated(result, video, tmp_path / 'out.mp4', topk=0)
    (tmp_path / 'a_file').touch()
    for name, save in (('out.mp4', save_annotated), ('out.gif', save_annotated)):
        with pytest.raises(BvtamError, match=rf'{name} cannot be written: File exists'):
            save(result, video, tmp_path / 'a_file' / name)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.mp4'):
        save_annotated(result, tmp_path / 'nowhere.mp4', tmp_path / 'out.mp4')


# ---- timelines ----


BLUE, ORANGE, GREEN, LIGHTGREY = (31, 119, 180), (255, 127, 14), (44, 160, 44), (211, 211, 211)


def band(path):
    """(colour, share of the width) of each run in the band, found by a row that it fills."""
    picture = np.array(Image.open(path).convert('RGB'))
    known = np.array([BLUE, ORANGE, GREEN, LIGHTGREY])
    is_known = (picture[:, :, None] == known).all(-1)
    row = int(is_known[..., :3].any(-1).sum(1).argmax())  # frames and grids are grey too
    inside = np.flatnonzero(is_known[row].any(-1))
    colors = is_known[row, inside].argmax(-1)
    edges = [0, *(np.flatnonzero(np.diff(colors)) + 1), len(colors)]
    return [(tuple(known[colors[a]].tolist()), (b - a) / len(colors)) for a, b in pairwise(edges)]


def test_the_band_of_a_timeline_names_the_winners(tmp_path):
    pytest.importorskip('matplotlib')
    found = [
        window(0, 1, (4, 0.9), (2, 0.1)),
        window(1, 2, (2, 0.6), (4, 0.4)),
        window(2, 3, (4, 0.8), (2, 0.2)),
        window(3, 4, (4, 0.7), (2, 0.2)),
    ]
    save_timeline(of_windows(*found), tmp_path / 'time.png')
    runs = band(tmp_path / 'time.png')
    assert [color for color, _ in runs] == [BLUE, ORANGE, BLUE]
    assert [share for _, share in runs] == pytest.approx([0.25, 0.25, 0.5], abs=0.01)


def test_many_labels_and_odd_names_are_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    names = ['_hidden', '$x_1$ costs $', '走る', 'long ' * 100, 'a\nb', *'fghijklmnop']
    found = [window(i, i + 1, (i % 16, 0.9), ((i + 1) % 16, 0.1)) for i in range(32)]
    for one in found:
        for row in one['top']:
            row['label'] = names[row['index']]
    save_timeline(of_windows(*found), tmp_path / 'time.png')
    colors = [color for color, _ in band(tmp_path / 'time.png')]
    assert colors[:3] == [BLUE, ORANGE, GREEN] and LIGHTGREY in colors
    with Image.open(tmp_path / 'time.png') as image:
        assert image.format == 'PNG' and image.width > 1000
    save_timeline(of_windows(window(0, 0.04, (0, 1.0))), tmp_path / 'one.png')
    assert band(tmp_path / 'one.png') == [(BLUE, 1.0)]


def test_what_a_timeline_lacks_says_so(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    result = of_windows(window(0, 1, (0, 1.0)))
    with pytest.raises(BvtamError, match=r'time\.pdf: the name of a timeline must end in \.png'):
        save_timeline(result, tmp_path / 'time.pdf')
    with pytest.raises(BvtamError, match='a timeline needs the windows of a video'):
        save_timeline(of_video((0, 1.0)), tmp_path / 'time.png')
    (tmp_path / 'a_file').touch()
    with pytest.raises(BvtamError, match='cannot be written: File exists'):
        save_timeline(result, tmp_path / 'a_file' / 'time.png')

    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(BvtamError, match=r"pip install 'bvtam\[plot\]'"):
        save_timeline(result, tmp_path / 'time.png')
    assert not list(tmp_path.glob('*.png'))
