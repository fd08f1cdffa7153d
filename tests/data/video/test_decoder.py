"""Any frames of any video, in any order, are those of decoding it from its start by PyAV alone."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
from support.videos import FRAMES, GOP, copy, decoded, write

from bvtam.data.video import decoder
from bvtam.data.video.file import VideoFile
from bvtam.data.video.reader import VideoError

pytestmark = pytest.mark.interfaces


X264 = {'preset': 'fast', 'g': '8', 'sc_threshold': '0'}
OPEN_GOP = {'preset': 'fast', 'x264-params': 'keyint=8:open-gop=1:bframes=3:scenecut=0'}
X265 = 'keyint=8:bframes=4:log-level=none'
VPX = {'g': '8', 'cpu-used': '8', 'deadline': 'realtime', 'b': '300k'}

# name: codec, its options, pixel format; whether frames can be entered at keyframes
VIDEOS = {
    'a.mp4': ('libx264', X264, 'yuv420p', True),
    'a.mov': ('libx264', X264, 'yuv422p', True),
    'a.mkv': ('libx264', X264, 'yuv444p', True),
    'a.flv': ('libx264', X264, 'yuv420p', True),
    'a.ts': ('libx264', X264, 'yuv420p', True),
    'a.avi': ('libx264', X264, 'yuv420p', False),  # keeps no times
    'a.h264': ('libx264', X264, 'yuv420p', False),
    'fragments.mp4': ('libx264', X264, 'yuv420p', True),
    'open.mp4': ('libx264', OPEN_GOP, 'yuv420p', True),
    'open.mkv': ('libx264', OPEN_GOP, 'yuv420p', True),
    'open.ts': ('libx264', OPEN_GOP, 'yuv420p', True),
    'pyramid.mp4': (
        'libx264',
        {'x264-params': 'keyint=18:bframes=16:b-adapt=0:b-pyramid=normal'},
        'yuv420p',
        True,
    ),
    'interlaced.mp4': ('libx264', {'x264-params': 'keyint=8:interlaced=1'}, 'yuv420p', True),
    'interlaced.ts': ('libx264', {'x264-params': 'keyint=8:interlaced=1'}, 'yuv420p', False),
    'refresh.mp4': ('libx264', {'x264-params': 'keyint=8:intra-refresh=1'}, 'yuv420p', False),
    'grey.mp4': ('libx264', X264, 'gray', True),
    'ten.mp4': ('libx264', X264, 'yuv420p10le', True),
    'hevc.mp4': ('libx265', {'x265-params': f'{X265}:open-gop=0'}, 'yuv420p', True),
    'hevc_open.mkv': ('libx265', {'x265-params': f'{X265}:open-gop=1'}, 'yuv420p', True),
    'b.mp4': ('mpeg4', {'g': '8', 'bf': '2'}, 'yuv420p', True),
    'p.avi': ('mpeg4', GOP, 'yuv420p', True),
    'b.avi': ('mpeg4', {'g': '8', 'bf': '2'}, 'yuv420p', False),
    'two.ts': ('mpeg2video', {'g': '8', 'bf': '2'}, 'yuv420p', True),
    'vp8.webm': ('libvpx', VPX, 'yuv420p', True),
    'vp9.webm': ('libvpx-vp9', VPX, 'yuv420p', True),
    'alpha.webm': ('libvpx-vp9', VPX, 'yuva420p', True),
    'av1.mp4': ('libsvtav1', {'g': '8', 'preset': '12'}, 'yuv420p', True),
    'jpeg.avi': ('mjpeg', {}, 'yuvj420p', True),
    'jpeg.mjpeg': ('mjpeg', {}, 'yuvj420p', True),
    'alpha.mov': ('prores_ks', {}, 'yuva444p10le', True),
    'lossless.mkv': ('ffv1', GOP, 'yuv420p', True),
    'loop.gif': ('gif', {}, 'rgb8', False),
    'old.wmv': ('wmv2', GOP, 'yuv420p', False),
}


def check(path, monkeypatch, entered=None):
    """Compares every frame alone, and many lists of frames; returns the reader."""
    frames, seconds = decoded(path)
    video = VideoFile(path)
    count = len(frames)
    assert video.num_frames == count
    if None not in seconds and seconds == sorted(seconds):
        expected = torch.tensor(seconds, dtype=torch.float64) - seconds[0]
        assert torch.allclose(video.times, expected, rtol=0, atol=1e-9)
        assert video.times[-1] < video.duration < video.times[-1] + 1
        if count > 1:
            assert video.fps == pytest.approx((count - 1) / float(expected[-1]))
    monkeypatch.setattr(decoder, '_NEAR', 0)  # a seek for every keyframe
    for i in range(count):
        assert torch.equal(video.read([i]), frames[[i]]), i
    draw = random.Random(0)
    for near in (0, 0, 0, 10, 10, 10, 32):
        monkeypatch.setattr(decoder, '_NEAR', near)
        indices = [draw.randrange(count) for _ in range(draw.randrange(2, 9))]
        assert torch.equal(video.read(indices), frames[indices]), indices
    assert torch.equal(video.read(range(count)), frames)
    if entered is not None:
        assert (video._known.table.pts is not None) == entered
    return video


@pytest.mark.parametrize('name', VIDEOS)
def test_any_order_gives_the_frames_of_a_plain_decode(tmp_path, monkeypatch, name):
    codec, options, pixels, entered = VIDEOS[name]
    size = (128, 96) if codec == 'libsvtav1' else (64, 48)
    check(write(tmp_path / name, codec, options, pixels, size=size), monkeypatch, entered)


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_varying_rates(tmp_path, monkeypatch, suffix):
    gaps = np.random.default_rng(1).integers(200, 9000, FRAMES)
    ticks = [int(t) for t in np.cumsum(gaps)]
    path = write(tmp_path / f'a.{suffix}', 'libx264', X264, 'yuv420p', ticks)
    video = check(path, monkeypatch, True)
    precise = torch.tensor([(t - ticks[0]) / 90000 for t in ticks], dtype=torch.float64)
    assert (video.times - precise).abs().max() <= (1e-9 if suffix == 'mp4' else 0.0011)


def test_frames_at_times(tmp_path):
    video = VideoFile(write(tmp_path / 'a.mp4', 'libx264', X264, 'yuv420p'))
    frames = decoded(tmp_path / 'a.mp4')[0]
    moments = [-1, 0, 0.0399, 0.04, 0.5, 1.3999, 99]
    assert torch.equal(video.read_at(moments), frames[[0, 0, 0, 1, 12, 34, 35]])
    assert video.duration == pytest.approx(FRAMES / 25) and video.fps == pytest.approx(25)


def clock(mp4):
    """Ticks of a second in an edit list; which one FFmpeg takes has changed."""
    place = mp4.index(b'mvhd') + 16  # version, flags, two dates
    return int.from_bytes(mp4[place : place + 4], 'big')


@pytest.mark.parametrize('skipped', [3, 8, 13])
@pytest.mark.parametrize('options', [X264, OPEN_GOP])
def test_a_trimmed_start_and_end(tmp_path, monkeypatch, options, skipped):
    """An edit list leaves out frames that others build on."""

    def earlier(number, packet):
        packet.pts -= skipped * 512
        packet.dts -= skipped * 512
        return packet

    whole = write(tmp_path / 'whole.mp4', 'libx264', options, 'yuv420p')
    path = copy(whole, tmp_path / 'late.mp4', earlier, {'avoid_negative_ts': 'disabled'})
    assert check(path, monkeypatch, True).num_frames == FRAMES - skipped
    data = bytearray(path.read_bytes())
    place = data.index(b'elst') + 12  # version, flags, number of entries
    data[place : place + 4] = (4 * clock(data) // 10).to_bytes(4, 'big')  # 0.4 s
    path.write_bytes(data)
    assert check(path, monkeypatch, True).num_frames == 10


@pytest.mark.parametrize('start', [8, 11])
@pytest.mark.parametrize('name', ['a.mkv', 'open.ts', 'hevc_open.mkv', 'two.ts'])
def test_a_start_that_lacks_what_it_builds_on(tmp_path, monkeypatch, name, start):
    whole = write(tmp_path / f'whole_{name}', *VIDEOS[name][:3])
    path = copy(whole, tmp_path / name, lambda n, packet: packet if n >= start else None)
    check(path, monkeypatch)


def test_hidden_frames_of_vp8(tmp_path, monkeypatch):
    """A packet without the bit 4 of its first byte shows nothing (RFC 6386, section 9.1)."""

    def hide(number, packet):
        if number not in (5, 21):
            return packet
        data = bytearray(bytes(packet))
        data[0] &= ~0x10
        hidden = av.Packet(bytes(data))
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    whole = write(tmp_path / 'whole.webm', *VIDEOS['vp8.webm'][:3])
    path = copy(whole, tmp_path / 'hidden.webm', hide)
    assert check(path, monkeypatch, True).num_frames == FRAMES - 2


def test_the_first_of_two_videos_beside_sound(tmp_path, monkeypatch):
    first = write(tmp_path / 'first.mp4', 'libx264', X264, 'yuv420p')
    second = write(tmp_path / 'second.mp4', 'mpeg4', GOP, 'yuv420p')
    path = tmp_path / 'both.mkv'
    with av.open(str(first)) as a, av.open(str(second)) as b, av.open(str(path), 'w') as target:
        streams = [target.add_stream_from_template(c.streams.video[0]) for c in (a, b)]
        sound = target.add_stream('aac', rate=16000, layout='mono')
        pairs = zip(a.demux(video=0), b.demux(video=0), strict=True)
        for pair in pairs:
            for packet, stream in zip(pair, streams, strict=True):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        tone.sample_rate = 16000
        target.mux(sound.encode(tone))
        target.mux(sound.encode(None))
    check(path, monkeypatch, True)


def test_a_table_that_turns_out_wrong_is_given_up(tmp_path, caplog):
    """Frames after a keyframe that is none do not come: then the video is read from its start."""
    path = write(tmp_path / 'a.mp4', *VIDEOS['refresh.mp4'][:3])
    frames, video = decoded(path)[0], VideoFile(path)
    with caplog.at_level('DEBUG', logger='bvtam'):
        assert torch.equal(video.read([35, 20]), frames[[35, 20]])
    assert 'a.mp4 is read from its start' in caplog.text
    caplog.clear()
    assert torch.equal(video.read([33]), frames[[33]]) and not caplog.records


def test_a_video_that_holds_less_than_its_packets_promise(tmp_path):
    """The packets are there, but two of them say that they show nothing."""
    path = write(tmp_path / 'a.webm', *VIDEOS['vp9.webm'][:3])
    with av.open(str(path)) as container:
        found = [p for p in container.demux(video=0) if p.size and not p.is_keyframe]
    data = bytearray(path.read_bytes())
    for packet in found[3:5]:
        place = data.index(bytes(packet))
        assert data[place] == 0b10000110  # VP9, profile 0, no key, shown
        data[place] &= ~0b10
    path.write_bytes(data)
    assert len(decoded(path)[0]) == FRAMES - 2
    with pytest.raises(VideoError, match=r'a\.webm is damaged: 34 of 36 frames can be decoded'):
        VideoFile(path).read(range(10))


def test_readers_travel_and_are_shared(tmp_path):
    path = write(tmp_path / 'a.mp4', 'libx264', X264, 'yuv420p')
    frames = decoded(path)[0]
    video = VideoFile(path)
    fresh = pickle.loads(pickle.dumps(video))
    assert video.num_frames == FRAMES
    known = pickle.loads(pickle.dumps(video))
    for reader in (fresh, known):
        assert reader.name == str(path) and torch.equal(reader.read([30, 2]), frames[[30, 2]])
    fresh = VideoFile(path)
    with ThreadPoolExecutor(4) as pool:
        for i, picture in enumerate(pool.map(lambda i: fresh.read([i]), range(FRAMES))):
            assert torch.equal(picture, frames[[i]])
