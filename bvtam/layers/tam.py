"""Temporal Aggregation Module (TAM): a weighted sum of neighbouring frames per channel, then ReLU.

    out_t = ReLU(sum_j w_j * x_(t+j)), j from -(r//2) to r//2, zeros outside the clip

Source: bLVNet-TAM (Fan et al., NeurIPS 2019, section 3.2), where each w_j is a depthwise 1x1
convolution; `causal` is ours. For the three forms of a call see `TemporalOp` in `layers/pairs.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import BvtamError
from .folding import unfold_time
from .pairs import Tap, TemporalOp, overlap, plan, reach, reachable, slot_views


def _row(weight: Tensor, tap: Tap) -> Tensor:
    row = weight[tap.first] if tap.last == tap.first + 1 else weight[tap.first : tap.last].sum(0)
    return row.view(-1, 1, 1)


class TamFunction(torch.autograd.Function):
    """Weighted sum over time and ReLU, for all three forms, with nothing kept beyond x and outputs.

    Accumulating in place is 2-10x faster on CPU than shifting, concatenating or depthwise 2-D / 3-D
    convolution (benchmarks/temporal.py), and both kept tensors are kept by their neighbours anyway.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, steps: int, form: str, causal: bool = False
    ) -> tuple[Tensor, ...]:
        sources = slot_views(x, steps, form)
        outputs = []
        for taps in plan(form, len(weight), causal):
            first, *rest = reachable(taps, range(1 - steps, steps))
            out = sources[first.slot] * _row(weight, first)
            for tap in rest:
                to, frm = overlap(tap.offset, steps)
                out[:, to].addcmul_(sources[tap.slot][:, frm], _row(weight, tap))
            outputs.append(out.relu_().flatten(0, 1))
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, *call = inputs
        ctx.call = call
        ctx.save_for_backward(x, weight, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *outputs = ctx.saved_tensors
        found = TamFunction.gradients(x, weight, outputs, grads, *ctx.call)
        return *found, *(None for _ in ctx.call)

    @staticmethod
    def gradients(
        x: Tensor,
        weight: Tensor,
        outputs: Sequence[Tensor],
        grads: Sequence[Tensor],
        steps: int,
        form: str,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and of the weight, from those of the outputs."""
        sources = slot_views(x, steps, form)
        x_grad, weight_grad = torch.empty_like(x), torch.zeros_like(weight)
        x_slots = slot_views(x_grad, steps, form)
        written = set()  # the first tap that reads a source has offset 0, so it writes all of it
        taken = plan(form, len(weight), causal)
        for taps, grad, output in zip(taken, grads, outputs, strict=True):
            grad = unfold_time(torch.ops.aten.threshold_backward(grad, output, 0), steps)
            for tap in reachable(taps, range(1 - steps, steps)):
                to, frm = overlap(tap.offset, steps)
                if tap.slot in written:
                    x_slots[tap.slot][:, frm].addcmul_(grad[:, to], _row(weight, tap))
                else:
                    torch.mul(grad, _row(weight, tap), out=x_slots[tap.slot])
                    written.add(tap.slot)
                row = (grad[:, to] * sources[tap.slot][:, frm]).sum((0, 1, 3, 4))
                weight_grad[tap.first : tap.last] += row
        return x_grad, weight_grad


def _tam_traced(
    x: Tensor, weight: Tensor, steps: int, form: str, causal: bool = False
) -> tuple[Tensor, ...]:
    """The same numbers in plain operations, for `torch.compile` and `torch.export` to fuse."""
    taken = plan(form, len(weight), causal)
    back, ahead = reach(taken)
    sources = [F.pad(s, (0, 0) * 3 + (back, ahead)) for s in slot_views(x, steps, form)]
    outputs = []
    for taps in taken:
        terms = [sources[t.slot].narrow(1, back + t.offset, steps) * _row(weight, t) for t in taps]
        outputs.append(sum(terms[1:], start=terms[0]).relu().flatten(0, 1))
    return tuple(outputs)


class TAM(TemporalOp):
    """The module. `weight` is (r, C): row i holds offset j = i - r//2, one number per channel, no bias.

    Args:
        channels: C.
        temporal_range: r, odd; 1 sees the frame alone, 3 its two neighbours as well.
        causal: row i holds offset j = i - r + 1: reads the current and past frames only, with zero
            latency in a stream. Weights trained with one setting mean nothing in the other.

    Raises:
        BvtamError: an even or non-positive range.
    """

    def __init__(self, channels: int, temporal_range: int = 3, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        if temporal_range < 1 or temporal_range % 2 == 0:
            raise BvtamError(f'temporal_range must be odd and positive, not {temporal_range}')
        self.weight = nn.Parameter(torch.empty(temporal_range, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' start: Kaiming normal, fan-out of a depthwise 1x1 convolution (C), so small."""
        nn.init.normal_(self.weight, std=(2 / self.weight.shape[1]) ** 0.5)

    def _apply_form(self, x: Tensor, steps: int, form: str) -> tuple[Tensor, ...]:
        weight = self.weight.to(x.dtype)
        if torch.compiler.is_compiling():
            return _tam_traced(x, weight, steps, form, self.causal)
        steps = int(steps)  # torch.jit.trace gives a tensor
        return TamFunction.apply(x, weight, steps, form, self.causal)

    def _plan(self, form: str) -> tuple[tuple[Tap, ...], ...]:
        return plan(form, len(self.weight), self.causal)

    def reach(self, form: str) -> tuple[int, int]:
        return reach(self._plan(form))

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        weight = self.weight.detach().to(near[0][0].dtype)
        outputs = []
        for taps in self._plan(form):
            first, *rest = reachable(taps, near)
            out = near[first.offset][first.slot] * _row(weight, first)
            for tap in rest:
                out.addcmul_(near[tap.offset][tap.slot], _row(weight, tap))
            outputs.append(out.relu_())
        return tuple(outputs)

    def extra_repr(self) -> str:
        causal = ', causal=True' * self.causal
        return f'{self.weight.shape[1]}, temporal_range={self.weight.shape[0]}{causal}'


# As three releases name the depthwise 1x1 convolutions of one TAM.
_STORED_TAM = re.compile(
    r'(.*?)tam\.(?:(prev|curr|next)(?:_se)?|blending_layers\.(\d+))(?:\.fc1)?\.weight'
)


def stack_tam_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the authors' `<owner>tam.*` weights (C, 1, 1, 1) by one `<owner>temporal.weight` (r, C).

    Raises:
        BvtamError: a TAM whose offsets are incomplete or of different shapes.
    """
    out: dict[str, Tensor] = {}
    tams: dict[str, dict[int, tuple[str, Tensor]]] = {}  # owner: {row: (name, tensor)}
    for name, tensor in state_dict.items():
        if match := _STORED_TAM.fullmatch(name):
            owner, side, row = match.groups()
            index = ('prev', 'curr', 'next').index(side) if side else int(row)
            tams.setdefault(owner, {})[index] = name, tensor
        else:
            out[name] = tensor
    for owner, rows in tams.items():
        shape = rows[min(rows)][1].shape
        name = rows[min(rows)][0]
        if sorted(rows) != list(range(len(rows))) or len(rows) % 2 == 0:
            raise BvtamError(
                f'{name}: the TAM has offsets {sorted(rows)}, not an odd number from 0'
            )
        for row_name, tensor in rows.values():
            if tensor.shape != shape or tuple(shape[1:]) != (1, 1, 1):
                raise BvtamError(f'{row_name}: shape {tuple(tensor.shape)} is not (C, 1, 1, 1)')
        out[f'{owner}temporal.weight'] = torch.stack([rows[i][1].flatten() for i in sorted(rows)])
    return out
