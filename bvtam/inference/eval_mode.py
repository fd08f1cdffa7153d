"""A model in eval mode that others may train or ask at the same time."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BvtamError


@contextmanager
def evaluating(model: nn.Module, device: str | torch.device | None = None) -> Iterator[nn.Module]:
    """The model as one in eval mode, without gradients; the given one is not touched at any time.

    A model that is in eval mode through and through is used as it is. Of another one comes a copy of
    its modules, with the same parameters, buffers and hooks. So what an optimizer does is seen at the
    next call, and other threads may ask the same model meanwhile. What the copy keeps from one call to
    the next is gone with it. A compiled model that is in training mode runs without its compiled form.

    Args:
        device: to run on; the model itself stays where it is.

    Raises:
        BvtamError: a model in training mode that cannot be copied, such as one of TorchScript.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if device is not None and all(t.device == torch.device(device) for t in tensors):
        device = None
    # No inference mode: what a module keeps for later could not be trained with.
    with torch.no_grad():
        if device is None and not any(module.training for module in model.modules()):
            yield model
            return
        try:
            copied = _copied(model, tensors, device is not None).eval()
        except Exception as error:  # whatever the module's own methods raise
            reason = str(error).partition('\n')[0] or type(error).__name__
            raise BvtamError(
                f'{type(model).__name__} cannot be run in eval mode beside its training mode '
                f'({reason}): call model.eval() first'
            ) from error
        yield copied if device is None else copied.to(device)


def _copied(model: nn.Module, tensors: list[Tensor], apart: bool) -> nn.Module:
    """A copy that shares what the tensors hold; `apart`, they are objects of its own."""
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError('it is TorchScript')
        for name, value in vars(module).items():
            if _refers(value, modules):
                raise TypeError(
                    f'its {name!r} refers to a module in a way that copies do not follow'
                )
    memo: dict[int, Any] = {}
    # A `train` of the model's own may change weights, as where adapters are merged: it gets its own.
    kinds = {type(module) for module in modules if '_orig_mod' not in module._modules}
    if all(kind.train is nn.Module.train and kind.eval is nn.Module.eval for kind in kinds):
        memo = {id(t): _alias(t) if apart else t for t in tensors}
    for module in modules:  # hooks are the user's: they are shared as they are
        memo |= {id(held): held for name, held in vars(module).items() if name.endswith('_hooks')}
    # The compiled form has guards on the module that it was made of.
    for module in reversed(modules):
        if '_orig_mod' in module._modules:
            memo[id(module)] = copy.deepcopy(module._modules['_orig_mod'], memo)
    return copy.deepcopy(model, memo)


def _alias(tensor: Tensor) -> Tensor:
    alias = tensor.detach()
    return nn.Parameter(alias, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else alias


def _refers(value: Any, modules: list[nn.Module]) -> bool:
    """Whether it leads to one of the modules where `copy.deepcopy` takes it for a plain value."""
    held: list[Any] = []
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, weakref.ref):
        held = [value()]
    held = [part.__self__ if isinstance(part, MethodType) else part for part in held]
    return any(part is module for part in held for module in modules)
