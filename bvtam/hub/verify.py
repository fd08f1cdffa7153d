"""Whether weights are what they were: hashes, a strict load, and a stored clip's stored logits."""

from __future__ import annotations

import os
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError

from ..errors import BvtamError
from ..weights import resolve, zoo
from .publish import golden_pair

_LARGEST = 10_000_000  # numbers in a golden clip; ours have 50,000


def verify(name: str) -> dict[str, Any]:
    """Checks the zoo folder or the run `name` (a path), or what the name `arch.tag` finds.

    Returns:
        `{name, folder, hashes, tensors, golden_error}`: how many files had the recorded SHA-256, how
        many tensors fitted, and the largest relative error of the logits of the stored clip.

    Raises:
        FileNotFoundError: no such folder.
        BvtamError: anything that is not as it was written.
    """
    path = name.removeprefix('local-dir:')
    if os.path.isdir(path):
        folder = zoo.model_folder(path)
    elif '/' in path or '\\' in path:
        raise FileNotFoundError(f'{path} is no folder')
    else:
        folder = resolve.find(*path.split('.', 1))
    sums, golden = folder / zoo.SUMS, folder / zoo.GOLDEN
    for file in (sums, golden):
        if not file.is_file():
            raise BvtamError(f'{file} is missing, so there is nothing to verify against')
    zoo.check_hashes(folder)
    model: Any = timm.create_model(f'local-dir:{folder}', pretrained=True)
    try:
        pair = safetensors.torch.load_file(golden)
    except (SafetensorError, OSError) as error:
        raise BvtamError(f'{golden} cannot be read: {error}') from None
    if set(pair) != {'clip', 'logits'}:
        raise BvtamError(f'{golden} holds {", ".join(sorted(pair))}, not a clip and its logits')
    if not all(t.dtype == torch.float32 and t.numel() <= _LARGEST for t in pair.values()):
        raise BvtamError(f'{golden} holds no small clip of float32 and its logits')
    logits = golden_pair(model, pair['clip'])['logits']
    if logits.shape != pair['logits'].shape:
        raise BvtamError(f'{golden}: logits of shape {tuple(logits.shape)} for the stored clip')
    scale = pair['logits'].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = ((logits - pair['logits']).abs().max() / scale).item()
    if not difference < 1e-3:
        raise BvtamError(f'{folder}: the stored clip gives logits that differ by {difference:.1e}')
    return {
        'name': name,
        'folder': str(folder),
        'hashes': len(sums.read_text('utf-8').splitlines()),
        'tensors': len(model.state_dict()),
        'golden_error': difference,
    }
