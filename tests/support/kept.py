"""What a graph keeps for the backward pass; the benchmarks use it too."""

from unittest.mock import patch

import torch
from torch.autograd import graph


def kept_bytes(model, x):
    """Bytes of distinct storages that the graph of `model(x)` keeps, less the parameters' own.

    Where the model has hooks of its own, what counts is what these keep.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    class Noting(graph.saved_tensors_hooks):
        def __init__(self, pack, unpack):
            def note(tensor):
                packed = pack(tensor)
                if isinstance(packed, torch.Tensor):
                    storage = packed.untyped_storage()
                    if storage.data_ptr() not in own:
                        kept[storage.data_ptr()] = packed, storage.nbytes()
                return packed

            super().__init__(note, unpack)

    with (
        Noting(torch.Tensor.detach, lambda tensor: tensor),
        patch.object(graph, 'saved_tensors_hooks', Noting),
    ):
        model(x)
    return sum(size for _, size in kept.values())
