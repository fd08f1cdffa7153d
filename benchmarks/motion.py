"""Time to render a procedural clip, against a training step of `bvtam_tiny_8x2` on it.

    python benchmarks/motion.py [--batch 16] [--size 64] [--rounds 7] [--threads 1]

Both take turns in one process, on the same cores: fp32, channels_last, 16 frames, AdamW.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from measure import interleaved

import bvtam
from bvtam.data.motion.clips import MotionClips


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=64, help='side of a frame, in pixels')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    for family in ('direction', 'order', 'stroke'):
        data = MotionClips(num_frames=16, size=args.size, family=family)
        model = bvtam.create_model('bvtam_tiny_8x2', num_classes=data.num_classes).train()
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        clips, labels = data.render(range(args.batch))
        inputs = clips.float() / 255

        def render(data=data):
            data.render(range(args.batch))

        def step(model=model, optimizer=optimizer, inputs=inputs, labels=labels):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        seconds = interleaved({'render': render, 'step': step}, args.rounds)
        each = {name: 1e3 * time / args.batch for name, time in seconds.items()}
        print(
            f'{family}: render {each["render"]:.1f} ms, step {each["step"]:.1f} ms per clip, ratio '
            f'{each["render"] / each["step"]:.2f}; {args.threads} of {os.cpu_count()} cores, batch '
            f'{args.batch}, torch {torch.__version__}'
        )


if __name__ == '__main__':
    main()
