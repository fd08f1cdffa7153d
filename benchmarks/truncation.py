"""Cuts a video of each container in many places; prints how many of the cut files are refused.

python benchmarks/truncation.py --cuts 300
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import av
import numpy as np

from bvtam.data.video.file import VideoFile
from bvtam.errors import BvtamError

# file name: codec, format where the name does not tell it, options of the container
CONTAINERS = {
    'a.mp4': ('libx264', None, {}),
    'fragments.mp4': ('libx264', None, {'movflags': 'frag_keyframe+empty_moov'}),
    'a.mov': ('libx264', None, {}),
    'a.mkv': ('libx264', None, {}),
    'live.mkv': ('libx264', None, {'live': '1'}),
    'a.webm': ('libvpx-vp9', None, {}),
    'a.ts': ('libx264', None, {}),
    'a.m2ts': ('libx264', 'mpegts', {'mpegts_m2ts_mode': '1'}),
    'a.flv': ('libx264', None, {}),
    'a.avi': ('mpeg4', None, {}),
    'a.mpg': ('mpeg2video', 'vob', {}),
    'a.ogv': ('libtheora', 'ogg', {}),
    'a.wmv': ('wmv2', 'asf', {}),
    'a.mxf': ('mpeg2video', None, {}),
    'a.gif': ('gif', None, {}),
    'a.y4m': ('rawvideo', 'yuv4mpegpipe', {}),
    'a.h264': ('libx264', 'h264', {}),
}
PIXELS = {'gif': 'rgb8'}


def write(path: Path, frames: int = 300) -> int:
    """Writes a moving texture with noise; returns its bytes, 0 where this PyAV has no such codec."""
    codec, format, options = CONTAINERS[path.name]
    if codec not in av.codecs_available:
        return 0
    values = np.random.default_rng(0)
    texture = np.kron(values.integers(0, 200, (12, 16, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), 'w', format=format, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = PIXELS.get(codec, 'yuv420p')
        stream.codec_context.gop_size, stream.codec_context.thread_count = 25, 1
        for i in range(frames):
            picture = np.roll(texture, (i, 2 * i), (0, 1))[:48, :64]
            picture = picture + values.integers(0, 40, picture.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path.stat().st_size


def measure(path: Path, cuts: int, step: int = 1) -> dict[str, object]:
    """Cuts at equal distances, to multiples of `step` bytes; each is read to its end."""
    whole, refused, accepted = path.read_bytes(), 0, []
    cut = path.with_name(f'cut{path.suffix}')
    for i in range(1, cuts + 1):
        cut.write_bytes(whole[: i * len(whole) // (cuts + 1) // step * step or step])
        try:
            count = VideoFile(cut).num_frames
            VideoFile(cut).read([count - 1])
            accepted.append(count)
        except BvtamError:
            refused += 1
    return {
        'container': path.name + (f' (whole packets of {step})' if step > 1 else ''),
        'cuts': cuts,
        'refused': refused,
        'frames_of_accepted': accepted,
        'whole': VideoFile(path).num_frames,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cuts', type=int, default=300)
    parser.add_argument('--frames', type=int, default=300)
    parser.add_argument('--only', nargs='*', default=list(CONTAINERS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            path = Path(folder) / name
            if not write(path, args.frames):
                continue
            for step in {'a.ts': (1, 188), 'a.m2ts': (1, 192)}.get(name, (1,)):
                print(json.dumps(measure(path, args.cuts, step)), flush=True)


if __name__ == '__main__':
    main()
