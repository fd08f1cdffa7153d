"""Hundreds of damaged videos: refused in one line, soon and in little memory, or read as they are."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import gzip
import io
import os
import random
import re
import select
import socket
import stat
import struct
import termios
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.videos import png, save, sound
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize

from bvtam.clip import ClipConfig
from bvtam.data.datasets import VideoDataset, collate
from bvtam.data.failures import Failures
from bvtam.data.records import Record
from bvtam.data.video import decoder, pipes
from bvtam.data.video.file import VideoFile
from bvtam.data.video.pyav import open_container
from bvtam.data.video.reader import VideoError
from bvtam.errors import BvtamError
from bvtam.inference.extract import extract
from bvtam.inference.predict import predict_many
from bvtam.inference.shards import load_features

FRAMES, WIDTH, HEIGHT = 24, 64, 48
# All frames of a whole video, and with 3 crops all of their pixels, as they are.
CLIP = ClipConfig(num_frames=FRAMES, resize=HEIGHT, crop_size=HEIGHT, num_crops=3)
TIME_LIMIT = 4  # seconds without progress; a busy machine has these pauses
SECONDS = 10  # of the processor, for the slowest video
MEMORY = 512_000_000  # bytes on top of what the process has; docs/security.md
HUGE = 30_000  # pixels
MEASURED = os.access('/proc/self/clear_refs', os.W_OK)

# Without mbtree, which reads memory that it has not written: these bytes are the same each time.
X264 = {'x264-params': 'keyint=6:bframes=2:scenecut=0:mbtree=0:threads=1:log-level=none'}
X265 = {'x265-params': 'keyint=6:bframes=2:pools=none:frame-threads=1:log-level=none'}
VP9 = {'g': '6', 'cpu-used': '8', 'deadline': 'realtime', 'b': '400k'}
GOP = {'g': '6', 'b': '1M'}
SOURCES = {
    'h264.mp4': ('libx264', X264, {}),
    'front.mp4': ('libx264', X264, {'movflags': 'faststart'}),
    'fragments.mp4': ('libx264', X264, {'movflags': 'frag_keyframe+empty_moov'}),
    'h264.mkv': ('libx264', X264, {}),
    'h264.ts': ('libx264', X264, {}),
    'hevc.mp4': ('libx265', X265, {}),
    'hevc.mkv': ('libx265', X265, {}),
    'vp9.webm': ('libvpx-vp9', VP9, {}),
    'mpeg4.mp4': ('mpeg4', {**GOP, 'bf': '1'}, {}),
    'mpeg4.avi': ('mpeg4', GOP, {}),
    'counted.avi': ('mpeg4', {**GOP, 'bf': '2'}, {}),  # keeps no times
    'mjpeg.avi': ('mjpeg', {}, {}),
    'mpeg2.ts': ('mpeg2video', GOP, {}),
    'loop.gif': ('gif', {}, {}),
}


@dataclass
class Case:
    kind: str
    path: Path
    whole: str = ''  # name of the sound video that it was
    refused: bool = False  # whether it must be refused
    arm: Callable[[Path], object] | None = None  # to be called before each use


# ---- sound videos, and what PyAV alone makes of damaged ones ----


def pictures(width=WIDTH, height=HEIGHT):
    """A texture that moves, with noise; every picture is another."""
    values = np.random.default_rng(0)
    texture = values.integers(0, 200, (2 * height, 2 * width, 3), np.uint8)
    texture = np.kron(texture[::8, ::8], np.ones((8, 8, 1), np.uint8))
    for i in range(FRAMES):
        noise = values.integers(0, 40, (height, width, 3), np.uint8)
        yield np.roll(texture, (i, 2 * i), (0, 1))[:height, :width] + noise


def write(path, codec, options, container_options=(), width=WIDTH, height=HEIGHT):
    container = {'fflags': '+bitexact', **dict(container_options)}  # else WebM has a random name
    return save(path, codec, pictures(width, height), options, container)


@dataclass
class Plain:
    """What a decode from start to end, by PyAV alone and in one thread, gives."""

    frames: torch.Tensor  # (V, C, H, W), those after an error included
    fault: str = ''

    @cached_property
    def indices(self):
        """Those of the middle frames of equal parts; all, and some twice, where there are few."""
        count = len(self.frames)
        if count <= FRAMES:
            return [i * count // FRAMES for i in range(FRAMES)]
        return [int(count / FRAMES / 2 + count / FRAMES * i) for i in range(FRAMES)]

    @cached_property
    def crops(self):
        """(3, C, T, S, S): at the start, middle and end of the longer side."""
        picked = resize(self.frames[self.indices], [HEIGHT], antialias=True)
        side = picked.shape[2] < picked.shape[3]
        most = max(picked.shape[2:]) - HEIGHT
        return torch.stack(
            [
                picked.narrow(2 + side, start, HEIGHT).transpose(0, 1)
                for start in (0, round(most / 2), most)
            ]
        )

    @cached_property
    def scores(self):
        """(3, 7) of `Probe`."""
        mean, std = (np.array(v)[:, None, None, None] for v in (CLIP.mean, CLIP.std))
        x = (self.crops.numpy() / 255 - mean) / std
        weight = Probe().weight.detach().double().flatten(1)
        return torch.from_numpy(x).flatten(1) @ weight.T


def decode(path, hold=True):
    """`hold` keeps the decoder from using the memory of a frame for a later one."""
    arrays, held, fault, size = [], [], '', None
    try:
        with open_container(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_count, stream.thread_type = 1, 'NONE'
            packets, packet = file.demux(stream), None
            while True:
                try:
                    packet = next(packets, None)
                    marked = packet is not None and packet.is_corrupt
                    found = stream.decode(packet)
                except av.FFmpegError as error:
                    fault, marked, found = fault or error.strerror, False, []
                for frame in found:
                    marked |= frame.is_corrupt
                    held += [frame] * hold
                    size = size or (frame.width, frame.height)
                    arrays.append(frame.reformat(*size, 'rgb24').to_ndarray())
                fault = fault or 'marked' * marked
                if packet is None or not packet.size:
                    break
    except (av.FFmpegError, IndexError, AttributeError) as error:  # no stream, or of no codec
        fault = fault or str(error)
    if not arrays:
        return Plain(torch.zeros(0, 3, HEIGHT, WIDTH, dtype=torch.uint8), fault or 'no frames')
    return Plain(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), fault)


# ---- damage ----


def cut_at(data, draw):
    """Lengths to cut to: anywhere, in the header, just before the end."""
    places = [draw.randrange(1, len(data)) for _ in range(3)]
    return [*places, draw.randrange(4, 200), len(data) - draw.randrange(1, 40), len(data) // 2]


def flipped(data, draw):
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 10))):
        broken[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(broken)


def zeroed(data, draw):
    size = draw.randrange(20, len(data) // 8)
    start = draw.randrange(len(data) - size)
    return data[:start] + bytes(size) + data[start + size :]


def removed(data, draw):
    size = draw.randrange(1, len(data) // 8)
    start = draw.randrange(len(data) - size)
    return data[:start] + data[start + size :]


def ends_of_packets(path):
    """Places in a file where a packet of its video ends."""
    with av.open(str(path)) as container:
        return [p.pos + p.size for p in container.demux(video=0) if p.size and p.pos is not None]


def damaged(path):
    """(kind, bytes) of damaged copies of a sound video."""
    data, draw = path.read_bytes(), random.Random(path.name)
    for length in cut_at(data, draw):
        yield 'cut', data[:length]
    for length in draw.sample(ends_of_packets(path)[:-1], 2):
        yield 'cut between packets', data[:length]
    for kind, damage, count in (('bits', flipped, 7), ('zeros', zeroed, 3), ('gap', removed, 3)):
        for _ in range(count):
            yield kind, damage(data, draw)


def replaced(data, old, new, count=None):
    """`data` with `new` for each `old`, of which there are `count`."""
    assert data.count(old) == count if count else old in data
    return data.replace(old, new)


def no_videos():
    """(file name, bytes) of what is something else."""
    draw = random.Random('no videos')
    page = '<!DOCTYPE html>\n<html><head><title>404</title></head><body>Sign in</body></html>\n' * 9
    text = 'Not a video.\n' * 100
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('a.txt', text)
    subtitles = '1\n00:00:00,000 --> 00:00:09,000\nhello\n\n2\n00:00:10,000 --> 00:00:19,000\nx\n'
    for suffix in ('mp4', 'avi', 'ts', 'mkv'):
        yield f'text.{suffix}', text.encode()
        yield f'page.{suffix}', page.encode()
    yield 'zip.mp4', archive.getvalue()
    yield 'gzip.webm', gzip.compress(text.encode())
    yield 'pdf.mp4', b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n' * 20
    yield 'json.mp4', b'{"error": {"code": 403, "message": "forbidden"}}'
    yield 'subtitles.mp4', subtitles.encode()
    yield 'program.mp4', b'\x7fELF\x02\x01\x01' + draw.randbytes(5000)
    yield 'zeros.mp4', bytes(100_000)
    yield 'ones.mkv', b'\xff' * 100_000
    yield 'byte.mp4', b'\0'
    for i, suffix in enumerate(('mp4', 'ts', 'mkv', 'avi', 'webm')):
        yield f'random {i}.{suffix}', draw.randbytes(30_000)


def playlists(port):
    """(file name, bytes) of lists that name a sound video beside them, or an address."""
    away = f'http://127.0.0.1:{port}/away'
    hls = '#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n'
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9" '
        'codecs="avc1.42c00a" width="64" height="48"><BaseURL>{}</BaseURL><SegmentBase '
        'indexRange="0-9"/></Representation></AdaptationSet></Period></MPD>'
    )
    sdp = 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {} RTP/AVP 96\n'
    for name, target in (('near', 'h264.ts'), ('far', f'{away}.ts')):
        yield f'hls {name}.ts', hls.format(target).encode()
        yield f'hls {name}.mp4', hls.format(target).encode()
        yield f'concat {name}.mp4', f"ffconcat version 1.0\nfile '{target}'\n".encode()
        yield f'dash {name}.mp4', mpd.format(target).encode()
    yield 'session.mp4', (sdp.format(port) + 'a=rtpmap:96 H264/90000\n').encode()
    yield 'real.mp4', f'[Reference]\nRef1={away}.asf?MSWMExt=.asf\n'.encode()


def with_bits(data, start, *fields):
    """`data` with (value, number of bits) written from bit `start` on."""
    number, place = int.from_bytes(data, 'big'), len(data) * 8 - start
    for value, count in fields:
        place -= count
        number = number & ~(((1 << count) - 1) << place) | value << place
    return number.to_bytes(len(data), 'big')


def with_vp9_size(data, side):
    """A WebM file of which each keyframe says that it has `side` pixels."""
    starts = [found.start() for found in re.finditer(b'\x82\x49\x83\x42', data)]
    assert len(starts) == FRAMES // 6
    for start in starts:  # the size comes after 32 bits, and 4 of the colours
        data = with_bits(data, start * 8 + 36, (side - 1, 16), (side - 1, 16))
    return data


def huge_h264(data, side):
    """A raw H.264 stream whose parameters say `side` pixels, of one that says little."""
    start = data.index(b'\0\0\0\1\x67') + 5  # the sequence parameter set
    end = data.index(b'\0\0\0\1', start)
    bits = ''.join(f'{byte:08b}' for byte in data[start:end].replace(b'\0\0\3', b'\0\0'))
    place, numbers = 24, []  # after profile, constraints and level

    def number():
        nonlocal place
        zeros = bits.index('1', place) - place
        first, place = place, place + 2 * zeros + 1
        numbers.append((first, place))
        return int(bits[first + zeros : place], 2) - 1

    assert bits[:8] == '01000010'  # the baseline profile, of which the next is true
    number(), number()
    if number() == 0:  # pic_order_cnt_type
        number()
    number()
    place += 1
    number(), number()
    code = f'{side // 16:b}'
    code = '0' * (len(code) - 1) + code  # of side / 16 - 1, in an Exp-Golomb code
    bits = bits[: numbers[-2][0]] + 2 * code + bits[numbers[-1][1] :]
    bits = bits.rstrip('0').ljust(-(-len(bits) // 8) * 8, '0')
    patched = int(bits, 2).to_bytes(len(bits) // 8, 'big')
    return data[:start] + re.sub(b'\0\0(?=[\0-\3])', b'\0\0\3', patched) + data[end:]


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(next(pictures())).save(buffer, 'jpeg')
    return buffer.getvalue()


def huge_pictures(folder, sources):
    """(file name, bytes) of small files that say they have pictures of `HUGE` x `HUGE`."""
    big, size = struct.pack('>HH', HUGE, HUGE), struct.pack('>HH', WIDTH, HEIGHT)
    little = {n: struct.pack('<II', n, m) for n, m in ((WIDTH, HEIGHT), (HUGE, HUGE))}
    yield 'png.mp4', png(HUGE, HUGE, bytes(5000))
    yield 'png side.mp4', png(2**31 - 1, 1, bytes(5000))
    head = struct.pack('>HH', HEIGHT, WIDTH)
    yield 'jpeg.mp4', replaced(jpeg(), b'\x08' + head, b'\x08' + big, 1)
    data = sources['mjpeg.avi'].read_bytes()
    frames = replaced(data, b'\x08' + head, b'\x08' + big, FRAMES)
    yield 'mjpeg frames.avi', frames
    yield 'mjpeg header.avi', replaced(data, little[WIDTH], little[HUGE])
    yield 'mjpeg.avi', replaced(frames, little[WIDTH], little[HUGE])
    data = sources['mpeg4.avi'].read_bytes()
    yield 'mpeg4 header.avi', replaced(data, little[WIDTH], little[HUGE])
    data = sources['h264.mp4'].read_bytes()
    yield 'sample.mp4', replaced(data, size, big, 1)
    track = struct.pack('>II', WIDTH << 16, HEIGHT << 16)
    yield 'track.mp4', replaced(data, track, struct.pack('>II', HUGE << 16, HUGE << 16), 1)
    data = sources['loop.gif'].read_bytes()
    small, large = struct.pack('<HH', WIDTH, HEIGHT), struct.pack('<HH', HUGE, HUGE)
    yield 'screen.gif', data[:6] + large + data[10:]
    yield 'frames.gif', data[:13] + replaced(data[13:], small, large)
    yield 'all.gif', replaced(data, small, large)

    square = write(folder / 'square.webm', 'libvpx-vp9', VP9, width=320, height=320)
    data = square.read_bytes()
    sides = b'\xb0\x82\x01\x40\xba\x82\x01\x40'
    container = replaced(data, sides, b'\xb0\x82' + big[:2] + b'\xba\x82' + big[2:], 1)
    stream = with_vp9_size(container, HUGE)
    yield 'container.webm', container
    yield 'both.webm', stream
    yield 'stream.webm', stream.replace(b'\xb0\x82' + big[:2] + b'\xba\x82' + big[2:], sides)
    square.unlink()

    raw = folder / 'raw.h264'
    options = {'profile': 'baseline', 'preset': 'ultrafast', 'g': '6'}
    write(raw, 'libx264', options)
    data = raw.read_bytes()
    raw.unlink()
    for side in (16_384, 30_000, 2**20):
        yield f'h264 {side}.mp4', huge_h264(data, side)
    yield 'yuv.y4m', b'YUV4MPEG2 W%d H%d F25:1 C420\nFRAME\n' % (HUGE, HUGE) + bytes(9999)
    yield 'ppm.mp4', b'P6 %d %d 255\n' % (HUGE, HUGE) + bytes(9999)
    bmp = b'BM' + struct.pack(
        '<IIIIiiHHIIiiII', 9999, 0, 54, 40, HUGE, HUGE, 1, 24, 0, 0, 0, 0, 0, 0
    )
    yield 'bmp.mp4', bmp + bytes(9999)


def box(data, name, nth=0):
    """Where the content of a box of an MP4 file begins."""
    return [found.end() for found in re.finditer(name, data)][nth]


def patched(data, start, format, *values):
    size = struct.calcsize(format)
    return data[:start] + struct.pack(format, *values) + data[start + size :]


def huge_counts(sources):
    """(file name, bytes) of small files that say they have very many frames, or last for ages."""
    data = sources['h264.mp4'].read_bytes()
    for count in (100_000, 2**32 - 1):
        table = box(data, b'stsz')
        yield f'sizes {count}.mp4', patched(data, table + 8, '>I', count)
        for size in (1, 2**31):
            lie = patched(data, table + 4, '>II', size, count)
            yield f'equal sizes {size} {count}.mp4', lie
            # Then all in one chunk, each as long as the other.
            lie = patched(lie, box(data, b'stsc') + 4, '>IIII', 1, 1, count, 1)
            lie = patched(lie, box(data, b'stts') + 4, '>III', 1, count, 512)
            yield f'one chunk {size} {count}.mp4', lie
        yield f'times {count}.mp4', patched(data, box(data, b'stts') + 8, '>I', count)
        yield f'chunks {count}.mp4', patched(data, box(data, b'stco') + 4, '>I', count)
        yield f'keys {count}.mp4', patched(data, box(data, b'stss') + 4, '>I', count)
        yield f'shifts {count}.mp4', patched(data, box(data, b'ctts') + 8, '>I', count)
    for name in (b'mvhd', b'mdhd'):
        long = patched(data, box(data, name) + 16, '>I', 2**32 - 1)
        yield f'{name.decode()}.mp4', long
    yield 'slow.mp4', patched(data, box(data, b'stts') + 12, '>I', 2**31 - 1)
    data = sources['fragments.mp4'].read_bytes()
    for count in (100_000, 2**31, 2**32 - 1):
        yield f'run {count}.mp4', patched(data, box(data, b'trun') + 4, '>I', count)
    data = sources['mpeg4.avi'].read_bytes()
    head, stream = box(data, b'avih') + 4, box(data, b'strh') + 4
    for count in (2**31 - 1, 2**32 - 1):
        lie = patched(data, head + 16, '<I', count)
        yield f'frames {count}.avi', lie
        yield f'length {count}.avi', patched(lie, stream + 32, '<I', count)
        yield f'index {count}.avi', patched(data, box(data, b'idx1'), '<I', count)
        yield f'rate {count}.avi', patched(data, stream + 20, '<II', 1, count)
        yield f'scale {count}.avi', patched(data, stream + 20, '<II', count, 1)
    data = sources['h264.mkv'].read_bytes()
    duration = box(data, b'\x44\x89\x88')
    for seconds in (1e6, 1e18, float('inf'), float('nan')):
        yield f'seconds {seconds}.mkv', patched(data, duration, '>d', seconds * 1000)
    cluster = data.index(b'\x1f\x43\xb6\x75')
    yield (
        'cluster.mkv',
        data[: cluster + 4] + b'\x01' + b'\xff' * 6 + b'\xf0' + data[cluster + 12 :],
    )


def places(folder, whole, stack):
    """Cases of what is no file, or none that can be read to its end."""
    data = whole.read_bytes()
    half = len(data) // 2

    def case(name, make, *args, **options):
        path = folder / f'{name}.mp4'
        make(path, *args)
        return Case('place', path, **{'refused': True, **options})

    yield case('folder', Path.mkdir)
    (folder / 'folder.mp4' / 'readme').write_text('no video')
    yield case('dangling', Path.symlink_to, 'nowhere.mp4')
    yield case('circle', Path.symlink_to, 'circle.mp4')
    yield case('zeros without end', Path.symlink_to, '/dev/zero')
    yield case('nothing', Path.symlink_to, '/dev/null')
    yield case('socket', os.mknod, stat.S_IFSOCK | 0o600)
    locked = case('locked', Path.write_bytes, data)
    locked.path.chmod(0)
    if os.access(locked.path, os.R_OK):  # to root it is as any other
        locked.kind, locked.whole, locked.refused = 'sound', whole.name, False
    yield locked
    yield case('nobody writes', os.mkfifo)

    def feed(path, *parts):
        def work():
            with contextlib.suppress(BrokenPipeError), open(path, 'wb', buffering=0) as pipe:
                for part in parts:
                    pipe.write(part)
                    while fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4):
                        time.sleep(0.01)  # until the reader waits for more

        threading.Thread(target=work, daemon=True).start()

    yield case('writer leaves', os.mkfifo, arm=lambda path: feed(path, data[:half]))
    pauses = case('writer pauses', os.mkfifo, arm=lambda path: feed(path, data[:half], data[half:]))
    pauses.kind, pauses.whole, pauses.refused = 'sound', whole.name, False
    yield pauses
    stops = case('writer stops', os.mkfifo)
    writer = os.open(stops.path, os.O_RDWR)
    stack.callback(os.close, writer)
    stops.arm = lambda path: os.write(writer, data[:half])  # which is read to its end each time
    yield stops


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """All cases, and {name: frames} of the sound videos."""
    folder = tmp_path_factory.mktemp('damaged')
    sources = {name: write(folder / name, *how) for name, how in SOURCES.items()}
    cases = [Case('sound', path, name) for name, path in sources.items()]

    def add(kind, name, data, **options):
        path = folder / f'{kind} {name}'
        path.write_bytes(data)
        cases.append(Case(kind, path, **options))

    for name, path in sources.items():
        for i, (kind, data) in enumerate(damaged(path)):
            add(kind, f'{i:02} {name}', data, whole=name)
    with socket.create_server(('127.0.0.1', 0)) as server, contextlib.ExitStack() as stack:
        for name, data in playlists(server.getsockname()[1]):
            add('playlist', name, data, refused=True)
        for name, data in no_videos():
            add('no video', name, data, refused=True)
        for suffix in ('mp4', 'mkv', 'avi', 'ts', 'gif'):
            add('empty', f'file.{suffix}', b'', refused=True)
        for name, data in huge_pictures(folder, sources):
            add('huge picture', name, data)
        for name, data in huge_counts(sources):
            add('huge count', name, data)
        add('picture', 'jpeg.mp4', jpeg())
        for name, codec, cover in (
            ('tone.mp4', 'aac', None),
            ('tone.mkv', 'aac', None),
            ('wave.avi', 'pcm_s16le', None),
            ('tone.ts', 'aac', None),
            ('cover.mp4', 'aac', jpeg()),
        ):
            sound(folder / name, codec, cover)
            cases.append(Case('no pictures', folder / name, refused=True))
        cases += places(folder, sources['h264.mp4'], stack)
        random.Random(0).shuffle(cases)
        yield cases, {name: decode(path) for name, path in sources.items()}
        assert not select.select([server], [], [], 0)[0]  # no list has led anybody there


# ---- the three ways to many videos ----


@dataclass
class Outcome:
    """Of one video: why it was refused, or what was read of it."""

    reason: str = ''
    frames: list[int] | None = None
    values: torch.Tensor | None = None


@dataclass
class Run:
    """How one of the ways went: `listed` in `errors.csv`, `seconds` of the slowest video, or of all,
    and the `peak` of memory on top of what the process had."""

    found: dict[str, Outcome]
    listed: list[list[str]]
    peak: int
    seconds: float
    slowest: str


def memory(key):
    """Bytes of memory now ('VmRSS') or at most since `forget_peak` ('VmHWM')."""
    if not MEASURED:
        return 0
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024


def forget_peak():
    """Bytes of memory now, from where the peak is counted anew."""
    if MEASURED:
        Path('/proc/self/clear_refs').write_text('5')
    return memory('VmRSS')


class Measured(VideoDataset):
    def __getitem__(self, index):
        before, start = forget_peak(), time.process_time()
        sample = super().__getitem__(index)
        seconds = time.process_time() - start
        return sample | {'seconds': seconds, 'grown': memory('VmHWM') - before}


def collate_measured(samples):
    return collate(samples) | {'samples': samples}


class Probe(nn.Module):
    """Seven linear scores of all values of a clip: any other frame, order or pixel changes them."""

    num_classes, clip_config, label_names = 7, CLIP, None

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (7, 3, FRAMES, HEIGHT, HEIGHT)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) / 100)

    def forward_features(self, x):
        return torch.einsum('bcthw,kcthw->bk', x, self.weight)[..., None, None, None]

    def forward_head(self, x, pre_logits=False):
        return x.flatten(1)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def by_dataset(cases, folder):
    records = [Record(str(case.path)) for case in cases]
    data = Measured(records, CLIP, on_error='skip', time_limit=TIME_LIMIT)
    failures = Failures(len(cases), max_failed=1, path=folder / 'errors.csv')
    found, samples = {}, []
    for batch in DataLoader(
        data, batch_size=4, num_workers=2, collate_fn=collate_measured, timeout=240
    ):
        for failure in batch['failed']:
            failures.add(*failure)
            found[failure[0]] = Outcome(failure[1])
        for i, video in enumerate(batch['video']):
            (sample,) = (s for s in batch['samples'] if s['video'] == video)
            found[video] = Outcome('', sample['frames'], batch['clip'][i].clone())
        samples += [(s['seconds'], s['grown'], s['video']) for s in batch['samples']]
    seconds, _, slowest = max(samples)
    return found, max(grown for _, grown, _ in samples), seconds, slowest


def by_predict(cases, folder):
    failures = Failures(len(cases), max_failed=1, path=folder / 'errors.csv')
    before, start = forget_peak(), time.process_time()
    results = list(
        predict_many(
            Probe(), [case.path for case in cases], 7, workers=2, on_error='skip',
            failures=failures, time_limit=TIME_LIMIT,
        )
    )  # fmt: skip
    seconds = time.process_time() - start
    found = {video: Outcome(reason) for video, reason in failures.reasons.items()}
    for result in results:
        scores = {row['index']: row['score'] for row in result['top']}
        values = torch.tensor([scores[i] for i in range(7)])
        found[result['video']] = Outcome('', result['frames'], values)
    return found, memory('VmHWM') - before, seconds, ''


def by_extract(cases, folder):
    parent = cases[0].path.parent
    before, start = forget_peak(), time.process_time()
    extract(
        Probe(), [parent, *parent.glob('*.gif')], folder, shard_size=100, workers=2,
        max_failed=1, time_limit=TIME_LIMIT,
    )  # fmt: skip
    seconds, peak = time.process_time() - start, memory('VmHWM') - before
    with (folder / 'errors.csv').open(newline='') as file:
        found = {row['video']: Outcome(row['reason']) for row in csv.DictReader(file)}
    for video, rows in load_features(folder).items():
        if video not in found:
            found[video] = Outcome('', rows.frames[0].tolist(), rows.features[0])
    return found, peak, seconds, ''


@pytest.fixture(scope='module')
def runs(corpus, tmp_path_factory):
    cases, _ = corpus
    runs = {}
    for run in (by_dataset, by_predict, by_extract):
        folder = tmp_path_factory.mktemp('run')
        for case in cases:
            if case.arm is not None:
                case.arm(case.path)
        found, *rest = run(cases, folder)
        with (folder / 'errors.csv').open(newline='') as file:
            listed = [row[:2] for row in csv.reader(file)][1:]
        runs[run.__name__] = Run(found, listed, *rest)
    return runs


WAYS = pytest.mark.parametrize('way', ['by_dataset', 'by_predict', 'by_extract'])
BYTES = ('cut', 'cut between packets', 'bits', 'zeros', 'gap')


def cases_of(way, cases):
    # A folder that holds no video is no video to look for.
    return [c for c in cases if way != 'by_extract' or c.path.name != 'folder.mp4']


def is_that_of(outcome, plain, way):
    """Whether the frames and values that were read are those of this decode."""
    if outcome.frames != plain.indices or not len(plain.frames):
        return False
    if way == 'by_dataset':
        return torch.equal(outcome.values, plain.crops)
    if way == 'by_predict':
        return torch.allclose(outcome.values.double(), plain.scores.softmax(1).mean(0), atol=1e-4)
    return torch.allclose(outcome.values.double(), plain.scores.mean(0), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def plain(corpus):
    """{path: Plain} of all that can be read to its end."""
    return {case.path: decode(case.path) for case in corpus[0] if case.path.is_file()}


@pytest.fixture(scope='module')
def unwritten(corpus, plain, runs):
    """Accepted videos of which decoders leave parts of pictures as the memory was, and do not say so.

    No two decodes of these need to be equal.
    """
    accepted = [
        case.path
        for case in corpus[0]
        if case.kind in BYTES and not runs['by_dataset'].found[str(case.path)].reason
    ]
    return {
        path
        for path in accepted
        if not torch.equal(decode(path, hold=False).frames, plain[path].frames)
    }


@WAYS
def test_what_is_no_sound_video_is_listed_with_its_reason(corpus, plain, runs, way):
    (cases, _), run = corpus, runs[way]
    cases = cases_of(way, cases)
    assert len(cases) >= 300
    assert set(run.found) == {str(case.path) for case in cases}
    for case in cases:
        reason = run.found[str(case.path)].reason
        if case.kind == 'sound':
            assert not reason
        elif case.refused or (case.kind in BYTES and plain[case.path].fault):
            assert reason, f'{case.path.name} is taken'
        if reason:
            assert str(case.path) in reason and reason.isprintable() and len(reason) <= 1100
    refused = {video: outcome.reason for video, outcome in run.found.items() if outcome.reason}
    assert len(run.listed) == len(refused)
    assert dict(run.listed) == refused


@WAYS
def test_what_is_read_is_what_is_there(corpus, plain, unwritten, runs, way):
    cases, whole = corpus
    wrong = set()
    for case in cases_of(way, cases):
        outcome = runs[way].found[str(case.path)]
        if not outcome.reason:
            known = [whole[case.whole]] if case.whole else []
            known += [plain[case.path]] if case.path in plain else []
            if not any(is_that_of(outcome, decoded, way) for decoded in known):
                wrong.add(case.path)
    assert wrong <= unwritten


def test_all_ways_agree(corpus, runs):
    for case in corpus[0]:
        name = str(case.path)
        outcomes = [run.found[name] for run in runs.values() if name in run.found]
        assert len({outcome.reason for outcome in outcomes}) == 1, name
        assert all(outcome.frames == outcomes[0].frames for outcome in outcomes), name


def test_it_takes_little_time_and_memory(runs):
    assert runs['by_dataset'].seconds < SECONDS
    for run in runs.values():
        assert run.seconds < 100
        assert run.peak < MEMORY


def test_how_much_goes_unseen(corpus, plain, runs):
    """Bytes may change so that no decoder notices. What is not changed at all is not refused."""
    cases, whole = corpus
    total = Counter()
    for case in cases:
        if case.kind not in BYTES:
            continue
        outcome = runs['by_dataset'].found[str(case.path)]
        same = torch.equal(plain[case.path].frames, whole[case.whole].frames)
        too_short = 'it ends in the middle of' in outcome.reason and case.kind not in (
            'bits',
            'zeros',
        )
        if not too_short:  # whether pictures are missing or what is behind them
            total['refused' if outcome.reason else 'accepted', same] += 1
        if case.kind.startswith('cut') and case.path.suffix not in ('.gif', '.ts'):
            # These formats say how long they are, some of them to a tenth.
            # Up to two frames are stored after the one that follows them.
            assert outcome.reason or len(set(outcome.frames)) >= 0.9 * FRAMES - 2, case.path.name
    assert total['accepted', True] > 10 * total['refused', True], total
    assert total['accepted', False] < total['refused', False], total


def test_fragments_are_whole(tmp_path):
    """A cut MP4 of fragments is refused, but where it ends between two of them."""
    data = write(tmp_path / 'whole.mp4', *SOURCES['fragments.mp4']).read_bytes()
    starts = [match.start() - 4 for match in re.finditer(b'moof|mfra', data)]
    assert len(starts) == FRAMES // 6 + 1
    near = {start + step for start in starts for step in (-9, -1, 0, 1, 7, 8, 9, 40, 120)}
    cut = tmp_path / 'cut.mp4'
    for length in sorted(near | set(range(1, starts[-1], 97))):
        cut.write_bytes(data[:length])
        if length in starts[1:]:
            assert VideoFile(cut).num_frames == 6 * starts.index(length)
        elif length >= starts[-1] + 8:  # all fragments, and some of an index that nobody needs
            assert VideoFile(cut).num_frames == FRAMES
        else:
            with pytest.raises(VideoError):
                assert not VideoFile(cut).num_frames, length


def test_single_frames_of_damaged_videos(corpus, plain, unwritten, runs, monkeypatch):
    """Sought from the keyframe before, as from the start; or refused."""
    cases, whole = corpus
    draw, good, odd = random.Random(0), 0, 0
    monkeypatch.setattr(decoder, '_NEAR', 0)  # a seek for every keyframe
    for case in cases:
        if case.kind not in BYTES:
            continue
        video = VideoFile(case.path, time_limit=TIME_LIMIT)
        try:
            indices = [draw.randrange(video.num_frames) for _ in range(3)]
        except BvtamError:
            continue
        for index in indices:
            try:
                (picture,) = video.read([index])
            except BvtamError:
                continue
            decodes = whole[case.whole], plain[case.path]
            if any(torch.equal(picture, d.frames[index]) for d in decodes if index < len(d.frames)):
                good += 1
            elif runs['by_dataset'].found[str(case.path)].reason:
                odd += 1  # what a decoder puts in place of the broken depends on where it began
            else:
                assert case.path in unwritten, f'{case.path.name} {index}'
    assert good > 20 * odd, (good, odd)


# ---- what is small on disk only, or no video to anybody ----


@pytest.mark.skipif(not MEASURED, reason='needs /proc')
def test_a_picture_is_refused_before_there_is_memory_for_it(tmp_path):
    path, side = write(tmp_path / 'a.webm', 'libvpx-vp9', VP9), 16_000
    data = path.read_bytes()
    path.write_bytes(with_vp9_size(data, side))
    before = forget_peak()
    with pytest.raises(VideoError):
        VideoFile(path).read([0])
    assert memory('VmHWM') - before < MEMORY


def test_a_video_that_lasts_for_ages_has_no_windows(tmp_path):
    path = write(tmp_path / 'a.avi', 'mpeg4', GOP)
    data = path.read_bytes()
    path.write_bytes(patched(data, box(data, b'strh') + 24, '<II', 2**31 - 1, 1))
    done = extract(Probe(), path, tmp_path / 'out', what='window', length=1.0, max_failed=1)
    assert done['failed'] == 1 and not done['rows']


def test_stalled_pipes_are_waited_for_side_by_side(tmp_path, monkeypatch):
    together = threading.Barrier(4)

    def waits(*_):
        together.wait()  # for ever, were they read one after the other
        return [], [], []

    monkeypatch.setattr(pipes, 'select', SimpleNamespace(select=waits))

    def read(i):
        path = tmp_path / f'{i}.mp4'
        os.mkfifo(path)
        with pytest.raises(VideoError, match='gave nothing'):
            VideoFile(path).read([0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
