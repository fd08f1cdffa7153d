"""bvtam_r50_8x2 against the textbook form of the same model, in one process.

    python benchmarks/models.py [--batch 1 4] [--size 224] [--rounds 5] [--json]

The textbook form (`tests/support/textbook.py`) stores T frames at every step, a pair's tensor twice, and runs
a TAM as three depthwise convolutions, in fp32. All models have the same weights. Ratios are of the
textbook form's: time of inference and of one training step (SGD), peak memory of both, and bytes kept
for the backward pass. They take turns, so the ratios hold where absolute times on a shared machine do
not; a product of matrices takes its turn with them, and tells what the machine could do at best.
"""

import argparse
import copy
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))

from measure import interleaved, peak_bytes
from support import textbook
from support.kept import kept_bytes

import bvtam
from bvtam.deploy.flops import count
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


SIDE = 2048  # of the matrices


def matmul(dtype):
    x = torch.randn(SIDE, SIDE).to(dtype)
    return lambda: x @ x


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()

    torch.manual_seed(0)
    name = 'bvtam_r50_8x2'
    book, ours = textbook.BLVNet(50, 16), bvtam.create_model(name)
    ours.load_state_dict(checkpoint_filter_fn(book.state_dict()))
    cheap, stages = copy.deepcopy(ours), copy.deepcopy(ours)
    cheap.set_cheap_recompute()
    stages.set_grad_checkpointing()
    fast = bvtam.optimize(ours.eval())
    fast16 = bvtam.optimize(ours, torch.bfloat16)
    macs = count(ours, 16, args.size)['executed_macs']
    rows = []
    for batch in args.batch:
        x = torch.randn(batch, 3, 16, args.size, args.size)
        groups = {
            'inference': {
                'textbook': inference(book, x),
                'as created': inference(ours, x),
                'optimised': inference(fast, x),
                'optimised, bf16': inference(fast16, x.bfloat16()),
            },
            'training step': {
                'textbook': training_step(book, x),
                'as created': training_step(ours, x),
                'cheap recomputation': training_step(cheap, x),
                'stages recomputed': training_step(stages, x),
            },
        }
        trained = dict(zip(groups['training step'], (book, ours, cheap, stages), strict=True))
        for what, functions in groups.items():
            seconds = interleaved(functions | {'': matmul(torch.float32)}, args.rounds)
            peak = {form: peak_bytes(function) for form, function in functions.items()}
            for form in functions:
                row = {
                    'batch': batch,
                    'what': what,
                    'form': form,
                    'seconds': seconds[form],
                    'time_ratio': seconds[form] / seconds['textbook'],
                    'peak_memory_ratio': peak[form] / peak['textbook'],
                }
                if what == 'training step':
                    own = kept_bytes(trained[form].train(), x)
                    row['kept_bytes_ratio'] = own / kept_bytes(book.train(), x)
                elif form != 'textbook':
                    row['share_of_matmul'] = batch * macs / seconds[form] / (SIDE**3 / seconds[''])
                rows.append(row)
            print(f'batch {batch} {what} done', file=sys.stderr)
    if args.json:
        setting = {'cores': os.cpu_count(), 'torch': torch.__version__, 'size': args.size}
        print(json.dumps(setting | {'rows': rows}, indent=1))
        return
    print(f'{os.cpu_count()} cores, torch {torch.__version__}, {args.size} px\n')
    print('| batch | | form | time | peak memory | bytes kept | of fp32 matmul |')
    print('|---|---|---|---|---|---|---|')
    for r in rows:
        kept = f'{r["kept_bytes_ratio"]:.2f}' if 'kept_bytes_ratio' in r else ''
        share = f'{r["share_of_matmul"]:.0%}' if 'share_of_matmul' in r else ''
        print(
            f'| {r["batch"]} | {r["what"]} | {r["form"]} | {r["time_ratio"]:.2f} '
            f'| {r["peak_memory_ratio"]:.2f} | {kept} | {share} |'
        )


if __name__ == '__main__':
    main()
