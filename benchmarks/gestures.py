"""Gestures in a row: which of them `bvtam.events` says, once and in time.

    python benchmarks/gestures.py FOLDER --model runs/mine [--row 5] [--limit N] [--json]

FOLDER has a folder of clips, of one gesture each, for every class (FOLDER/LABEL/*.mp4); the labels are
those of the model. The figures in the guides are of 50 clips of ten gestures of EgoGestAR (github
varunj/EgoGestAR), its contribution 51685c6. The clips are joined, in random order, to videos of `--row`
gestures: with pauses of 0.6 to 1.4 s (the last picture stands still, or black) and without; landscape
and portrait (with bars); 10 to 30 frames a second; H.264.

A gesture ends with its clip. It is said right if one answer, and no other, falls between its beginning
and half a second after its end, with its label. An answer is false if it is of another label, or not the
first of its gesture, or in a pause. A clip of a quiet class is right if nothing is said. `accuracy` is that
of whole clips, each by itself: without a mistake about where gestures begin and end, `right` would be as high.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torchvision.transforms.v2 import functional as F

import bvtam
from bvtam.data.video.write import Coding, write_video
from bvtam.inference.events import quiet_labels

IN_TIME = 0.5  # seconds after the end of a gesture
CODING = Coding(options={'preset': 'veryfast', 'crf': '23', 'bf': '0'})


class Way(NamedTuple):
    """How clips are joined: frames a second, what is between them, width and height in pixels."""

    fps: int
    pause: str  # 'none', 'still', 'black'
    size: tuple[int, int]


WAYS = [
    Way(30, 'none', (320, 240)),
    Way(24, 'still', (240, 320)),
    Way(15, 'still', (320, 240)),
    Way(10, 'black', (320, 240)),
    Way(20, 'none', (240, 320)),
]


def fitted(frames, size):
    """Frames (T, C, H, W) in a picture of `size`, with black bars where they are of another shape."""
    width, height = size
    scale = min(width / frames.shape[3], height / frames.shape[2])
    frames = F.resize(frames, [round(scale * n) for n in frames.shape[2:]], antialias=True)
    top, left = (height - frames.shape[2]) // 2, (width - frames.shape[3]) // 2
    bottom, right = height - frames.shape[2] - top, width - frames.shape[3] - left
    return F.pad(frames, [left, top, right, bottom])


def joined(path, clips, way, draw):
    """Writes a video of clips in a row; (label, start, end) of each."""
    pictures, truth = [], []

    def rest(frame):
        for _ in range(round(draw.uniform(0.6, 1.4) * way.fps)):
            pictures.append(frame if way.pause == 'still' else torch.zeros_like(frame))

    for clip in clips:
        reader = bvtam.open_video(clip)
        count = max(2, int(reader.duration * way.fps))
        frames = fitted(reader.read_at([i / way.fps for i in range(count)]), way.size)
        if not pictures and way.pause != 'none':
            rest(frames[0])
        start = len(pictures) / way.fps
        pictures += frames
        truth.append((clip.parent.name, start, len(pictures) / way.fps))
        if way.pause != 'none':
            rest(frames[-1])
    times = torch.arange(len(pictures), dtype=torch.float64) / way.fps
    write_video(path, pictures, times, len(pictures) / way.fps, CODING)
    return truth


def judged(said, truth, quiet=()):
    """(gestures said right, those said more than once, false answers, seconds from end to answer)."""
    right, twice, false, delays = 0, 0, len(said), []
    for label, start, end in truth:
        mine = [event for event in said if start < event['time'] <= end + IN_TIME + 1e-6]
        # A cut ends a gesture at the first picture of the next one.
        mine = [event for event in mine if event['start'] < end and event['end'] > start]
        twice += len(mine) > 1
        if label in quiet:
            right += not mine
        elif mine and mine[0]['label'] == label:
            false -= 1
            right += len(mine) == 1
            delays.append(mine[0]['time'] - end)
    return right, twice, false, delays


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--model', required=True)
    parser.add_argument('--row', type=int, default=5, help='gestures in a video')
    parser.add_argument('--limit', type=int, help='clips to use (default: all)')
    parser.add_argument('--threshold', type=float, default=0.5)
    parser.add_argument('--hold', type=float, default=0.4)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    model = bvtam.optimize(bvtam.create_model(args.model, pretrained=True).eval())
    clips = sorted(args.folder.glob('*/*.mp4'))
    if not clips:
        sys.exit(f'{args.folder} has no clips: give a folder with LABEL/*.mp4')
    draw = random.Random(0)
    draw.shuffle(clips)
    clips = clips[: args.limit]
    top = [p['top'][0]['label'] for p in bvtam.predict_many(model, clips, 1, workers=1)]
    correct = sum(label == clip.parent.name for label, clip in zip(top, clips, strict=True))
    rows, lengths, used = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, 'row.mp4')
        for way in WAYS:
            totals, delays = [0, 0, 0], []
            for first in range(0, len(clips), args.row):
                truth = joined(path, clips[first : first + args.row], way, draw)
                began = time.process_time()
                said = list(bvtam.events(model, path, args.threshold, args.hold))
                used += time.process_time() - began
                lengths += bvtam.open_video(path).duration
                *found, late = judged(said, truth, quiet_labels(model))
                totals = [a + b for a, b in zip(totals, found, strict=True)]
                delays += late
            right, twice, false = totals
            rows.append(
                {
                    'fps': way.fps,
                    'pause': way.pause,
                    'size': list(way.size),
                    'gestures': len(clips),
                    'right': right,
                    'twice': twice,
                    'false': false,
                    'median_delay': median(delays) if delays else None,
                    'largest_delay': max(delays, default=None),
                }
            )
            print(rows[-1], file=sys.stderr)
    result = {
        'cores': os.cpu_count(),
        'torch': torch.__version__,
        'model': args.model,
        'threshold': args.threshold,
        'hold': args.hold,
        'accuracy': correct / len(clips),
        'right': sum(row['right'] for row in rows) / (len(clips) * len(rows)),
        'false': sum(row['false'] for row in rows) / (len(clips) * len(rows)),
        'twice': sum(row['twice'] for row in rows) / (len(clips) * len(rows)),
        'processor_seconds_a_second': used / lengths,
        'ways': rows,
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print('\n'.join(f'{key:26} {value}' for key, value in result.items() if key != 'ways'))


if __name__ == '__main__':
    main()
