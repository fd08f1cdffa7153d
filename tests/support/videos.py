"""Videos of every container and codec that PyAV writes, and their frames by a plain decode."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

FRAMES = 36
TICK = Fraction(1, 90000)

GOP = {'g': '8'}


def pictures(count, width, height):
    """A texture that moves; every picture is another."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (2 * height, 2 * width, 3), np.uint8)
    texture = np.kron(texture[::8, ::8], np.ones((8, 8, 1), np.uint8))
    for i in range(count):
        yield np.roll(texture, (i, 2 * i), (0, 1))[:height, :width].copy()


def save(path, codec, frames, options=None, container=None, format=None, rate=25, **settings):
    """A video of pictures (H, W, C), or of frames as `at` makes them.

    `options` are those of the encoder, `container` those of the container, `settings` attributes of
    the encoder.
    """
    if codec not in av.codecs_available:
        pytest.skip(f'this PyAV has no {codec}')
    with av.open(str(path), 'w', options=container or {}, format=format) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = {'gif': 'rgb8', 'mjpeg': 'yuvj420p'}.get(codec, 'yuv420p')
        stream.codec_context.thread_count = 1
        if 'time_base' in settings:
            stream.time_base = settings['time_base']
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
            if not number:
                stream.width, stream.height = frame.width, frame.height
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def at(frames, ticks, unit):
    """The pictures as frames that are shown at `ticks` of `unit` seconds."""
    for picture, tick in zip(frames, ticks, strict=True):
        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts, frame.time_base = tick, unit
        yield frame


def write(path, codec, options, pixels, ticks=None, size=(64, 48)):
    """A video at 25 frames a second, or with its frames at `ticks` of 1/90000 s."""
    fragments = {'movflags': 'frag_keyframe+empty_moov'} if path.stem == 'fragments' else {}
    format = 'mjpeg' if path.suffix == '.mjpeg' else None
    frames, settings = pictures(FRAMES, *size), {'pix_fmt': pixels}
    if ticks is not None:
        settings['time_base'] = TICK
        frames = at(frames, ticks, TICK)
    return save(path, codec, frames, options, fragments, format, **settings)


def copy(source, target, change=lambda number, packet: packet, options=None):
    """The packets of a video in another file, as `change` gives them; None is left out."""
    with av.open(str(source)) as old, av.open(str(target), 'w', options=options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        sound = [packet for packet in old.demux(video=0) if packet.size]
        for number, packet in enumerate(sound):
            packet = change(number, packet)
            if packet is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def png(width, height, data):
    """The bytes of a PNG file that says it has this size, with `data` for its pixels."""

    def chunk(name, body):
        checked = name + body
        return struct.pack('>I', len(body)) + checked + struct.pack('>I', zlib.crc32(checked))

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    packed = chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + packed


def sound(path, codec='aac', cover=None):
    """A file without a video: a tone, and perhaps a cover picture."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=48000, layout='mono')
        if cover is not None:
            art = container.add_stream('mjpeg', rate=1)
            art.width, art.height, art.pix_fmt = 16, 16, 'yuvj420p'
            art.disposition = Disposition.attached_pic
            container.start_encoding()
            picture = av.Packet(cover)
            picture.stream = art
            container.mux(picture)
        for i in range(20):
            wave = np.sin(np.arange(i * 1024, (i + 1) * 1024) / 9)
            kind = stream.codec_context.format.name
            values = wave[None].astype('f4') if 'flt' in kind else (wave[None] * 9999).astype('i2')
            tone = av.AudioFrame.from_ndarray(values, kind, 'mono')
            tone.sample_rate, tone.pts = 48000, i * 1024
            container.mux(stream.encode(tone))
        container.mux(stream.encode(None))


def decoded(path):
    """(T, C, H, W) and the frames' seconds, by the shortest way that PyAV offers."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    rgb = np.stack([frame.to_ndarray(format='rgb24') for frame in frames])
    return torch.from_numpy(rgb).permute(0, 3, 1, 2), [frame.time for frame in frames]


def blocks(random, height, width):
    """A picture of random blocks of 8 x 8 pixels."""
    values = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return values.repeat(8, axis=0).repeat(8, axis=1)


def write_pictures(path, pictures, rate=25):
    """An MPEG-4 video of pictures (H, W, 3); its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = list(pictures)
    with av.open(f'file:{path}', 'w', format='mp4') as container:
        stream = container.add_stream('mpeg4', rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path
