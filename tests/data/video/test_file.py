"""Readers of videos against a plain decode."""

from __future__ import annotations

import os
import struct

import av
import numpy as np
import pytest
import torch
from support.videos import copy, decoded, save, sound

from bvtam.data.video.decoder import Decoder
from bvtam.data.video.file import VideoFile
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError

pytestmark = pytest.mark.interfaces

STEP = 8  # grey levels from one frame to the next


def write_video(path, count=30, size=(64, 48), codec='mpeg4', noise=False, format=None):
    """Frame i has the grey level STEP*i, a white top left and a black bottom right corner."""
    width, height = size
    random, pictures = np.random.default_rng(0), []
    for i in range(count):
        picture = np.full((height, width, 3), STEP * i % 256, np.uint8)
        picture[: height // 4, : width // 4] = 255
        picture[-(height // 4) :, -(width // 4) :] = 0
        if noise:
            picture ^= random.integers(0, 64, picture.shape, dtype=np.uint8)
        pictures.append(picture)
    return save(path, codec, pictures, format=format, bit_rate=2_000_000, gop_size=10)


@pytest.mark.parametrize(
    'codec, suffix', [('mpeg4', 'mp4'), ('libx264', 'mp4'), ('libvpx-vp9', 'webm')]
)
def test_read_picks_frames_of_a_sequential_decode(tmp_path, codec, suffix):
    path = write_video(tmp_path / f'ramp.{suffix}', codec=codec)
    frames = decoded(path)[0]
    levels = frames[:, :, 20:28, 20:44].float().mean(dim=(1, 2, 3))
    # The reference itself is right.
    assert torch.allclose(levels, STEP * torch.arange(30.0), atol=3)

    video = VideoFile(path)
    picked = video.read([7, 0, 29, 7, 13, 12])
    assert picked.dtype == torch.uint8 and picked.shape == (6, 3, 48, 64)
    assert torch.equal(picked, frames[[7, 0, 29, 7, 13, 12]])
    assert video.num_frames == 30
    assert torch.equal(video.read(range(30)), frames)
    assert torch.equal(video.read(torch.tensor([3])), frames[[3]])


def test_read_decodes_no_more_than_it_must(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'long.mp4', count=300)
    with av.open(str(path)) as container:
        keys = [n for n, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    frames, fed, feed = decoded(path)[0], [], Decoder._feed

    def counted(self, packet):
        fed.append(packet)
        feed(self, packet)

    monkeypatch.setattr(Decoder, '_feed', counted)
    video = VideoFile(path)
    assert video.num_frames == 300 and not fed
    video.read([4, 2])
    assert len(fed) == 5
    fed.clear()
    assert torch.equal(video.read([205, 9, 299, 205]), frames[[205, 9, 299, 205]])
    assert len(fed) == sum(i - max(k for k in keys if k <= i) + 1 for i in (9, 205, 299)) <= 30
    fed.clear()
    assert torch.equal(video.read(range(300)), frames)
    assert len(fed) == 300


@pytest.mark.parametrize('counted', [False, True])
@pytest.mark.parametrize('indices, culprit', [([0, 30], 30), ([-1, 3], -1), ([99, 100], 99)])
def test_an_index_outside_the_video_is_an_error(tmp_path, indices, culprit, counted):
    video = VideoFile(write_video(tmp_path / 'ramp.mp4'))
    if counted:
        assert video.num_frames == 30
    message = rf'ramp.mp4: frame {culprit} is outside the video, 0 to 29$'
    with pytest.raises(BvtamError, match=message):
        video.read(indices)
    with pytest.raises(BvtamError, match='no frame index'):
        video.read([])


# The matrix (a, b, c, d) of a track header takes pixel (x, y) to (a*x + c*y, b*x + d*y), y down
# (ISO/IEC 14496-12); the corner is where the white top left one must show.
@pytest.mark.parametrize(
    'matrix, corner, shape',
    [
        ((1, 0, 0, 1), 'top left', (48, 64)),
        ((0, 1, -1, 0), 'top right', (64, 48)),  # a phone held upright
        ((-1, 0, 0, -1), 'bottom right', (48, 64)),
        ((0, -1, 1, 0), 'bottom left', (64, 48)),
        ((-1, 0, 0, 1), 'top right', (48, 64)),  # mirrored
        ((0, 1, 1, 0), 'top left', (64, 48)),  # mirrored along the diagonal
    ],
)
def test_pictures_are_shown_upright(tmp_path, matrix, corner, shape):
    path = write_video(tmp_path / 'turned.mp4')
    data = path.read_bytes()
    place = data.index(b'tkhd') + 44  # version, flags, times, id, layer, volume
    identity = struct.pack('>9i', 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == identity
    a, b, c, d = (value << 16 for value in matrix)
    turned = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + turned + data[place + 36 :])

    picture = VideoFile(path).read([12])[0].float().mean(0)
    assert picture.shape == shape
    corners = {
        'top left': picture[:8, :8],
        'top right': picture[:8, -8:],
        'bottom left': picture[-8:, :8],
        'bottom right': picture[-8:, -8:],
    }
    assert max(corners, key=lambda name: corners[name].mean()) == corner
    if matrix == (0, 1, 1, 0):  # the black corner tells it from the identity's transpose
        assert corners['bottom right'].mean() < 10


def test_a_change_of_size_is_scaled_to_the_first(tmp_path):
    raw = {'codec': 'mjpeg', 'format': 'mjpeg'}
    small = write_video(tmp_path / 'a.mjpeg', count=3, **raw)
    large = write_video(tmp_path / 'b.mjpeg', count=9, size=(96, 96), **raw)
    path = tmp_path / 'both.mjpeg'
    path.write_bytes(small.read_bytes() + large.read_bytes())
    video = VideoFile(path)
    assert video.num_frames == 12
    frames = video.read([1, 11])
    assert frames.shape == (2, 3, 48, 64)
    assert frames[0, :, 20:28, 20:44].float().mean() == pytest.approx(STEP, abs=3)
    assert frames[1, :, 20:28, 20:44].float().mean() == pytest.approx(8 * STEP, abs=3)
    assert VideoFile(path).read([11]).shape == (1, 3, 48, 64)


def test_a_name_is_a_name_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video('ramp.mp4')
    os.rename('ramp.mp4', 'http: héllo %03d.mp4')
    assert VideoFile('http: héllo %03d.mp4').num_frames == 30


def test_what_is_no_video_says_so_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.mp4: no such video file'):
        VideoFile(tmp_path / 'nowhere.mp4')
    with pytest.raises(BvtamError, match='is a folder; give one video file'):
        VideoFile(tmp_path)
    empty = tmp_path / 'empty.mp4'
    empty.touch()
    with pytest.raises(BvtamError, match=r'empty.mp4 is empty \(0 bytes\); fetch'):
        VideoFile(empty)

    texts = {tmp_path / f'text.{suffix}': 'not a video\n' * 100 for suffix in ('mp4', 'txt', 'nfo')}
    for path, content in texts.items():
        path.write_text(content)
    tone = tmp_path / 'sound.mp4'
    sound(tone)
    whole = write_video(tmp_path / 'whole.mp4', noise=True).read_bytes()
    headless = tmp_path / 'headless.mp4'  # an index at the end, as cameras write it, is lost first
    headless.write_bytes(whole[: len(whole) // 2])
    start = whole.index(b'mdat') + 4
    hollow = tmp_path / 'hollow.mp4'
    end = whole.index(b'moov') - 4
    hollow.write_bytes(whole[:start] + bytes(end - start) + whole[end:])

    cases = {
        **dict.fromkeys(
            texts, r'text\.... cannot be opened as a video \((Invalid data|it may be a list)'
        ),
        tone: 'sound.mp4 has no video stream; give a file with pictures',
        headless: r'headless.mp4 cannot be opened as a video .*is it complete',
        hollow: r'hollow.mp4 is damaged: .*encode the video again',
    }
    for path, message in cases.items():
        with pytest.raises(VideoError, match=message) as caught:
            VideoFile(path).read([0])
        assert '\n' not in str(caught.value)


def damaged(path, kind):
    data = path.read_bytes()
    half = len(data) // 2
    if kind == 'cut':
        return data[:half]
    if kind == 'scratch':  # inside one frame, which decoders then patch up
        with av.open(str(path)) as container:
            packet = [p for p in container.demux(video=0) if p.is_keyframe and p.size][1]
        middle = packet.pos + packet.size // 2
        return data[:middle] + bytes(60) + data[middle + 60 :]
    return data[:half] + bytes(len(data) // 10) + data[half + len(data) // 10 :]


@pytest.mark.parametrize(
    'codec, suffix, kind',
    [
        ('mpeg4', 'avi', 'cut'),
        ('libx264', 'mp4', 'scratch'),
        ('libx264', 'mkv', 'hole'),
        ('libvpx', 'webm', 'cut'),
    ],
)
def test_damage_is_an_error_and_never_a_patched_up_frame(tmp_path, codec, suffix, kind):
    path = write_video(tmp_path / f'whole.{suffix}', codec=codec, noise=True)
    frames = decoded(path)[0]
    broken = tmp_path / f'broken.{suffix}'
    broken.write_bytes(damaged(path, kind))
    with pytest.raises(VideoError, match=rf'broken.{suffix} .*encode') as caught:
        VideoFile(broken).read(range(VideoFile(broken).num_frames))
    assert '\n' not in str(caught.value)

    video, good = VideoFile(broken), 0
    for i in range(30):  # what can be read is as it was, perhaps at an earlier place
        try:
            picture = video.read([i])
        except BvtamError:
            continue
        good += 1
        assert (frames == picture).flatten(1).all(1).any()
    assert (good == 0) if kind == 'cut' else (5 <= good < 30)


@pytest.mark.parametrize(
    'part, reason', [(0.5, 'packet 14 is cut short'), (0, 'it holds 14 of 30 frames')]
)
def test_a_cut_mp4_says_where_it_ends(tmp_path, part, reason):
    whole, front = write_video(tmp_path / 'whole.mp4', codec='libx264'), tmp_path / 'front.mp4'
    copy(whole, front, options={'movflags': 'faststart'})  # or it could not be read at all
    with av.open(str(whole)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    data = front.read_bytes()
    start = data.index(b'mdat') + 4
    cut = tmp_path / 'cut.mp4'
    cut.write_bytes(data[: start + sum(sizes[:14]) + int(sizes[14] * part)])
    with pytest.raises(VideoError, match=f'cut.mp4 is damaged: {reason}; fetch'):
        VideoFile(cut).read([3])


def test_a_late_start_is_no_damage(tmp_path):
    """A header may count its duration from time zero: such a file must not look cut off."""
    whole, late = write_video(tmp_path / 'whole.mkv'), tmp_path / 'late.mkv'
    copy(whole, late, lambda number, packet: packet if number >= 20 else None)
    assert VideoFile(late).num_frames == 10


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='needs /proc')
def test_no_file_stays_open(tmp_path):
    path = write_video(tmp_path / 'ramp.mp4')
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(damaged(path, 'hole'))
    held = []  # keeps tracebacks, and with them every local variable, alive
    for video in (VideoFile(path), VideoFile(broken)):
        for indices in ([3], [1000], [-1]):
            try:
                held.append(video.read(indices))
            except BvtamError as error:
                held.append(error)
    names = [os.readlink(link.path) for link in os.scandir('/proc/self/fd') if link.is_symlink()]
    assert not [name for name in names if name in (str(path), str(broken))]
