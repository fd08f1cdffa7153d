#!/usr/bin/env bash
# decord 0.6.0: the frame that `reader[i]` gives depends on what was read before it, for files that can be entered
# at few frames or whose frames are stored in another order than they are shown: MPEG-4 with B-frames in AVI
# (what many cameras and old data sets have), and H.264 with intra refresh in MP4 (live encoders). Read from the
# first frame on, all are right; by number with a fresh reader, or as one batch in another order, they are others,
# or pictures that the decoder has only half. `len(reader)` is right, and nothing warns. Sampling by number, as data
# loaders do, is what goes wrong. H.264 with closed groups of pictures is right (the control below).
#
# Output seen (decord 0.6.0, av 18.1.0, Python 3.11.7, Linux x86-64; of 40 frames, those that differ from a plain decode):
#   closed.mp4   in order 0   each by a fresh reader 0    one batch, backwards 0
#   bframes.avi  in order 0   each by a fresh reader 36   one batch, backwards 36
#   refresh.mp4  in order 0   each by a fresh reader 31   one batch, backwards 31
# Exits with 1 where this is no longer so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet decord==0.6.0 av==18.1.0 numpy==2.2.6
cat > look.py <<'PY'
import sys

import av
import decord
import numpy as np

VIDEOS = {
    'closed.mp4': ('libx264', {'g': '8'}),
    'bframes.avi': ('mpeg4', {'g': '8', 'bf': '2'}),
    'refresh.mp4': ('libx264', {'x264-params': 'keyint=8:intra-refresh=1'}),
}
decord.logging.set_level(decord.logging.QUIET)
wrong = {}
for name, (codec, options) in VIDEOS.items():
    with av.open(name, 'w') as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for level in range(0, 240, 6):  # every frame is one grey of its own
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format='rgb24')
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with av.open(name) as container:
        plain = [f.to_ndarray(format='rgb24').mean() for f in container.decode(video=0)]
    numbers = range(len(plain))
    reader = decord.VideoReader(name)
    assert len(reader) == len(plain) == 40
    in_order = [reader[i].asnumpy().mean() for i in numbers]
    fresh = [decord.VideoReader(name)[i].asnumpy().mean() for i in numbers]
    batch = [frame.mean() for frame in reader.get_batch([*reversed(numbers)]).asnumpy()][::-1]
    wrong[name] = [int(np.sum(np.abs(np.subtract(found, plain)) > 2)) for found in (in_order, fresh, batch)]
    print(f'{name:12} in order {wrong[name][0]}   each by a fresh reader {wrong[name][1]}   one batch, backwards {wrong[name][2]}')
ok = wrong['closed.mp4'] == [0, 0, 0] and all(
    first == 0 and second > 20 and third > 20
    for first, second, third in (wrong['bframes.avi'], wrong['refresh.mp4'])
)
sys.exit(not ok)
PY
venv/bin/python look.py
