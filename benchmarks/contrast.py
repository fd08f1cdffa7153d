"""Contrast and detail of real frames and procedural strokes of 64 pixels, and of their backgrounds of 102.

    python benchmarks/contrast.py DATA      (as for reality.py)

Contrast is the standard deviation of grey over a frame, the first and the second difference the mean of
|a - b| and |a - 2b + c| over pixels side by side; each is the 20th, 50th and 80th percentile over frames.
"""

import sys
from pathlib import Path

import torch

from bvtam.clip import ClipConfig
from bvtam.data.datasets import VideoDataset
from bvtam.data.load import load_records
from bvtam.data.motion.clips import MotionClips
from bvtam.data.motion.photo import photo


def statistics(frames):
    """Contrast, first and second difference of each of RGB frames (N, 3, H, W): (3, N)."""
    grey = frames.float().mean(1)
    return torch.stack([grey.std((1, 2)), *(grey.diff(n).abs().mean((1, 2)) for n in (1, 2))])


def main():
    records = [r for part in sorted(Path(sys.argv[1]).iterdir()) for r in load_records(part)[0]]
    clip = ClipConfig(num_frames=4, resize=64, crop_size=64)
    real = torch.cat([x['clip'][0].transpose(0, 1) for x in VideoDataset(records, clip)])
    strokes = MotionClips(4, 64, 'stroke').render(range(160))[0].transpose(1, 2).flatten(0, 1)
    sets = {'real': real, 'strokes': strokes, 'backgrounds': photo(torch.arange(320), 102)}
    print('| frames | contrast | first difference | second difference |\n|---|---|---|---|')
    for name, frames in sets.items():
        rows = statistics(frames).quantile(torch.tensor([0.2, 0.5, 0.8]), 1).T.tolist()
        print(f'| {name} |', *(' '.join(f'{x:.1f}' for x in row) + ' |' for row in rows))


if __name__ == '__main__':
    main()
