"""Memory for time in training: cheap results are recomputed in the backward pass, not kept.

Batch norm and ReLU are a pass over memory each, but what they give is kept for the layer behind
them. The functions here keep the input of the batch norm alone. The numbers are those of the plain
modules to rounding; where anything is unusual (eval mode, another kind of norm, hooks, tracing) the
plain modules run. Gradients of gradients are not to be had of the fused forms: they say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from . import derived
from .tam import TAM, TamFunction

_aten = torch.ops.aten


def _norm_relu(x: Tensor, weight: Tensor, bias: Tensor, stats: tuple) -> tuple[Tensor, ...]:
    """ReLU of batch norm, with the batch's mean and inverse deviation; updates the running ones."""
    running_mean, running_var, momentum, eps = stats
    y, mean, invstd = torch.native_batch_norm(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return y.relu_(), mean, invstd


def _norm_again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps):
    """What a batch norm gave, by the same kernel from the kept batch statistics."""
    var = invstd.double().pow(-2).sub(eps).to(invstd.dtype)
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]


def _norm_relu_again(*args):
    return _norm_again(*args).relu_()


def _norm_relu_backward(grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, kept: tuple):
    mean, invstd, eps = kept
    grad = _aten.threshold_backward(grad, y, 0)
    return _aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, invstd, True, eps, [True, True, True]
    )


class NormReluConv(torch.autograd.Function):
    """conv(relu(batch_norm(x))), keeping x alone."""

    @staticmethod
    def forward(ctx, x, weight, bias, stats, kernel, stride, padding):
        y, mean, invstd = _norm_relu(x, weight, bias, stats)
        ctx.save_for_backward(x, weight, bias, mean, invstd, kernel)
        ctx.geometry, ctx.eps = (stride, padding), stats[-1]
        return F.conv2d(y, kernel, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, mean, invstd, kernel = ctx.saved_tensors
        stride, padding = ctx.geometry
        y = _norm_relu_again(x, weight, bias, mean, invstd, ctx.eps)
        grad, kernel_grad, _ = _aten.convolution_backward(
            grad, y, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, (True, True, False)
        )
        grads = _norm_relu_backward(grad, y, x, weight, (mean, invstd, ctx.eps))
        return *grads, None, kernel_grad, None, None


class NormReluTam(torch.autograd.Function):
    """TAM.split(relu(batch_norm(x))), keeping x and the two outputs."""

    @staticmethod
    def forward(ctx, x, weight, bias, stats, tam_weight, *call):
        y, mean, invstd = _norm_relu(x, weight, bias, stats)
        even, odd = TamFunction.forward(y, tam_weight, *call)
        ctx.save_for_backward(x, weight, bias, mean, invstd, tam_weight, even, odd)
        ctx.call, ctx.eps = call, stats[-1]
        return even, odd

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, weight, bias, mean, invstd, tam_weight, *outputs = ctx.saved_tensors
        y = _norm_relu_again(x, weight, bias, mean, invstd, ctx.eps)
        grad, tam_grad = TamFunction.gradients(y, tam_weight, outputs, grads, *ctx.call)
        grads = _norm_relu_backward(grad, y, x, weight, (mean, invstd, ctx.eps))
        return *grads, None, tam_grad, *(None for _ in ctx.call)


def _usual(x: Tensor, norm: nn.Module, *others: nn.Module) -> bool:
    """Whether the fused form may stand for these modules: training, plain kinds, nobody watching."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and x.numel() > x.shape[1]  # of a single value there are no statistics; the module says so
        and not any(
            m._forward_hooks
            or m._forward_pre_hooks
            or m._backward_hooks
            or m._backward_pre_hooks
            or 'forward' in m.__dict__
            for m in (norm, *others)
        )
    )


def _stats(norm: nn.BatchNorm2d) -> tuple:
    norm.num_batches_tracked.add_(1)
    return norm.running_mean, norm.running_var, norm.momentum, norm.eps


def norm_sum_relu(
    x: Tensor,
    norm: nn.Module,
    other: Tensor | None = None,
    relu: bool = True,
    other_norm: nn.Module | None = None,
) -> Tensor:
    """`relu(norm(x) + other_norm(other))`, as far as these are there; no batch norm gives x itself.

    Where cheap tensors are recomputed (`layers/derived.py`), the result has a recompute function.
    """
    norms = [n for n in (norm, other_norm) if n is not None]
    if not (derived.active() and all(_usual(x, n) for n in norms)):
        y = norm(x)
        if other is not None:
            y += other if other_norm is None else other_norm(other)
        return F.relu(y, inplace=True) if relu else y
    y, again = _normed(x, norm)
    sources = [x]
    if other is not None:
        sources.append(other)
        other_again = None
        if other_norm is not None:
            other, other_again = _normed(other, other_norm)
        y += other

    def make(x: Tensor, other: Tensor | None = None) -> tuple[Tensor]:
        y = again(x)
        if other is not None:
            y += other_again(other) if other_again else other
        return (y.relu_() if relu else y,)

    derived.recompute_with(make, *sources, of=(y,))
    return F.relu(y, inplace=True) if relu else y


def _normed(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Batch norm, and what gives it again from x."""
    running_mean, running_var, momentum, eps = _stats(norm)
    weight, bias = norm.weight, norm.bias
    y, mean, invstd = torch.native_batch_norm(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return y, lambda x: _norm_again(x, weight, bias, mean, invstd, eps)


def pool(x: Tensor, module: nn.Module) -> Tensor:
    """`module(x)` of a pooling module; its result has a recompute function where cheap tensors have one."""
    y = module(x)
    if y is not x:
        derived.recompute_with(lambda x: (module(x),), x, of=(y,))
    return y


def upsample_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour interpolation to `size`; with a recompute function as `pool`."""
    y = F.interpolate(x, size=size, mode='nearest')
    derived.recompute_with(lambda x: (F.interpolate(x, size=size, mode='nearest'),), x, of=(y,))
    return y


def norm_relu_conv(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    """`conv(relu(norm(x)))` of a batch norm and a convolution without bias, groups or dilation."""
    if derived.active():
        return conv(norm_sum_relu(x, norm))
    if type(conv) is nn.Conv2d and conv.bias is None and _usual(x, norm, conv):
        kernel = conv.weight.to(x.dtype)  # under autocast
        return NormReluConv.apply(
            x, norm.weight, norm.bias, _stats(norm), kernel, conv.stride, conv.padding
        )
    return conv(F.relu(norm(x), inplace=True))


def norm_relu_split(x: Tensor, norm: nn.Module, temporal: nn.Module | None, num_pairs: int):
    """(even, odd) = `temporal.split(relu(norm(x)))`; without an operator both are relu(norm(x))."""
    if type(temporal) is TAM and _usual(x, norm) and not derived.active():
        weight = temporal.weight.to(x.dtype)
        call = num_pairs, 'split', temporal.causal
        return NormReluTam.apply(x, norm.weight, norm.bias, _stats(norm), weight, *call)
    x = norm_sum_relu(x, norm)
    return (x, x) if temporal is None else temporal.split(x, num_pairs)


@contextmanager
def _running_stats_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise by their batch as ever, but count it no second time."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = [b for norm in norms for b in norm.buffers()]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, kept in zip(buffers, before, strict=True):
            buffer.copy_(kept)


def checkpoint(module: nn.Module, *args, run: Callable = nn.Module.__call__):
    """`run(module, *args)`, whose inner results are recomputed in the backward pass, not kept.

    Unlike `torch.utils.checkpoint` alone, no batch norm counts its batch a second time.
    """
    traced = torch.compiler.is_compiling()  # which knows no context_fn of this kind
    contexts = (
        {} if traced else {'context_fn': lambda: (nullcontext(), _running_stats_kept(module))}
    )
    return torch.utils.checkpoint.checkpoint(run, module, *args, use_reentrant=False, **contexts)
