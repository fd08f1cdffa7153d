"""Memory for time in training: cheap results are recomputed in the backward pass, not kept.

Batch norm and ReLU are a pass over memory each, but what they give is kept for the layer behind
them. `norm_relu_conv` and `norm_relu_split` keep the input of the batch norm alone. The numbers are
those of the plain modules to rounding; where anything is unusual (eval mode, another kind of norm,
hooks, tracing) the plain modules run. Gradients of gradients are not to be had of the fused forms:
they say so. `checkpoint` recomputes a whole part of a model, or all of it but its convolutions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from .pairs import TemporalOp
from .tam import TAM, TamFunction

_aten = torch.ops.aten
_call = threading.local()  # .plain: in a part whose cheap results are recomputed as a whole
_Stats = tuple[Tensor, Tensor, float, float]  # running mean and variance, momentum, eps


def _norm_relu(x: Tensor, weight: Tensor, bias: Tensor, stats: _Stats) -> tuple[Tensor, ...]:
    """ReLU of batch norm, with the batch's mean and inverse deviation; updates the running ones."""
    running_mean, running_var, momentum, eps = stats
    y, mean, invstd = torch.native_batch_norm(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    return y.relu_(), mean, invstd


def _norm_relu_again(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """The same result, by the same kernel from the kept batch statistics."""
    var = invstd.double().pow(-2).sub(eps).to(invstd.dtype)
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0].relu_()


def _norm_relu_backward(
    grad: Tensor, y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, eps: float
) -> tuple[Tensor, ...]:
    grad = _aten.threshold_backward(grad, y, 0)
    return _aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, invstd, True, eps, [True, True, True]
    )


class NormReluConv(torch.autograd.Function):
    """conv(relu(batch_norm(x))), keeping x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        stats: _Stats,
        kernel: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        y, mean, invstd = _norm_relu(x, weight, bias, stats)
        ctx.save_for_backward(x, weight, bias, mean, invstd, kernel)
        ctx.geometry, ctx.eps = (stride, padding), stats[-1]
        return F.conv2d(y, kernel, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, kernel = ctx.saved_tensors
        stride, padding = ctx.geometry
        y = _norm_relu_again(x, weight, bias, mean, invstd, ctx.eps)
        grad, kernel_grad, _ = _aten.convolution_backward(
            grad, y, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, (True, True, False)
        )
        grads = _norm_relu_backward(grad, y, x, weight, mean, invstd, ctx.eps)
        return *grads, None, kernel_grad, None, None


class NormReluTam(torch.autograd.Function):
    """TAM.split(relu(batch_norm(x))), keeping x and the two outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        stats: _Stats,
        tam_weight: Tensor,
        *call: Any,
    ) -> tuple[Tensor, Tensor]:
        y, mean, invstd = _norm_relu(x, weight, bias, stats)
        even, odd = TamFunction.forward(y, tam_weight, *call)
        ctx.save_for_backward(x, weight, bias, mean, invstd, tam_weight, even, odd)
        ctx.call, ctx.eps = call, stats[-1]
        return even, odd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, tam_weight, *outputs = ctx.saved_tensors
        y = _norm_relu_again(x, weight, bias, mean, invstd, ctx.eps)
        grad, tam_grad = TamFunction.gradients(y, tam_weight, outputs, grads, *ctx.call)
        grads = _norm_relu_backward(grad, y, x, weight, mean, invstd, ctx.eps)
        return *grads, None, tam_grad, *(None for _ in ctx.call)


def can_fuse(norm: nn.Module, x: Tensor, *others: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a fused form may stand for these modules: training, plain kinds, nobody watching."""
    return (
        torch.is_grad_enabled()
        and not getattr(_call, 'plain', False)
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


def _stats(norm: nn.BatchNorm2d) -> _Stats:
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None and var is not None and count is not None and norm.momentum is not None
    count.add_(1)
    return mean, var, norm.momentum, norm.eps


class FoldedNormRelu(nn.Identity):
    """Stands for a batch norm and the ReLU after it, which the convolution before it has taken over."""


def norm_relu(x: Tensor, norm: nn.Module) -> Tensor:
    """`relu(norm(x))`, for inference in one operation with what was before."""
    return norm(x) if isinstance(norm, FoldedNormRelu) else F.relu(norm(x), inplace=True)


def norm_relu_conv(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
    """`conv(relu(norm(x)))` of a batch norm and a convolution without bias, groups or dilation."""
    if type(conv) is nn.Conv2d and conv.bias is None and can_fuse(norm, x, conv):
        kernel = conv.weight.to(x.dtype)  # under autocast
        return NormReluConv.apply(
            x, norm.weight, norm.bias, _stats(norm), kernel, conv.stride, conv.padding
        )
    return conv(norm_relu(x, norm))


def norm_relu_split(
    x: Tensor, norm: nn.Module, temporal: TemporalOp | None, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """(even, odd) = `temporal.split(relu(norm(x)))`; without an operator both are relu(norm(x))."""
    if type(temporal) is TAM and can_fuse(norm, x):
        weight = temporal.weight.to(x.dtype)
        call = num_pairs, 'split', temporal.causal
        return NormReluTam.apply(x, norm.weight, norm.bias, _stats(norm), weight, *call)
    x = norm_relu(x, norm)
    return (x, x) if temporal is None else temporal.split(x, num_pairs)


class _Recomputing:
    """`again`, in which batch norms normalise by their batch as ever, but count it no second time."""

    def __init__(self, module: nn.Module, again: AbstractContextManager[Any]) -> None:
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
        self.buffers = [b for norm in norms for b in norm.buffers()]
        self.again = again

    def __enter__(self) -> None:
        self.before = [b.clone() for b in self.buffers]
        self.again.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.again.__exit__(*error)
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)


def checkpoint(
    module: nn.Module,
    *args: Any,
    run: Callable[..., Tensor] = nn.Module.__call__,
    keep_convolutions: bool = False,
) -> Tensor:
    """`run(module, *args)`, whose inner results are recomputed in the backward pass, not kept.

    Unlike `torch.utils.checkpoint` alone, no batch norm counts its batch a second time.

    Args:
        keep_convolutions: what convolutions give is kept, so none runs twice; the rest are passes
            over memory, and cheap. The graph is then good for one backward pass.
    """
    if torch.compiler.is_compiling():  # which knows no context_fn of this kind
        return torch_checkpoint(run, module, *args, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        if not keep_convolutions:
            return nullcontext(), _Recomputing(module, nullcontext())
        forward, again = create_selective_checkpoint_contexts([_aten.convolution.default])
        return forward, _Recomputing(module, again)

    def run_plain(*args: Any) -> Tensor:
        before = getattr(_call, 'plain', False)
        _call.plain = True  # what is fused would be recomputed twice
        try:
            return run(*args)
        finally:
            _call.plain = before

    function = run_plain if keep_convolutions else run
    return torch_checkpoint(function, module, *args, use_reentrant=False, context_fn=contexts)
