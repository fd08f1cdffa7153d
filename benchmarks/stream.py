"""A stream against the clip: time of a pair of frames, memory over a long video, equality.

    python benchmarks/stream.py [--frames 2000] [--size 224] [--rounds 5] [--json]

Time: bvtam_r50_8x2, optimised; a pair of frames of a stream against a clip of 16 frames, in turns.
Memory: what the process holds while a long video streams, after its first 100 frames and at its end.
Equality: every step of a long video, at 64 px, against the whole video at once.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from measure import interleaved

import bvtam


def resident():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmRSS'))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--frames', type=int, default=2000)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    model = bvtam.optimize(bvtam.create_model('bvtam_r50_8x2', pretrained=True).eval())
    clip = torch.randn(1, 3, 16, args.size, args.size)
    frames = list(clip.unbind(2))
    stream = bvtam.stream(model)
    for frame in 3 * frames:  # all layers have their neighbours
        stream.push(frame)

    def pair():
        stream.push(frames[0])
        stream.push(frames[1])

    def whole():
        with torch.inference_mode():
            model(clip)

    seconds = interleaved({'pair': pair, 'clip': whole}, args.rounds)
    stream, held = bvtam.stream(model), []
    small = [frame[..., :64, :64].contiguous() for frame in frames]
    for number in range(args.frames):
        stream.push(small[number % 16])
        held.append(resident())
        if number % 500 == 0:
            print(f'frame {number}', file=sys.stderr)
    video = torch.randn(1, 3, args.frames, 64, 64)
    steps = list(bvtam.stream(model)(video.unbind(2)))
    with torch.inference_mode():
        features = model.forward_features(video)
        logits = model.forward_head(features)
    streamed = torch.stack([step.features for step in steps], 2)
    result = {
        'cores': os.cpu_count(),
        'torch': torch.__version__,
        'size': args.size,
        'frames': args.frames,
        'pair_per_clip': seconds['pair'] / seconds['clip'],
        'memory_ratio': held[-1] / held[100],
        'largest_difference': float((streamed - features).abs().max() / features.abs().max()),
        'difference_of_logits': float((steps[-1].logits - logits).abs().max() / logits.abs().max()),
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print('\n'.join(f'{key:22} {value}' for key, value in result.items()))


if __name__ == '__main__':
    main()
