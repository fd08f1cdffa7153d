"""Ways to run TAM in pair form, range 3, forward and with backward, as ratios to the textbook form.

    python benchmarks/temporal.py [--rounds 9]

All give the same numbers (checked here in float64). `ours` is what the package runs.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import interleaved

from bvtam.layers.tam import TamFunction, _tam_traced

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))

from support import textbook


def stored_twice(x, weight, pairs):
    tam = textbook.Tam(x.shape[1], 2 * pairs)
    y = x.repeat_interleave(2, 0)
    for conv, row in zip((tam.prev, tam.curr, tam.next), weight, strict=True):
        del conv.weight
        conv.weight = row.view(-1, 1, 1, 1)
    y = tam(y)
    return y[0::2], y[1::2]


def shifted(x, weight, pairs):
    """Zero-padded, shifted, multiplied, added: plain operations, left to autograd."""
    return _tam_traced(x, weight, pairs, 'pair')


def _slot_kernels(weight):
    before, here, after = weight
    return torch.stack([before, here + after], 1), torch.stack([before + here, after], 1)


def conv2d(x, weight, pairs):
    """Depthwise 2-D convolution over (pairs, H*W), one for each slot."""
    n, (c, h, w) = x.shape[0] // pairs, x.shape[1:]
    rows = x.permute(0, 2, 3, 1).reshape(n, pairs, h * w, c).permute(0, 3, 1, 2)
    outputs = []
    for kernel, pad in zip(_slot_kernels(weight), ((0, 0, 1, 0), (0, 0, 0, 1)), strict=True):
        y = F.conv2d(F.pad(rows, pad), kernel.view(c, 1, 2, 1), groups=c).relu()
        outputs.append(y.permute(0, 2, 3, 1).reshape(n * pairs, h, w, c).permute(0, 3, 1, 2))
    return outputs


def conv3d(x, weight, pairs):
    """Depthwise 3-D convolution with a kernel over pairs alone."""
    c = x.shape[1]
    clip = x.unflatten(0, (-1, pairs)).transpose(1, 2)
    outputs = []
    for kernel, pad in zip(_slot_kernels(weight), ((1, 0), (0, 1)), strict=True):
        kernel = F.pad(kernel, pad[::-1]).view(c, 1, 3, 1, 1)
        y = F.conv3d(clip, kernel, padding=(1, 0, 0), groups=c).relu()
        outputs.append(y.transpose(1, 2).flatten(0, 1))
    return outputs


def ours(x, weight, pairs):
    return TamFunction.apply(x, weight, pairs, 'pair')


WAYS = {f.__name__: f for f in (stored_twice, shifted, conv2d, conv3d, ours)}


def both(way, x, weight, pairs):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    outputs = way(x, weight, pairs)
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f'{os.cpu_count()} cores, torch {torch.__version__}\n')
    print('| type | memory format | (N, K, C, H, W) |', ' | '.join(WAYS), '|')
    print('|---' * (3 + len(WAYS)) + '|')
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for n, pairs, c, side in ((1, 8, 64, 56), (1, 8, 256, 28), (4, 8, 512, 14)):
                x = torch.randn(n * pairs, c, side, side, dtype=dtype)
                x = x.contiguous(memory_format=memory_format)
                weight = torch.randn(3, c, dtype=dtype)
                want = stored_twice(x.double(), weight.double(), pairs)
                for way in WAYS.values():
                    for a, b in zip(way(x.double(), weight.double(), pairs), want, strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
                args = x, weight, pairs
                with torch.no_grad():
                    forward = interleaved({k: partial(f, *args) for k, f in WAYS.items()}, rounds)
                step = interleaved({k: partial(both, f, *args) for k, f in WAYS.items()}, rounds)
                cells = (
                    f'{forward[k] / forward["stored_twice"]:.2f} / {step[k] / step["stored_twice"]:.2f}'
                    for k in WAYS
                )
                kind = str(memory_format).removeprefix('torch.')
                print(f'| {str(dtype)[6:]} | {kind} | {(n, pairs, c, side, side)} |',
                      ' | '.join(cells), '|', flush=True)  # fmt: skip


if __name__ == '__main__':
    main()
