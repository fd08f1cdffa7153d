"""What a graph keeps for the backward pass; the benchmarks use it too."""

import torch


def kept_bytes(model, x):
    """Bytes of distinct storages that the graph of `model(x)` keeps, less the parameters' own."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(kept.values())
