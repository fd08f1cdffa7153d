"""What a graph keeps for the backward pass; the benchmarks use it too."""

import contextlib
import gc

import torch
from torch.autograd import graph


def _alive():
    """{address: bytes} of the storages that Python objects hold; those of a trace have no memory."""
    found = {}
    for tensor in gc.get_objects():
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_mkldnn:
            storage = tensor.untyped_storage()
            with contextlib.suppress(RuntimeError):
                found[storage.data_ptr()] = storage.nbytes()
    return found


def kept_bytes(model, x):
    """Bytes of distinct storages that the graph of `model(x)` keeps, less the parameters' own.

    Autograd tells of what it saves; what checkpoints keep in Python is found there.
    """
    gc.collect()
    before, kept = _alive(), []

    def note(tensor):
        kept.append(tensor.detach())
        return kept[-1]

    with graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(x)
    gc.collect()
    found = {address: size for address, size in _alive().items() if address not in before}
    return sum(found.values()) - out.untyped_storage().nbytes()
