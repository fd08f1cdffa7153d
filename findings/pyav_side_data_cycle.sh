#!/usr/bin/env bash
# PyAV 18.1.0: a frame that was asked for `side_data` is in a reference cycle with it, so that its
# pixels stay in memory until Python's garbage collector passes by, which counts objects, not bytes.
# A reader that looks at the display matrix of the first frame of each video keeps a frame a video.
#
# Output seen (av 18.1.0, numpy 2.4.1, Python 3.11.7, Linux x86-64; MB that 40 frames of 1920x1080
# leave behind; what is left at the end is free, and kept by malloc):
#   frames dropped                          0 MB
#   frames dropped after side_data        122 MB
#   ... and after gc.collect()             55 MB
# Exits with 1 where this is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q av==18.1.0 numpy==2.4.1
cat > look.py <<'PY'
import gc
import sys

import av
import numpy as np

with av.open('video.mp4', 'w') as container:
    stream = container.add_stream('mpeg4', rate=25)
    stream.width, stream.height, stream.pix_fmt = 1920, 1080, 'yuv420p'
    for _ in range(2):
        grey = np.zeros((1620, 1920), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format='yuv420p')))
    container.mux(stream.encode(None))


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def first_frames(asked):
    for _ in range(40):
        with av.open('video.mp4') as container:
            frame = next(container.decode(video=0))
            if asked:
                len(frame.side_data)
            del frame


first_frames(False)
gc.collect()
gc.disable()
start, grown = resident(), {}
first_frames(False)
grown['frames dropped'] = resident() - start
first_frames(True)
grown['frames dropped after side_data'] = resident() - start
gc.collect()
grown['... and after gc.collect()'] = resident() - start
for what, size in grown.items():
    print(f'{what:34} {size:6.0f} MB')
few, many, collected = grown.values()
sys.exit(not (few < 20 and many > 60 and collected < many / 2))
PY
venv/bin/python look.py
