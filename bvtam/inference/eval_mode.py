"""A model in eval mode that others may train or ask at the same time."""

from __future__ import annotations

import copy
import logging
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BvtamError

# What a module of torch holds of itself. Hooks are the user's: they are shared as they are.
_OWN = frozenset(vars(nn.Module())) | {'_modules', '_parameters', '_buffers', 'training'}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor, np.ndarray, type, torch.dtype)
_PLAIN += (torch.device, torch.Size, types.ModuleType, types.BuiltinFunctionType, logging.Logger)
_PLAIN += (type(threading.Lock()), range)
_DEEPEST = 6  # attributes of attributes, in which a module may be referred to


@contextmanager
def evaluating(model: nn.Module, device: str | torch.device | None = None) -> Iterator[nn.Module]:
    """The model as one in eval mode, without gradients; the given one is not touched at any time.

    A model that is in eval mode through and through is used as it is. Of another one comes a view: a
    tree of modules of its own, with the same parameters, buffers and hooks. So what an optimizer
    does is seen at the next call, and other threads may ask the same model meanwhile. What a view
    keeps from one call to the next, other than in place, is gone with it. A compiled model that is in
    training mode runs without its compiled form.

    Args:
        model: any module.
        device: to run on; the model itself stays where it is.

    Raises:
        BvtamError: a model of which there can be no view, such as one of TorchScript in training mode.
    """
    if device is not None and all(t.device == torch.device(device) for t in _tensors(model)):
        device = None
    # No inference mode: what a module keeps for later could not be trained with.
    with torch.no_grad():
        if device is None and not any(module.training for module in model.modules()):
            yield model
        else:
            yield _view(model, device)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _view(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    modules = list(model.modules())
    # A `train` of the model's own may change weights, as where adapters are merged.
    custom = any(
        type(module).train is not nn.Module.train
        or type(module).eval is not nn.Module.eval
        or not {'train', 'eval'}.isdisjoint(vars(module))
        for module in modules
        if '_orig_mod' not in module._modules
    )
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
    name = type(model).__name__
    try:
        if scripted:
            raise TypeError('it is TorchScript')
        view = _Copier(modules, own=custom or device is not None, values=custom).copy(model)
        view.eval()
        return view if device is None else view.to(device)
    except BvtamError:
        raise
    except Exception as error:  # whatever the module's own methods raise
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise BvtamError(
            f'{name} cannot be run in eval mode beside its training mode ({reason}): call '
            'model.eval() first'
        ) from error


class _Copier:
    """Copies modules, and of all else that they hold only what refers to one of them.

    Args:
        modules: the tree.
        own: whether parameters and buffers are objects of their own.
        values: whether these have memory of their own.
    """

    def __init__(self, modules: list[nn.Module], own: bool, values: bool) -> None:
        self.own, self.values = own, values
        self.tensors: dict[int, Tensor | None] = {}
        self.copies: dict[int, nn.Module] = {}
        self.seen: dict[int, tuple[Any, Any]] = {}  # with the object, so that an id stays one
        for module in modules:
            self.copies[id(module)] = object.__new__(type(module))
        for module in modules:  # the compiled form has guards on the module that it was made of
            plain = module._modules.get('_orig_mod')
            while plain is not None and '_orig_mod' in plain._modules:
                plain = plain._modules['_orig_mod']
            if plain is not None:
                self.copies[id(module)] = self.copies[id(plain)]
        for module in modules:
            if '_orig_mod' not in module._modules:
                self._fill(module, self.copies[id(module)])

    def copy(self, module: nn.Module) -> nn.Module:
        return self.copies[id(module)]

    def _fill(self, module: nn.Module, new: nn.Module) -> None:
        state = new.__dict__
        state.update(module.__dict__)
        state.pop('_compiled_call_impl', None)
        state['_modules'] = type(module._modules)(
            (name, None if child is None else self.copies[id(child)])
            for name, child in module._modules.items()
        )
        # The dict of the parameters stays that of the module, where sharded ones come and go.
        for key in ('_parameters', '_buffers') if self.own else ():
            state[key] = type(state[key])((n, self._tensor(t)) for n, t in state[key].items())
        state['_buffers'] = copy.copy(state['_buffers'])
        for name, value in module.__dict__.items():
            if name not in _OWN and type(value) not in _PLAIN:
                state[name] = self._point(value, _DEEPEST)

    def _tensor(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in self.tensors:
            new = tensor.detach()
            new = new.clone() if self.values else new
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, tensor.requires_grad)
            self.tensors[id(tensor)] = new
        return tensor if tensor is None else self.tensors[id(tensor)]

    def _point(self, value: Any, depth: int) -> Any:
        """The value itself; or, where it refers to a module of the tree, a copy that refers to ours."""
        if id(value) in self.copies:
            return self.copies[id(value)]
        if depth == 0 or isinstance(value, _PLAIN):
            return value
        if id(value) not in self.seen:
            self.seen[id(value)] = value, value  # in a ring
            self.seen[id(value)] = value, self._pointed(value, depth - 1)
        return self.seen[id(value)][1]

    def _pointed(self, value: Any, depth: int) -> Any:
        def point(part: Any) -> Any:
            return self._point(part, depth)

        def parts(old: dict[str, Any]) -> dict[str, Any]:
            new = {key: point(part) for key, part in old.items()}
            return {key: part for key, part in new.items() if part is not old[key]}

        if isinstance(value, weakref.ref):
            target = value()
            new = point(target)
            return value if new is target else type(value)(new)
        if isinstance(value, types.MethodType):
            owner = point(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, types.FunctionType):
            return self._function(value, point, parts)
        if isinstance(value, partial):
            new = point(value.func), point(value.args), point(value.keywords)
            old = value.func, value.args, value.keywords
            if all(a is b for a, b in zip(new, old, strict=True)):
                return value
            return type(value)(new[0], *new[1], **new[2])
        if isinstance(value, dict):
            changed = parts(value)
            if not changed:
                return value
            new = copy.copy(value)
            new.update(changed)
            return new
        if isinstance(value, (list, tuple, set, frozenset)):
            if {type(part) for part in value} <= set(_PLAIN):
                return value
            new = [point(part) for part in value]
            if all(a is b for a, b in zip(new, value, strict=True)):
                return value
            if isinstance(value, list):
                made = copy.copy(value)
                made[:] = new
                return made
            return value._make(new) if hasattr(value, '_make') else type(value)(new)
        return self._object(value, parts)

    def _function(self, function: types.FunctionType, point: Any, parts: Any) -> Any:
        plain = vars(function).get('_torchdynamo_orig_callable')
        if plain is not None and point(plain) is not plain:
            return point(plain)
        cells = []
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # nothing in it yet
                held = None
            new = point(held)
            cells.append(cell if new is held else types.CellType(new))
        defaults = point(function.__defaults__)
        kwdefaults, attributes = point(function.__kwdefaults__), parts(vars(function))
        same = all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True))
        same &= defaults is function.__defaults__ and kwdefaults is function.__kwdefaults__
        if same and not attributes:
            return function
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, tuple(cells)
        )
        made.__kwdefaults__ = kwdefaults
        made.__dict__.update(vars(function) | attributes)
        return made

    def _object(self, value: Any, parts: Any) -> Any:
        held = dict(getattr(value, '__dict__', None) or {})
        for kind in type(value).__mro__:
            slots = kind.__dict__.get('__slots__', ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ('__dict__', '__weakref__') and hasattr(value, slot):
                    held[slot] = getattr(value, slot)
        changed = parts(held)
        if not changed:
            return value
        if isinstance(
            value, nn.Module
        ):  # one that the tree does not list: as `copy.copy` of others
            new = object.__new__(type(value))
            new.__dict__.update(value.__dict__ | changed)
            return new
        new = copy.copy(value)
        for name, part in changed.items():
            object.__setattr__(new, name, part)
        return new
