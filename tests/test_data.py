"""Frame indices, decoding and transforms against plain references."""

from __future__ import annotations

import json
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvtam.clip import ClipConfig
from bvtam.data.sampling import clip_indices
from bvtam.data.transforms import to_clip
from bvtam.data.video import VideoFile
from bvtam.errors import BvtamError

ROWS = json.loads((Path(__file__).parent / 'data' / 'test_sampling.json').read_text())['rows']
STEP = 8  # grey levels from one frame to the next


# ---- sampling ----


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


# ---- video ----


def write_video(path, count=30, size=(64, 48), codec='mpeg4', noise=False, format=None):
    """Frame i has the grey level STEP*i, a white top left and a black bottom right corner."""
    width, height = size
    random = np.random.default_rng(0)
    with av.open(str(path), 'w', format=format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        stream.bit_rate = 2_000_000
        stream.codec_context.gop_size = 10
        for i in range(count):
            picture = np.full((height, width, 3), STEP * i % 256, np.uint8)
            picture[: height // 4, : width // 4] = 255
            picture[-(height // 4) :, -(width // 4) :] = 0
            if noise:
                picture ^= random.integers(0, 64, picture.shape, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path


def decode_all(path):
    """Every frame, (T, C, H, W), by the shortest way that PyAV offers."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    'codec, suffix', [('mpeg4', 'mp4'), ('libx264', 'mp4'), ('libvpx-vp9', 'webm')]
)
def test_read_picks_frames_of_a_sequential_decode(tmp_path, codec, suffix):
    path = write_video(tmp_path / f'ramp.{suffix}', codec=codec)
    frames = decode_all(path)
    levels = frames[:, :, 20:28, 20:44].float().mean(dim=(1, 2, 3))
    assert torch.allclose(
        levels, STEP * torch.arange(30.0), atol=3
    )  # the reference itself is right

    video = VideoFile(path)
    picked = video.read([7, 0, 29, 7, 13, 12])
    assert picked.dtype == torch.uint8 and picked.shape == (6, 3, 48, 64)
    assert torch.equal(picked, frames[[7, 0, 29, 7, 13, 12]])
    assert video.num_frames == 30
    assert torch.equal(video.read(range(30)), frames)
    assert torch.equal(video.read(torch.tensor([3])), frames[[3]])


def test_read_decodes_no_further_than_it_must(tmp_path, monkeypatch):
    video = VideoFile(write_video(tmp_path / 'ramp.mp4'))
    decode, seen = video._decode, []

    def counted():
        for frame in decode():
            seen.append(1)
            yield frame

    monkeypatch.setattr(video, '_decode', counted)
    video.read([4, 2])
    assert len(seen) == 5
    assert video.num_frames == video.num_frames == 30
    assert len(seen) == 5 + 30


@pytest.mark.parametrize('counted', [False, True])
@pytest.mark.parametrize('indices, culprit', [([0, 30], 30), ([-1, 3], -1), ([99, 100], 99)])
def test_an_index_outside_the_video_is_an_error(tmp_path, indices, culprit, counted):
    video = VideoFile(write_video(tmp_path / 'ramp.mp4'))
    if counted:
        assert video.num_frames == 30
    with pytest.raises(
        BvtamError, match=rf'ramp.mp4: frame {culprit} is outside the video, 0 to 29$'
    ):
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
    small = write_video(tmp_path / 'a.mjpeg', count=3, codec='mjpeg', format='mjpeg').read_bytes()
    large = write_video(
        tmp_path / 'b.mjpeg', count=9, size=(96, 96), codec='mjpeg', format='mjpeg'
    ).read_bytes()
    path = tmp_path / 'both.mjpeg'
    path.write_bytes(small + large)
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

    text = tmp_path / 'text.mp4'
    text.write_text('not a video\n' * 100)
    sound = tmp_path / 'sound.mp4'
    with av.open(str(sound), 'w') as container:
        stream = container.add_stream('aac', rate=16000, layout='mono')
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        tone.sample_rate = 16000
        container.mux(stream.encode(tone))
        container.mux(stream.encode(None))
    whole = write_video(tmp_path / 'whole.mp4', noise=True).read_bytes()
    headless = tmp_path / 'headless.mp4'  # an index at the end, as cameras write it, is lost first
    headless.write_bytes(whole[: len(whole) // 2])
    start = whole.index(b'mdat') + 4
    hollow = tmp_path / 'hollow.mp4'
    end = whole.index(b'moov') - 4
    hollow.write_bytes(whole[:start] + bytes(end - start) + whole[end:])

    cases = {
        text: r'text.mp4 cannot be opened as a video \(Invalid data',
        sound: 'sound.mp4 has no video stream; give a file with pictures',
        headless: r'headless.mp4 cannot be opened as a video .*is it complete',
        hollow: r'hollow.mp4: no frame can be decoded .*encode the video again',
    }
    for path, message in cases.items():
        for use in (lambda video: video.num_frames, lambda video: video.read([0])):
            with pytest.raises(BvtamError, match=message) as caught:
                use(VideoFile(path))
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
        ('mpeg4', 'mp4', 'hole'),
        ('mpeg4', 'avi', 'hole'),
        ('mpeg4', 'avi', 'cut'),
        ('libx264', 'mp4', 'hole'),
        ('libx264', 'mp4', 'scratch'),
        ('libx264', 'mkv', 'hole'),
        ('libvpx', 'webm', 'cut'),
    ],
)
def test_damage_ends_the_video_with_a_warning(tmp_path, caplog, codec, suffix, kind):
    path = write_video(tmp_path / f'whole.{suffix}', codec=codec, noise=True)
    frames = decode_all(path)
    broken = tmp_path / f'broken.{suffix}'
    broken.write_bytes(damaged(path, kind))

    video = VideoFile(broken)
    with caplog.at_level(logging.WARNING, logger='bvtam'):
        count = video.num_frames
    assert 5 <= count <= 20
    assert len(caplog.records) == 1 and caplog.records[0].name == 'bvtam'
    assert f'broken.{suffix} is damaged' in caplog.text
    assert f'decoded {count} frames' in caplog.text
    # What is left is what the whole file has there: nothing patched up.
    assert torch.equal(video.read(range(count)), frames[:count])
    with pytest.raises(BvtamError, match=f'frame {count} is outside the video, 0 to {count - 1}'):
        video.read([count])


@pytest.mark.parametrize(
    'part, reason', [(0.5, 'a frame is cut short'), (0, 'it holds 14 of 30 frames')]
)
def test_a_cut_mp4_loses_only_what_was_cut(tmp_path, caplog, part, reason):
    whole, front = write_video(tmp_path / 'whole.mp4', codec='libx264'), tmp_path / 'front.mp4'
    sizes = []
    options = {'movflags': 'faststart'}  # the index first, so that the file can be read at all
    with av.open(str(whole)) as source, av.open(str(front), 'w', options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                sizes.append(packet.size)
                packet.stream = stream
                target.mux(packet)
    data = front.read_bytes()
    start = data.index(b'mdat') + 4
    cut = tmp_path / 'cut.mp4'
    cut.write_bytes(data[: start + sum(sizes[:14]) + int(sizes[14] * part)])
    with caplog.at_level(logging.WARNING, logger='bvtam'):
        count = VideoFile(cut).num_frames
    assert count == 14
    assert f'cut.mp4 is damaged ({reason}); decoded 14 frames up to there' in caplog.text


def test_a_late_start_is_no_damage(tmp_path, caplog):
    """A header may count its duration from time zero: such a file must not look cut off."""
    whole, late = write_video(tmp_path / 'whole.mkv'), tmp_path / 'late.mkv'
    with av.open(str(whole)) as source, av.open(str(late), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 20:
                packet.stream = stream
                target.mux(packet)
    with caplog.at_level(logging.WARNING, logger='bvtam'):
        assert VideoFile(late).num_frames == 10
    assert not caplog.records


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


# ---- transforms ----


def resize_axis(length, out, kernel):
    """(out, length) weights of antialiased resampling: the kernel widens as pixels merge."""
    scale = length / out
    centre = (np.arange(out)[:, None] + 0.5) * scale
    weights = kernel(np.abs(np.arange(length) + 0.5 - centre) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def bilinear(x):
    return np.clip(1 - x, 0, None)


def bicubic(x):  # Keys, a = -1/2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@pytest.mark.parametrize('interpolation, kernel', [('bilinear', bilinear), ('bicubic', bicubic)])
@pytest.mark.parametrize('height, width', [(37, 61), (61, 37), (20, 33)])
@pytest.mark.parametrize('num_crops', [1, 3])
def test_to_clip_is_resize_crop_normalise(interpolation, kernel, height, width, num_crops):
    random = np.random.default_rng(height * width)
    frames = random.integers(0, 256, (4, 3, height, width), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    config = ClipConfig(
        resize=28,
        crop_size=24,
        num_crops=num_crops,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    out = to_clip(torch.from_numpy(frames), config)

    short = min(height, width)
    new_h, new_w = 28 * height // short, 28 * width // short
    rows, cols = resize_axis(height, new_h, kernel), resize_axis(width, new_w, kernel)
    # Along the width, then the height; both passes end on the 256 grey levels.
    resized = np.clip(frames.astype(float) @ cols.T, 0, 255).round()
    resized = np.clip(rows @ resized, 0, 255).round() / 255
    top, left = (new_h - 24) // 2, (new_w - 24) // 2
    if num_crops == 1:
        corners = [(top, left)]
    elif width > height:
        corners = [(top, 0), (top, left), (top, new_w - 24)]
    else:
        corners = [(0, left), (top, left), (new_h - 24, left)]
    assert out.shape == (num_crops, 3, 4, 24, 24)
    assert out.dtype == torch.float32 and out.is_contiguous()
    for view, (y, x) in zip(out, corners, strict=True):
        for channel in range(3):
            wanted = (resized[:, channel, y : y + 24, x : x + 24] - mean[channel]) / std[channel]
            levels = np.abs(view[channel].numpy() - wanted) * std[channel] * 255
            # A weight rounded to 16 bits may decide between two levels.
            assert levels.max() < 1.01 and levels.mean() < 0.02


def test_frames_of_the_right_size_are_not_resized():
    frames = torch.randint(0, 256, (2, 3, 20, 31), dtype=torch.uint8)
    config = ClipConfig(resize=20, crop_size=20, num_crops=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    out = to_clip(frames, config)
    for view, left in zip(
        out, (0, 6, 11), strict=True
    ):  # 5.5 is rounded to even, as CenterCrop does
        wanted = frames[..., left : left + 20].transpose(0, 1)
        assert torch.equal((view * 255).round().to(torch.uint8), wanted)


def test_to_clip_names_what_does_not_fit():
    config = ClipConfig(resize=8, crop_size=8)
    with pytest.raises(BvtamError, match=r'uint8 tensor \(T, C, H, W\), not torch.float32'):
        to_clip(torch.zeros(2, 3, 8, 8), config)
    with pytest.raises(BvtamError, match=r'not torch.uint8 \(3, 8, 8\)'):
        to_clip(torch.zeros(3, 8, 8, dtype=torch.uint8), config)
    with pytest.raises(BvtamError, match=r'clip\.mean has 3 channels, but the frames have 1'):
        to_clip(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), config)
