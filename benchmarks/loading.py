"""Time and memory of loading bvtam_r101_16x2 by name, against what it must cost.

    python benchmarks/loading.py [--rounds 5]

The yardstick is `safetensors.torch.load_file` plus building the empty model, in the same process;
ours also checks the SHA-256, names, shapes and finite values.
"""

import argparse
import os
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from measure import interleaved, peak_bytes

import bvtam


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        os.environ['BVTAM_ZOO'] = scratch
        name = 'bvtam_r101_16x2.bench'
        folder = bvtam.save_pretrained(bvtam.create_model('bvtam_r101_16x2'), Path(scratch) / name)
        file = folder / 'model.safetensors'

        def yardstick():
            model, state = bvtam.create_model('bvtam_r101_16x2'), safetensors.torch.load_file(file)
            return model, state

        def ours():
            return bvtam.create_model(name, pretrained=True)

        seconds = interleaved({'yardstick': yardstick, 'ours': ours}, rounds)
        print(
            f'{os.cpu_count()} cores, torch {torch.__version__}: time '
            f'{seconds["ours"] / seconds["yardstick"]:.2f}x of load_file plus the empty model, peak memory '
            f'{peak_bytes(ours) / file.stat().st_size:.2f}x of the file'
        )


if __name__ == '__main__':
    main()
