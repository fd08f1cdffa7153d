"""The recorded cases: what the authors' programs computed from checkpoints that `fill.py` rebuilds."""

import json
from pathlib import Path

import numpy as np
import torch
from support import fill

FOLDER = Path(__file__).parents[1] / 'golden'
CASES = sorted(p.stem for p in FOLDER.glob('*.json') if 'logits' in p.read_text()[-200_000:])


def load(case):
    return json.loads((FOLDER / f'{case}.json').read_text())


def state_dict(case):
    return {n: torch.from_numpy(np.array(fill.fill(n, s))) for n, s in case['tensors']}


def write_checkpoint(case, path):
    """The checkpoint in the layout that the case names."""
    state, layout = state_dict(case), case['layout']
    if 'state_dict' in layout.partition(':')[2]:
        wrapped = {'state_dict': {f'module.{n}': t for n, t in state.items()}, 'epoch': 50}
        torch.save(wrapped | {'arch': 'resnet50', 'best_top1': np.float64(60.5)}, path)
    else:
        torch.save(state, path)
    return path


def clip(case):
    """The input (N, C, T, H, W), or (N, C, H, W) for an image net."""
    x = torch.from_numpy(fill.clip(case['case'], case['input_shape_NCTHW']))
    return x if 'num_frames' in case['config'] else x[:, :, 0]
