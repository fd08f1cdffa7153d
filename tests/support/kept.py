"""What a graph keeps for the backward pass; the benchmarks use it too."""

import gc

import torch
from torch.autograd import graph


def _alive():
    """{address: bytes} of the storages that Python objects hold."""
    tensors = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not o.is_meta)
    return {
        s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors if not t.is_mkldnn)
    }


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
