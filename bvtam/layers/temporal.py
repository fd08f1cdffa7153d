"""Temporal operators on folded frames: the Temporal Aggregation Module (TAM) and the shift of TSM.

TAM is from bLVNet-TAM (Fan et al., NeurIPS 2019, section 3.2), the shift from TSM (Lin et al.,
ICCV 2019). Both let the frames of a clip see each other for a few multiplications per value.

Tensors are folded, (N*T, C, H, W), and the number of steps per clip comes with every call, so an
operator keeps no state and one set of weights serves any clip length. An operator has three forms:

    op(x, T)         frames (N*T, C, H, W)   -> frames of the same shape ('plain')
    op.split(x, K)   frames (N*2K, C, H, W)  -> (even, odd) frames of K pairs, each (N*K, C, H, W)
    op.pair(x, K)    pairs  (N*K, C, H, W)   -> (even, odd), where x stands in both slots of a pair

and gives single steps of each to who has the steps around: `op.step(near, form)`, `op.reach(form)`.

The pair form is what makes bLVNet cheap: after a fusion both slots of a pair hold the same tensor,
so the T frames need not be stored. Slot p (0 even, 1 odd) at offset j reads pair
k + floor((p + j) / 2), and the weights of all offsets that read the same pair are summed first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import BvtamError
from . import derived

TEMPORAL = ('tam', 'tsm', 'none')


def fold(x: Tensor, *steps: int) -> Tensor:
    """Clips (B, C, T, H, W) -> frames (B*T, C, H, W), channels last, in one copy; T = prod(steps)."""
    x = x.permute(0, 2, 3, 4, 1).contiguous().unflatten(1, steps)
    return x.flatten(0, len(steps)).permute(0, 3, 1, 2)


def clips(x: Tensor, *steps: int) -> Tensor:
    """(N*steps, ...) -> (N, steps, ...); N is spelt out, which keeps symbolic shapes simple."""
    return x.unflatten(0, (x.shape[0] // prod(steps), *steps))


class Tap(NamedTuple):
    """One term of an output: weights [first, last) summed, times source slot `slot` at `offset`."""

    slot: int
    offset: int  # in steps: frames in the plain form, pairs in the others
    first: int
    last: int


def plan(form: str, temporal_range: int, causal: bool = False) -> tuple[tuple[Tap, ...], ...]:
    """The taps of each output (one in the plain form, else the even and the odd slot)."""
    first = 1 - temporal_range if causal else -(temporal_range // 2)
    offsets = range(first, first + temporal_range)
    if form == 'plain':
        return (tuple(Tap(0, j, j - first, j - first + 1) for j in offsets),)
    outputs = []
    for slot in (0, 1):
        if form == 'split':
            taps = [Tap((slot + j) % 2, (slot + j) // 2, j - first, j - first + 1) for j in offsets]
        else:
            pairs = [(slot + j) // 2 for j in offsets]  # ascending, so equal ones are neighbours
            taps = [
                Tap(0, d, pairs.index(d), pairs.index(d) + pairs.count(d))
                for d in sorted(set(pairs))
            ]
        outputs.append(tuple(taps))
    return tuple(outputs)


def reachable(taps: tuple[Tap, ...], steps: int) -> list[Tap]:
    """The taps that read inside a clip of `steps`; one of offset 0, which reads all of it, first."""
    return sorted((t for t in taps if abs(t.offset) < steps), key=lambda t: t.offset != 0)


def reach(outputs: Sequence[Sequence[Tap]]) -> tuple[int, int]:
    """How many steps back, and ahead, these taps read."""
    offsets = [tap.offset for taps in outputs for tap in taps]
    return -min(0, *offsets), max(0, *offsets)


def _overlap(offset: int, steps: int) -> tuple[slice, slice]:
    """Where an output reads, and what it reads, when step k reads step k + offset."""
    if offset < 0:
        return slice(-offset, None), slice(None, offset)
    return slice(None, steps - offset), slice(offset, None)


def _slots(x: Tensor, steps: int, form: str) -> list[Tensor]:
    """Views (N, steps, C, H, W) of the sources: both slots of frames, or the one tensor."""
    if form == 'split':
        return list(clips(x, steps, 2).unbind(2))
    return [clips(x, steps)]


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
        sources = _slots(x, steps, form)
        outputs = []
        for taps in plan(form, len(weight), causal):
            taps = reachable(taps, steps)
            out = sources[taps[0].slot] * _row(weight, taps[0])
            for tap in taps[1:]:
                to, frm = _overlap(tap.offset, steps)
                out[:, to].addcmul_(sources[tap.slot][:, frm], _row(weight, tap))
            outputs.append(out.relu_().flatten(0, 1))
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, *call = inputs
        ctx.call = call
        derived.derive(lambda x: TamFunction.forward(x, weight, *call), x, of=output)
        ctx.save_for_backward(x, weight, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight, *outputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        found = TamFunction.gradients(x, weight, outputs, grads, *ctx.call, needed=needed)
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
        needed: tuple[bool, bool] = (True, True),
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and of the weight, from those of the outputs."""
        sources = _slots(x, steps, form)
        x_grad = torch.empty_like(x) if needed[0] else None
        x_slots = _slots(x_grad, steps, form) if needed[0] else []
        weight_grad = torch.zeros_like(weight) if needed[1] else None
        written = set()  # the first tap that reads a source has offset 0, so it writes all of it
        taken = plan(form, len(weight), causal)
        for taps, grad, output in zip(taken, grads, outputs, strict=True):
            grad = clips(torch.ops.aten.threshold_backward(grad, output, 0), steps)
            for tap in reachable(taps, steps):
                to, frm = _overlap(tap.offset, steps)
                if needed[0] and tap.slot in written:
                    x_slots[tap.slot][:, frm].addcmul_(grad[:, to], _row(weight, tap))
                elif needed[0]:
                    torch.mul(grad, _row(weight, tap), out=x_slots[tap.slot])
                    written.add(tap.slot)
                if needed[1]:
                    row = (grad[:, to] * sources[tap.slot][:, frm]).sum((0, 1, 3, 4))
                    weight_grad[tap.first : tap.last] += row
        return x_grad, weight_grad


def _tam_traced(
    x: Tensor, weight: Tensor, steps: int, form: str, causal: bool = False
) -> tuple[Tensor, ...]:
    """The same numbers in plain operations, for `torch.compile` and `torch.export` to fuse."""
    taken = plan(form, len(weight), causal)
    back, ahead = reach(taken)
    sources = [F.pad(s, (0, 0) * 3 + (back, ahead)) for s in _slots(x, steps, form)]
    outputs = []
    for taps in taken:
        out = sum(sources[t.slot].narrow(1, back + t.offset, steps) * _row(weight, t) for t in taps)
        outputs.append(out.relu().flatten(0, 1))
    return tuple(outputs)


class TAM(nn.Module):
    """Temporal Aggregation Module: `out_t = ReLU(sum_j w_j * x_(t+j))`, zeros outside the clip.

    `weight` is (r, C): row i holds offset j = i - r//2, one number per channel, no bias.

    Args:
        channels: C.
        temporal_range: r, odd; 1 sees the frame alone, 3 its two neighbours as well.
        causal: row i holds offset j = i - r + 1: the frame and those before it, for streams whose
            answers cannot wait. Weights trained with one setting mean nothing in the other.

    Raises:
        BvtamError: an even or non-positive range.

    Source: bLVNet-TAM, section 3.2, where each w_j is a depthwise 1x1 convolution; `causal` is ours.
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

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self._apply_form(x, num_frames, 'plain')[0]

    def split(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return self._apply_form(x, num_pairs, 'split')

    def pair(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return self._apply_form(x, num_pairs, 'pair')

    def _plan(self, form: str) -> tuple[tuple[Tap, ...], ...]:
        return plan(form, len(self.weight), self.causal)

    def reach(self, form: str) -> tuple[int, int]:
        """Steps that an output reads back and ahead."""
        return reach(self._plan(form))

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        """The outputs (N, C, H, W) of one step; as a whole clip gives them, without gradients.

        Args:
            near: the sources of the steps around, {offset: slots (N, C, H, W)}; what is outside the
                clip is left out.
        """
        weight = self.weight.detach().to(near[0][0].dtype)
        outputs = []
        for taps in self._plan(form):
            first, *rest = sorted(
                (t for t in taps if t.offset in near), key=lambda t: t.offset != 0
            )
            out = near[first.offset][first.slot] * _row(weight, first)
            for tap in rest:
                out.addcmul_(near[tap.offset][tap.slot], _row(weight, tap))
            outputs.append(out.relu_())
        return tuple(outputs)

    def extra_repr(self) -> str:
        causal = ', causal=True' * self.causal
        return f'{self.weight.shape[1]}, temporal_range={self.weight.shape[0]}{causal}'


class TSM(nn.Module):
    """Temporal shift: the first C/div channels from frame t+1, the next C/div from t-1, no weights.

    It is TAM with 0/1 weights and no ReLU.

    Source: TSM, section 3; channel order as in the release mit-han-lab/temporal-shift-module.
    """

    # Of each output: the slot that it keeps, and (slot, offset) of the two groups that it takes.
    _TAKES: ClassVar = {
        'plain': ((0, (0, 1), (0, -1)),),
        'split': ((0, (1, 0), (1, -1)), (1, (0, 1), (0, 0))),
        'pair': ((0, (0, 0), (0, -1)), (0, (0, 1), (0, 0))),
    }

    def __init__(self, channels: int, shift_div: int = 8) -> None:
        super().__init__()
        self.fold = channels // shift_div

    def _mix(self, x: Tensor, later: tuple[Tensor, int], earlier: tuple[Tensor, int]) -> Tensor:
        """x (N, steps, C, H, W), folded, with two channel groups from other (source, offset)s."""
        if torch.compiler.is_compiling():  # in sizes that hold for any number of steps
            groups = (
                F.pad(source, (0, 0) * 3 + (1, 1)).narrow(1, 1 + offset, x.shape[1])[
                    :, :, first : first + self.fold
                ]
                for first, (source, offset) in ((0, later), (self.fold, earlier))
            )
            return torch.cat([*groups, x[:, :, 2 * self.fold :]], 2).flatten(0, 1)
        out, steps = x.clone(), x.shape[1]
        for first, (source, offset) in ((0, later), (self.fold, earlier)):
            group = slice(first, first + self.fold)
            to, frm = _overlap(offset, steps)
            out[:, to, group] = source[:, frm, group]
            if offset:  # what would come from outside the clip
                out[:, -1 if offset > 0 else 0, group] = 0
        return out.flatten(0, 1)

    def _apply_form(self, x: Tensor, steps: int, form: str) -> tuple[Tensor, ...]:
        slots = _slots(x, steps, form)
        return tuple(
            self._mix(slots[kept], *((slots[slot], offset) for slot, offset in taken))
            for kept, *taken in self._TAKES[form]
        )

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return self._apply_form(x, num_frames, 'plain')[0]

    def split(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return self._apply_form(x, num_pairs, 'split')

    def pair(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return self._apply_form(x, num_pairs, 'pair')

    def reach(self, form: str) -> tuple[int, int]:
        """As `TAM.reach`."""
        return 1, 1

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        """As `TAM.step`."""
        outputs = []
        for kept, *taken in self._TAKES[form]:
            out = near[0][kept].clone()
            for i, (slot, offset) in enumerate(taken):
                group = slice(i * self.fold, (i + 1) * self.fold)
                out[:, group] = near[offset][slot][:, group] if offset in near else 0
            outputs.append(out)
        return tuple(outputs)

    def extra_repr(self) -> str:
        return f'{self.fold} channels each way'


class NoTemporal(nn.Module):
    """Every frame alone: the two frames of a pair meet only where their branches are summed."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return x

    def split(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        even, odd = clips(x, num_pairs, 2).unbind(2)
        return even.flatten(0, 1), odd.flatten(0, 1)

    def pair(self, x: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        return x, x

    def reach(self, form: str) -> tuple[int, int]:
        """As `TAM.reach`."""
        return 0, 0

    def step(self, near: Mapping[int, Sequence[Tensor]], form: str) -> tuple[Tensor, ...]:
        """As `TAM.step`."""
        return {'plain': near[0], 'split': near[0], 'pair': (near[0][0],) * 2}[form]


def temporal_op(
    temporal: str, channels: int, temporal_range: int = 3, causal: bool = False
) -> nn.Module:
    """The operator named `temporal`: 'tam', 'tsm' or 'none'.

    Raises:
        BvtamError: another name, or a causal shift.
    """
    if causal and temporal == 'tsm':
        raise BvtamError("causal=True is for temporal='tam': TSM shifts in both directions")
    if temporal == 'tam':
        return TAM(channels, temporal_range, causal)
    if temporal == 'tsm':
        return TSM(channels)
    if temporal == 'none':
        return NoTemporal()
    raise BvtamError(f'temporal must be one of {", ".join(TEMPORAL)}, not {temporal!r}')


# As three releases name the depthwise 1x1 convolutions of one TAM.
_STORED_TAM = re.compile(
    r'(.*?)tam\.(?:(prev|curr|next)(?:_se)?|blending_layers\.(\d+))(?:\.fc1)?\.weight'
)


def stack_tam_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces the authors' `<owner>tam.*` weights (C, 1, 1, 1) by one `<owner>temporal.weight` (r, C).

    Raises:
        BvtamError: a TAM whose offsets are incomplete or of different shapes.
    """
    out, tams = {}, {}
    for name, tensor in state_dict.items():
        if match := _STORED_TAM.fullmatch(name):
            owner, side, row = match.groups()
            row = ('prev', 'curr', 'next').index(side) if side else int(row)
            tams.setdefault(owner, {})[row] = (name, tensor)
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
