"""Multiply-accumulates by fvcore, in the convention of the papers and as our graph runs.

The papers count the convolutions, TAM's depthwise ones among them, for one clip and one crop and
call them FLOPs. Our graph does less: a pair is never stored twice, a TAM's weights of one pair are
summed first, and the classifier runs once per clip. Both figures are given.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():  # it scripts a function of its own, which torch now advises against
    warnings.simplefilter('ignore', FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

from ..factory import create_model
from ..inference.eval_mode import evaluating
from ..inference.runner import blank
from ..layers.pairs import plan


def _tam_macs(inputs: list, outputs: list) -> Counter:
    """fvcore's handle for TAM: r per output value as the releases count, and what is executed."""
    values, weight = prod(get_shape(inputs[0])), get_shape(inputs[1])
    _, form, causal = outputs[0].node().scalar_args()  # as TamFunction.apply was called
    if form == 'split':
        values //= 2  # each output has half of the frames
    taps = [len(t) for t in plan(form, weight[0], causal)]
    return Counter(tam=weight[0] * values * len(taps), tam_executed=values * sum(taps))


def count(model: nn.Module, num_frames: int = 1, size: int = 224) -> dict[str, int]:
    """`conv_macs`, `linear_macs` (as published), `params` and `executed_macs` of one clip.

    Args:
        model: a model of this package; one clip runs through it, traced.
        num_frames: T; ignored by image models.
        size: height and width in pixels.

    Raises:
        BvtamError: a model that does not say how many channels it takes.
    """
    x = blank(model, 1, num_frames, size, size)
    with evaluating(model) as view:
        with torch.enable_grad():  # else TAM is no operation of its own in the trace
            analysis = FlopCountAnalysis(view, x)
            analysis.set_op_handle('prim::PythonOp.TamFunction', _tam_macs)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            ops = analysis.by_operator()
        positions = 1
        if x.ndim == 5 and hasattr(model, 'forward_features'):
            shapes = copy.deepcopy(view).to('meta')
            positions = shapes.forward_features(x.to('meta')).shape[2]
    return {
        'conv_macs': int(ops['conv'] + ops['tam']),
        'linear_macs': int(ops['linear'] * positions),  # the releases classify every position
        'params': sum(p.numel() for p in model.parameters()),
        'executed_macs': int(ops['conv'] + ops['tam_executed'] + ops['linear']),
    }


def count_any(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products of any model, by fvcore's own handles."""
    analysis = FlopCountAnalysis(model, x)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ops = analysis.by_operator()
    return int(sum(ops[name] for name in ('conv', 'linear', 'addmm', 'bmm', 'matmul', 'einsum')))


def flops(
    name: str,
    num_frames: int | None = None,
    size: int | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Costs of a named model, as of `count`; its own frames, crop and classes where none are given.

    Raises:
        BvtamError, ValueError: an unknown name or option, an odd number of frames.
    """
    model = create_model(name, pretrained=False, num_classes=num_classes, **options)
    clip = model.clip_config
    frames = (clip.num_frames if num_frames is None else num_frames) if clip else 1
    side = size or (clip.crop_size if clip else model.pretrained_cfg['input_size'][-1])
    head = {'model': name, 'num_frames': frames, 'size': side, 'num_classes': model.num_classes}
    return head | count(model, frames, side)


def published() -> list[dict[str, Any]]:
    """The published table: exact counts of the authors' graphs, and the papers' rounded figures."""
    return json.loads(files(__package__).joinpath('published_macs.json').read_text('utf-8'))['rows']


def check() -> Iterator[dict[str, Any]]:
    """Every row of the published table beside our count: `{..., expected, computed, ok}`."""
    cost = cache(flops)
    for row in published():
        ours = cost(row['model'], row['num_frames'], row['size'], row['num_classes'])
        expected = {k: row[k] for k in ('conv_macs', 'linear_macs', 'params') if k in row}
        computed = {k: ours[k] for k in expected}
        ok = computed == expected
        for key, exact, unit in (('gmacs', 'conv_macs', 1e9), ('mparams', 'params', 1e6)):
            if key in row:  # rounded as printed: `23.8`, or a range `[32.7, 33]`
                low, high = row[key] if isinstance(row[key], list) else (row[key], row[key])
                digits = max(len(str(v).partition('.')[2]) for v in (low, high))
                expected[key], computed[key] = row[key], round(ours[exact] / unit, digits)
                ok = ok and low <= computed[key] <= high
        head = {k: row[k] for k in ('model', 'num_frames', 'size', 'num_classes', 'source')}
        yield head | {'expected': expected, 'computed': computed, 'ok': ok}
