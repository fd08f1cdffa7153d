"""Threads that ask one model at once, as `create_model` gives it (in training mode).

    python benchmarks/threads.py [--threads 8] [--answers 200]

For each kind of model: how many answers are not those of one thread, bit for bit; how many tensors and
modes of modules changed; seconds alone and in threads; milliseconds that the view of it takes.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files

import torch

import bvtam
from bvtam.inference.eval_mode import evaluating

MODELS = {
    'bvtam_tiny_8x2.motion': lambda: bvtam.create_model('bvtam_tiny_8x2.motion', pretrained=True),
    'bvtam_tiny_8x2.motion, optimised': lambda: bvtam.optimize(
        bvtam.create_model('bvtam_tiny_8x2.motion', pretrained=True).eval()
    ),
    'tsm_resnet50_f8': lambda: bvtam.create_model('tsm_resnet50_f8'),
    'mobilenetv3_small_050 of timm with tsm': lambda: bvtam.temporal_model(
        'mobilenetv3_small_050', 'tsm', num_classes=10
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--threads', type=int, default=8)
    parser.add_argument('--answers', type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    video = str(files('bvtam') / 'assets' / 'sample.mp4')
    for kind, make in MODELS.items():
        model = make()
        model.clip_config = replace(model.clip_config, resize=112, crop_size=112)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        began = time.perf_counter()
        alone = bvtam.predict(model, video)['top']
        one = time.perf_counter() - began
        began = time.perf_counter()
        with ThreadPoolExecutor(args.threads) as pool:
            found = list(
                pool.map(
                    lambda _, model=model: bvtam.predict(model, video)['top'], range(args.answers)
                )
            )
        many = time.perf_counter() - began
        wrong = sum(top != alone for top in found)
        changed = sum(not torch.equal(t, before[name]) for name, t in model.state_dict().items())
        flags = sum(m.training != mode for m, mode in zip(model.modules(), modes, strict=True))
        began = time.perf_counter()
        for _ in range(20):
            with evaluating(model):
                pass
        view = (time.perf_counter() - began) / 20
        print(
            f'{kind}: {args.threads} threads, {wrong} of {len(found)} answers differ, {changed} '
            f'tensors and {flags} modes changed; {one:.2f} s alone, {many:.1f} s in threads; view '
            f'{view * 1000:.1f} ms',
            flush=True,
        )


if __name__ == '__main__':
    main()
