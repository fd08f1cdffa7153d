"""bvtam_r50_8x2 against the textbook form of the same net, in one process, in fp32.

    python benchmarks/models.py [--batch 1 4] [--size 224] [--rounds 5] [--json]

The textbook form (`tests/textbook.py`) stores T frames at every step, a pair's tensor twice, and runs
a TAM as three depthwise convolutions. Both nets have the same weights. Ratios are ours / textbook:
time of inference and of one training step (SGD), peak memory of both, and bytes kept for the backward
pass. The two take turns, so the ratios hold where absolute times on a shared machine do not.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))

import textbook
from kept import kept_bytes
from measure import interleaved, peak_bytes

import bvtam
from bvtam.models.bl_resnet import checkpoint_filter_fn


def training_step(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    target = torch.zeros(len(x), dtype=torch.long)

    def step():
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def inference(model, x):
    def run():
        model.eval()
        with torch.inference_mode():
            model(x)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()

    torch.manual_seed(0)
    models = {'textbook': textbook.BLVNet(50, 16), 'ours': bvtam.create_model('bvtam_r50_8x2')}
    models['ours'].load_state_dict(checkpoint_filter_fn(models['textbook'].state_dict()))
    rows = []
    for batch in args.batch:
        x = torch.randn(batch, 3, 16, args.size, args.size)
        for what, make in (('inference', inference), ('training step', training_step)):
            functions = {name: make(model, x) for name, model in models.items()}
            seconds = interleaved(functions, args.rounds)
            peak = {name: peak_bytes(function) for name, function in functions.items()}
            row = {
                'batch': batch,
                'what': what,
                'seconds_textbook': seconds['textbook'],
                'seconds_ours': seconds['ours'],
                'time_ratio': seconds['ours'] / seconds['textbook'],
                'peak_memory_ratio': peak['ours'] / peak['textbook'],
            }
            if what == 'training step':
                kept = {name: kept_bytes(model.train(), x) for name, model in models.items()}
                row['kept_bytes_ratio'] = kept['ours'] / kept['textbook']
            rows.append(row)
            print(f'batch {batch} {what} done', file=sys.stderr)
    if args.json:
        setting = {'cores': os.cpu_count(), 'torch': torch.__version__, 'size': args.size}
        print(json.dumps(setting | {'rows': rows}, indent=1))
        return
    print(f'{os.cpu_count()} cores, torch {torch.__version__}, fp32, {args.size} px\n')
    print('| batch | | time ratio | peak memory ratio | bytes kept ratio |\n|---|---|---|---|---|')
    for r in rows:
        kept = f'{r["kept_bytes_ratio"]:.2f}' if 'kept_bytes_ratio' in r else ''
        print(
            f'| {r["batch"]} | {r["what"]} | {r["time_ratio"]:.2f} '
            f'| {r["peak_memory_ratio"]:.2f} | {kept} |'
        )


if __name__ == '__main__':
    main()
