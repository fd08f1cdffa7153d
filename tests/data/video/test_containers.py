"""Videos as cameras, recorders and editors write them; and files that end too early."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from support.videos import TICK, at, copy, save

from bvtam.data.prepare.encode import Encoding, encode
from bvtam.data.records import Record
from bvtam.data.video.file import VideoFile
from bvtam.data.video.joins import Tail
from bvtam.data.video.reader import VideoError
from bvtam.data.video.truncation import cut_short
from bvtam.data.video.write import Coding, write_video

WRITERS = {  # file: codec, format, options of the container
    'a.mp4': ('mpeg4', None, {}),
    'fragments.mp4': ('mpeg4', None, {'movflags': 'frag_keyframe+empty_moov'}),
    'a.mkv': ('mpeg4', None, {}),
    'live.mkv': ('mpeg4', None, {'live': '1'}),
    'a.ts': ('mpeg2video', None, {}),
    'a.m2ts': ('mpeg2video', 'mpegts', {'mpegts_m2ts_mode': '1'}),
    'a.flv': ('flv', None, {}),
    'a.avi': ('mpeg4', None, {}),
    'a.mpg': ('mpeg2video', 'vob', {}),
    'a.wmv': ('wmv2', 'asf', {}),
    'a.mxf': ('mpeg2video', None, {}),
    'a.gif': ('gif', None, {}),
    'a.y4m': ('rawvideo', None, {}),
}


def frames(count, side=64):
    values = np.random.default_rng(0)
    for _ in range(count):
        yield values.integers(0, 256, (side, side, 3), np.uint8)


def write(path, codec, ticks, format=None, options=None, rate=25, codec_options=None):
    """Noise shown at `ticks` of 1/90000 s, or of `rate` where that is not 25."""
    unit = TICK if codec.startswith('libx') and rate == 25 else Fraction(1, rate)
    shown = at(frames(len(ticks)), ticks, unit)
    return save(path, codec, shown, codec_options, options, format, rate, time_base=unit)


def decoded(path):
    with av.open(str(path)) as container:
        return len(list(container.decode(container.streams.best('video'))))


# ---- files that end too early ----


@pytest.mark.parametrize('name', WRITERS)
def test_a_cut_file_is_refused(tmp_path, name):
    codec, format, options = WRITERS[name]
    path = write(tmp_path / name, codec, range(30), format, options)
    assert VideoFile(path).num_frames == decoded(path) == 30
    data, cut, refused = path.read_bytes(), tmp_path / f'cut_{name}', 0
    # Whole packets of a transport stream may be all that there was.
    places = [i * len(data) // 20 for i in range(2, 20)]
    for place in [p + 1 if not p % 4 else p for p in places] + [len(data) - 50]:
        cut.write_bytes(data[:place])
        try:
            assert VideoFile(cut).num_frames == 30, place  # all but an index that nobody needs
        except VideoError:
            refused += 1
    assert refused >= 18


@pytest.mark.parametrize('name', WRITERS)
def test_bytes_after_the_end_are_no_cut(tmp_path, name):
    codec, format, options = WRITERS[name]
    path = write(tmp_path / name, codec, range(12), format, options)
    with av.open(str(path)) as container:
        kind = container.format.name
    for junk in (bytes(8), bytes(1000), b'\xff' * 77):
        longer = tmp_path / f'longer_{name}'
        longer.write_bytes(path.read_bytes() + junk)
        assert not cut_short(str(longer), kind)


@pytest.mark.parametrize('pixels', ['yuv420p', 'yuv411p', 'yuv422p12le', 'yuv444p', 'gray10le'])
def test_the_size_of_raw_frames(tmp_path, pixels):
    frame = av.VideoFrame(35, 27, pixels)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    container = {'strict': '-1'}
    path = save(tmp_path / 'a.y4m', 'rawvideo', [frame] * 3, container=container, pix_fmt=pixels)
    data = path.read_bytes()
    length = len(data) - data.rindex(b'FRAME')
    for left, cut in ((0, False), (1, True), (length - 3, True), (length, False)):
        path.write_bytes(data[: len(data) - left])
        assert bool(cut_short(str(path), 'yuv4mpegpipe')) is cut


def test_the_size_that_flash_video_tells(tmp_path):
    """Cut at a whole tag, so near the end that the duration does not tell it."""
    path = write(tmp_path / 'a.flv', 'flv', range(30))
    data = path.read_bytes()
    place, ends = 13, []
    while place < len(data):
        place += 15 + int.from_bytes(data[place + 1 : place + 4])
        ends.append(place)
    path.write_bytes(data[: ends[-2]])
    with pytest.raises(VideoError, match='bytes'):
        assert VideoFile(path).num_frames
    path.write_bytes(data.replace(b'filesize', b'filename')[: ends[-2]])  # not known
    assert VideoFile(path).num_frames >= 29


def test_a_file_whose_writer_was_stopped_promises_nothing(tmp_path):
    """Headers as a recorder leaves them that never came to its end."""
    path = write(tmp_path / 'a.avi', 'mpeg4', range(12))
    data = bytearray(path.read_bytes())
    data[4:8] = bytes(4)
    movi = data.index(b'movi')
    data[movi - 4 : movi] = bytes(4)
    path.write_bytes(data[: data.index(b'idx1', movi)])
    assert not cut_short(str(path), 'avi')
    path = write(tmp_path / 'a.wmv', 'wmv2', range(12), 'asf')
    data = bytearray(path.read_bytes())
    place = data.index(bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365'))
    data[place + 88] |= 1  # sent as it was made
    path.write_bytes(data + bytes(10))
    assert not cut_short(str(path), 'asf')


@pytest.mark.parametrize(
    'kind',
    ['mp4', 'matroska', 'avi', 'flv', 'asf', 'mxf', 'ogg', 'mpeg', 'mpegts', 'gif', 'yuv4mpegpipe'],
)
def test_any_bytes_are_looked_at_without_an_error(tmp_path, kind):
    values, path = np.random.default_rng(0), tmp_path / 'a'
    heads = [b'', b'RIFF\xff\xff\xff\xffAVI ', b'GIF89a', b'OggS', b'\x1a\x45\xdf\xa3', b'FLV\1\5']
    heads += [b'YUV4MPEG2 W9 H9\nFRAME\n', b'YUV4MPEG2 Wx H C420p\nFRAME']
    heads += [b'\0\0\1\xba', b'\0\0\0\x30sidx\1', b'\x18\x53\x80\x67\xff', b'\x47' * 3000]
    for head in heads:
        for length in (0, 1, 7, 13, 40, 300):
            path.write_bytes(head + values.bytes(length))
            assert isinstance(cut_short(str(path), kind), str)


# ---- times, counts and rates ----


@pytest.mark.parametrize('codec', ['mjpeg', 'mpeg4'])
def test_chunks_without_a_picture(tmp_path, codec):
    """A webcam falls from 30 to 10 frames a second; the header of AVI counts what did not come."""
    ticks = [*range(30), *range(30, 120, 3)]
    path = write(tmp_path / 'a.avi', codec, ticks, rate=30)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 100
    video = VideoFile(path)
    assert torch.allclose(video.times, torch.tensor(ticks, dtype=torch.float64) / 30)
    assert len(video.read(range(60))) == 60


@pytest.mark.parametrize('name', ['wrap.ts', 'fragments.mp4'])
def test_times_that_begin_below_zero(tmp_path, name):
    """A clock of 33 bits that wraps; a copy that begins at the keyframe before the cut."""
    first = round(95440.2 * 90000) if name == 'wrap.ts' else -36000
    options = {} if name == 'wrap.ts' else {'movflags': 'frag_keyframe+empty_moov+delay_moov'}
    options['avoid_negative_ts'] = 'disabled'
    ticks = [first + 3600 * i for i in range(75)]
    path = write(
        tmp_path / name, 'libx264', ticks, options=options, codec_options={'bf': '0', 'g': '25'}
    )
    video = VideoFile(path)
    assert video.num_frames == 75 and video.duration == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize('codec, format', [('libx264', 'h264'), ('mpeg2video', 'mpeg2video')])
def test_the_rate_of_a_raw_stream(tmp_path, codec, format):
    rate = 15 if codec == 'libx264' else 24
    path = write(tmp_path / 'a.raw', codec, range(30), format, rate=rate)
    assert VideoFile(path).duration == pytest.approx(30 / rate, abs=0.05)
    *_, (last, _) = VideoFile(path).play()
    assert last == pytest.approx(29 / rate, abs=0.1)


def test_the_last_picture_has_its_own_duration(tmp_path):
    """Not the mean of those before."""
    first, *others = (Image.new('RGB', (32, 32), (40 * i, 0, 0)) for i in range(4))
    for name, format in (('a.gif', 'GIF'), ('a.apng', 'PNG')):
        path = tmp_path / name
        delays = [100, 100, 300, 2000]
        first.save(path, format, save_all=True, append_images=others, duration=delays)
        video = VideoFile(path)
        assert torch.allclose(video.times, torch.tensor([0, 0.1, 0.2, 0.5], dtype=torch.float64))
        assert video.duration == pytest.approx(2.5)


# ---- tracks ----


@pytest.mark.parametrize(
    'suffix, codec, default, counts',
    [
        ('mp4', 'mpeg4', True, (4, 20)),
        ('mkv', 'mpeg4', True, (4, 20)),
        ('mkv', 'mpeg2video', False, (4, 20)),
        ('ts', 'mpeg2video', False, (4, 20)),
        ('ts', 'mpeg2video', False, (0, 12)),  # a programme that is not in the recording
    ],
)
def test_the_default_or_the_largest_of_several_videos(tmp_path, suffix, codec, default, counts):
    """As ffmpeg takes it; the other may be a programme of which a recording has a few packets."""
    path = tmp_path / f'a.{suffix}'
    with av.open(str(path), 'w') as container:
        streams = [container.add_stream(codec, rate=25) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = 'yuv420p'
            stream.disposition = Disposition.default if default and side == 32 else Disposition(0)
        for stream, count in zip(streams, counts, strict=True):
            for picture in frames(count, stream.width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
            if count:
                container.mux(stream.encode(None))
    count, side = (counts[0], 32) if default else (counts[1], 64)
    video = VideoFile(path)
    assert video.num_frames == count and video.read([3]).shape == (1, 3, side, side)


def test_an_animated_avif_moves(tmp_path):
    first, *others = (Image.new('RGB', (64, 48), (40 * i, 0, 0)) for i in range(6))
    try:
        first.save(tmp_path / 'a.avif', save_all=True, append_images=others, duration=100)
    except (KeyError, ValueError, OSError):
        pytest.skip('this Pillow writes no AVIF')
    video = VideoFile(tmp_path / 'a.avif')
    assert video.num_frames == 6 and video.fps == pytest.approx(10)


# ---- pixels that are not square ----


@pytest.mark.parametrize('turn', [0, 90])
def test_pixels_keep_their_aspect(tmp_path, turn):
    """Frames come as they are stored; what is written of them is shown as they were."""
    path, out = tmp_path / 'a.mp4', tmp_path / 'out.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        if turn:
            stream.set_display_rotation(turn)
        for picture in frames(6, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[:48], 'rgb24')))
        container.mux(stream.encode(None))
    video = VideoFile(path)
    aspect = Fraction(3, 4) if turn else Fraction(4, 3)
    assert video.pixel_aspect == aspect
    assert video.read([0]).shape[2:] == ((64, 48) if turn else (48, 64))
    coding = Coding()
    write_video(out, video.read(range(6)), video.times, video.duration, coding, aspect)
    assert VideoFile(out).pixel_aspect == aspect
    write_video(out, video.read(range(6)), video.times, video.duration, coding)
    assert VideoFile(out).pixel_aspect == 1
    part = Record(str(path))
    encode(part, out, Encoding(size=32), time_limit=60)
    assert VideoFile(out).pixel_aspect == aspect


# ---- fields ----


class Bits(list):
    def u(self, count, value):
        self.extend(value >> i & 1 for i in range(count - 1, -1, -1))

    def ue(self, *values):
        for value in values:
            self.u(2 * (value + 1).bit_length() - 1, value + 1)

    def packed(self):
        return np.packbits(np.array(self, np.uint8)).tobytes()


def unit(head, data):
    """A unit of H.264, with a byte of 3 where two zeros are followed by one of up to 3."""
    out = bytearray([head])
    for byte in data:
        if out[-2:] == b'\0\0' and byte <= 3:
            out.append(3)
        out.append(byte)
    return b'\0\0\0\1' + bytes(out)


def parameter_sets():
    """Of 64 x 64 pixels in two fields, with 25 frames a second."""
    sequence, picture = Bits(), Bits()
    sequence.u(24, 77 << 16 | 30)
    sequence.ue(0, 0, 0, 4, 1)
    sequence.u(1, 0)
    sequence.ue(3, 1)
    sequence.u(10, 0b0010100001)  # fields but no frames of both, no crop, with a rate
    sequence.u(32, 1), sequence.u(32, 50), sequence.u(4, 0b1000), sequence.u(2, 0b11)
    sequence.ue(0, 0, 10, 10, 0, 1)
    sequence.u(1, 1)
    picture.ue(0, 0)
    picture.u(2, 0)
    picture.ue(0, 0, 0)
    picture.u(3, 0)
    picture.ue(0, 0, 0)
    picture.u(4, 0b1001)
    return unit(0x27, sequence.packed()) + unit(0x28, picture.packed())


def field(level, number, bottom):
    """One grey level in blocks that are stored as they are."""
    head, data = Bits(), b''
    key = not number and not bottom
    head.ue(0, 7, 0)
    head.u(4, number % 16), head.u(2, 2 | bottom)
    if key:
        head.ue(0)
    head.u(8, 2 * number + bottom), head.u(2 if key else 1, 0), head.ue(0, 1)
    for i in range(8):
        block = head if not i else Bits()
        block.ue(25)
        data += block.packed() + bytes([level]) * 256 + bytes([128]) * 128
    return unit(0x25 if key else 0x21, data + b'\x80')


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'mov'])
def test_a_packet_for_each_field(tmp_path, suffix):
    raw, path, count = tmp_path / 'a.ts', tmp_path / f'a.{suffix}', 12
    with av.open(str(raw), 'w') as container:
        stream = container.add_stream('libx264', rate=25)  # for the header; packets are ours
        stream.width, stream.height, stream.pix_fmt = 64, 64, 'yuv420p'
        for i in range(count):
            for bottom in (0, 1):
                start = b'\0\0\0\1\x09\xf0' + (b'' if i or bottom else parameter_sets())
                packet = av.Packet(start + field(20 + 8 * i, i, bottom))
                packet.pts = packet.dts = (2 * i + bottom) * 1800
                packet.time_base, packet.stream = TICK, stream
                packet.is_keyframe = not i and not bottom
                container.mux(packet)
    copy(raw, path)
    with av.open(str(path)) as container:
        assert sum(p.size > 0 for p in container.demux(video=0)) == 2 * count
    video = VideoFile(path)
    assert torch.allclose(video.times, torch.arange(count, dtype=torch.float64) / 25, atol=2e-3)
    levels = video.read(range(count)).float().mean((1, 2, 3))
    assert (levels.diff() > 5).all()


def test_segments_that_an_index_promises(tmp_path):
    """'sidx': two segments of 100 bytes after it."""
    rows = struct.pack('>IIIIII', 100, 25, 0, 100, 25, 0)
    body = struct.pack('>IIIIIHH', 0, 1, 25, 0, 0, 0, 2) + rows
    index = struct.pack('>I4s', 8 + len(body), b'sidx') + body
    segment = struct.pack('>I4s', 100, b'mdat') + bytes(92)
    path = tmp_path / 'a.mp4'
    path.write_bytes(index + 2 * segment)
    assert not cut_short(str(path), 'mov,mp4,m4a,3gp,3g2,mj2')
    path.write_bytes(index + segment)
    assert cut_short(str(path), 'mov,mp4,m4a,3gp,3g2,mj2')


def test_transport_streams_put_together(tmp_path):
    """Counters and clock start anew, at a keyframe; where packets are lost they do not."""
    path = write(tmp_path / 'a.ts', 'mpeg2video', range(30))
    data = path.read_bytes()
    path.write_bytes(data + data)
    video = VideoFile(path)
    pictures = video.read(range(60))
    assert video.num_frames == 60 and torch.equal(pictures[:30], pictures[30:])
    middle = len(data) // 376 * 188
    path.write_bytes(data[:middle] + data[middle + 5 * 188 :])
    with pytest.raises(VideoError, match='followed by a gap'):
        assert VideoFile(path).num_frames


# ---- transport streams, which have no end of their own ----

QUIET = {'libx265': {'x265-params': 'log-level=none:frame-threads=1:pools=none'}}


def blocks(data):
    """(place, PID, whether something starts, whether it carries anything) of each 188 bytes."""
    for place in range(0, len(data), 188):
        _, high, low, flags = data[place : place + 4]
        yield place, (high & 31) << 8 | low, bool(high & 64), bool(flags & 16)


def unpadded(data):
    """The last packet's stuffing as zeros behind its picture, which codecs allow."""
    *_, last = (place for place, pid, *_ in blocks(data) if pid == 256)
    block = data[last : last + 188]
    assert block[3] & 0x20
    payload = block[5 + block[4] :]
    block = block[:3] + bytes([block[3] & ~0x20]) + payload + bytes(184 - len(payload))
    return data[:last] + block + data[last + 188 :]


@pytest.mark.parametrize('codec', ['libx264', 'mpeg2video', 'libx265'])
def test_a_transport_stream_cut_between_its_packets(tmp_path, codec):
    """Refused where its last picture is not whole, though the container is; and only there."""
    ticks = range(0, 15 * 3600, 3600) if codec.startswith('libx') else range(15)
    path = write(tmp_path / 'a.ts', codec, ticks, codec_options=QUIET.get(codec, {'bf': '2'}))
    data = path.read_bytes()
    shares = [row for row in blocks(data) if row[1] == 256 and row[3]]
    starts = [place for place, _, begins, _ in shares if begins]
    whole, within = starts[6::3], [row[0] for row in shares if not row[2] and row[0] > starts[6]]
    for place in whole:
        path.write_bytes(data[: place if data[place - 187] & 31 else place - 2 * 188])
        assert VideoFile(path).num_frames == starts.index(place)
    assert len(within) > 8
    for place in within[:: len(within) // 8]:
        path.write_bytes(data[:place])
        with pytest.raises(VideoError, match='the last picture is cut short'):
            assert VideoFile(path).num_frames
    path.write_bytes(unpadded(data))
    assert VideoFile(path).num_frames == 15


def test_a_recording_starts_anywhere(tmp_path):
    path = write(tmp_path / 'a.ts', 'mpeg2video', range(30))
    data = path.read_bytes()
    for place in (188 * 40, 188 * 41 + 7):
        path.write_bytes(data[place:])
        assert 10 < VideoFile(path).num_frames == decoded(path) < 30


def test_other_packets_at_the_end_of_a_transport_stream(tmp_path):
    """Of a program that writes each packet in one piece; broadcasts mix them, and end anywhere."""
    path = tmp_path / 'a.ts'
    with av.open(str(path), 'w') as container:
        video = container.add_stream('mpeg2video', rate=25)
        video.width = video.height = 64
        video.pix_fmt = 'yuv420p'
        sound = container.add_stream('mp2', rate=48000, layout='stereo')
        noise = np.random.default_rng(0).integers(-9999, 9999, (1, 2 * 1152), np.int16)
        for i, picture in enumerate(frames(60)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, 'rgb24')))
            for j in range(i * 1920 // 1152, (i + 1) * 1920 // 1152):
                wave = av.AudioFrame.from_ndarray(noise, 's16', 'stereo')
                wave.sample_rate, wave.pts = 48000, j * 1152
                container.mux(sound.encode(wave))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    data = path.read_bytes()
    assert VideoFile(path).num_frames == 60
    rows = list(blocks(data))
    ends = {'': [], 'sound': [], 'tables': []}  # places at which a cut leaves that at the end
    for (_, before, *_), (place, pid, begins, _) in itertools.pairwise(rows[len(rows) * 3 // 4 :]):
        if before in (256, 257) and begins:
            ends[''].append(place)
        elif pid == before == 257:
            ends['sound'].append(place)
        elif before not in (256, 257) and pid in (256, 257):
            ends['tables'].append(place)
    for kind, message in (('sound', 'in the middle of a packet'), ('tables', 'nothing follows')):
        for place in ends[kind][:20:6]:
            path.write_bytes(data[:place])
            with pytest.raises(VideoError, match=message):
                assert VideoFile(path).num_frames
            # As broadcasts have it: another packet amid a picture.
            place = next(row[0] for row in rows if row[1] == 256 and not row[2])
            other = b'\x47\0\x11\x10' + bytes(184)
            path.write_bytes(data[:place] + other + data[place : ends[kind][0]])
            assert VideoFile(path).num_frames
    for place in ends[''][::9]:
        path.write_bytes(data[:place])
        assert VideoFile(path).num_frames


def parts(folder, codec, **options):
    """The bytes of four parts of 25 frames, as a program cuts a stream into files."""
    ticks = range(0, 100 * 3600, 3600) if codec.startswith('libx') else range(100)
    options = {'segment_time': '1', 'segment_format': 'mpegts', **options}
    coded = {'g': '25', 'keyint_min': '25', **QUIET.get(codec, {'sc_threshold': '0'})}
    write(folder / 'part%d.ts', codec, ticks, 'segment', options, codec_options=coded)
    return [path.read_bytes() for path in sorted(folder.glob('part*.ts'))]


@pytest.mark.parametrize('codec', ['libx264', 'libx265'])
@pytest.mark.parametrize('reset', ['0', '1'])
def test_parts_of_a_stream_put_together(tmp_path, codec, reset):
    """The clock goes on or starts anew; what a player gives is what is read."""
    found, path = parts(tmp_path, codec, reset_timestamps=reset), tmp_path / 'whole.ts'
    assert len(found) > 2
    path.write_bytes(b''.join(found))
    video = VideoFile(path)
    assert video.num_frames == decoded(path) == 100
    assert torch.allclose(video.times, torch.arange(100, dtype=torch.float64) / 25, atol=1e-3)
    seconds, played = zip(*video.play(), strict=True)
    assert torch.allclose(video.times, torch.tensor(seconds, dtype=torch.float64), atol=1e-3)
    assert video.duration == pytest.approx(4, abs=0.01) and torch.equal(
        video.read([0, 60, 99])[1], played[60]
    )
    first, second, *others = found
    path.write_bytes(unpadded(first) + second)
    assert VideoFile(path).num_frames == 50 or codec == 'libx265'
    within = [place for place, pid, begins, _ in blocks(first) if pid == 256 and not begins]
    for place in (within[-1], within[len(within) // 2]):
        path.write_bytes(b''.join([first[:place], second, *others]))
        for use in (lambda: VideoFile(path).num_frames, lambda: list(VideoFile(path).play())):
            with pytest.raises(VideoError):
                use()


def test_parts_are_put_together_whatever_the_counter_before_was(tmp_path):
    """One in sixteen ends with the number that the next begins with, as a packet sent twice does."""
    data = write(tmp_path / 'a.ts', 'mpeg2video', range(5)).read_bytes()
    path = tmp_path / 'whole.ts'
    for shift in range(16):
        second = bytearray(data)
        for place, pid, *_ in blocks(data):
            if pid == 256:
                second[place + 3] = data[place + 3] & 240 | (data[place + 3] + shift) % 16
        path.write_bytes(data + second)
        assert VideoFile(path).num_frames == 10


def test_a_part_that_is_missing_between_others(tmp_path):
    """Files of one writer begin alike, so a later one is known for such; a gap does not end so."""
    found, path = parts(tmp_path, 'libx264'), tmp_path / 'whole.ts'
    path.write_bytes(found[0] + found[2])
    video = VideoFile(path)
    assert video.num_frames == 50 and video.times[25] - video.times[24] > 1
    whole = write(
        tmp_path / 'a.ts', 'libx264', range(0, 75 * 3600, 3600), codec_options={'g': '25'}
    )
    data = whole.read_bytes()
    starts = [place for place, pid, begins, _ in blocks(data) if pid == 256 and begins]
    tables = [place for place, pid, *_ in blocks(data) if not pid]
    key = max(place for place in tables if place < starts[50]) - 188
    path.write_bytes(data[: starts[30]] + data[key:])
    with pytest.raises(VideoError, match='followed by a gap'):
        assert VideoFile(path).num_frames


@pytest.mark.parametrize(
    ('codec', 'name', 'head'),
    [('libx265', 'hevc', b'\0\0\0\1\x46\x01\x50'), ('mpeg2video', 'mpeg2video', b'\0\0\1\xb2name')],
)
def test_what_stands_before_a_picture_is_none(tmp_path, codec, name, head):
    """A cut behind it; the decoder says nothing."""
    ticks = range(0, 15 * 3600, 3600) if codec.startswith('libx') else range(15)
    path = write(tmp_path / 'a.ts', codec, ticks, codec_options=QUIET.get(codec, {'bf': '0'}))
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        extradata = stream.codec_context.extradata
    assert not Tail(name, extradata, packets).is_cut()
    assert Tail(name, extradata, [*packets, head]).is_cut()
