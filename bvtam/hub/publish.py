"""From a model to a zoo folder, which is a Hugging Face Hub repo as it stands."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import BvtamError
from ..files import atomic_folder, recover
from ..models._zoo_model import ZooModel
from ..weights import zoo
from ..weights.table import Entry
from . import cards


@contextmanager
def zoo_folder(folder: str | os.PathLike[str], keep: bool = False) -> Iterator[Path]:
    """Yields a new folder beside `folder` that takes its place, whole, when the block ends well.

    Args:
        keep: what else lies in `folder` comes along.

    Raises:
        BvtamError: `folder` is there and is no folder, or without `keep` holds other things.
    """
    folder = Path(folder).resolve()  # a link stays one
    try:
        recover(folder)
        own = {zoo.CONFIG, zoo.WEIGHTS, zoo.CARD, zoo.GOLDEN, zoo.SUMS}
        found = folder.iterdir() if folder.is_dir() else ()
        others = [path for path in found if path.name not in own]
        if (folder.exists() and not folder.is_dir()) or (others and not keep):
            raise BvtamError(f'{folder} is there and is no zoo folder: name another one')
        with atomic_folder(folder, others) as new:
            yield new
    except (OSError, SafetensorError) as error:
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise BvtamError(f'{folder} cannot be written: {reason}') from None


def save_pretrained(
    model: ZooModel,
    folder: str | os.PathLike[str],
    origin: str = '',
    licence: str = '',
    entry: Entry | None = None,
    half: bool = False,
    keep: bool = False,
) -> Path:
    """Writes a zoo folder: config.json, weights, model card, a golden pair, and their SHA-256.

    Args:
        model: a model of this package, from any of its factories.
        folder: made whole or not at all; a zoo folder of the same name is replaced.
        origin: where the weights come from, in a sentence for the card.
        licence: of the weights, as the Hub names it; left open when nobody chose one.
        entry: the published weights that these are.
        half: keep convolutions and the classifier in float16, and round those of `model` to it.
        keep: other files in `folder` come along, in place of an error.

    Returns:
        The folder.

    Raises:
        BvtamError: `folder` is there and is no zoo folder, it cannot be written, the model is an
            optimised one or none of this package, or has label names of another number than its
            classes.
    """
    model = getattr(model, '_orig_mod', model)  # of a compiled one
    if not all(hasattr(model, name) for name in ('num_classes', 'clip_config', 'label_names')):
        raise BvtamError(
            f'{type(model).__name__} is no model as create_model gives it (features_only is none)'
        )
    if getattr(model, 'optimized', False):
        raise BvtamError('an optimised model cannot be saved: save the one that it was made of')
    if model.label_names and len(model.label_names) != model.num_classes:
        raise BvtamError(
            f'{len(model.label_names)} label names for {model.num_classes} classes: set '
            'model.label_names to one name per class, or to None'
        )
    licence = entry.licence if entry else licence
    with zoo_folder(folder, keep) as new:
        cards.write_config(model, new / zoo.CONFIG, licence)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if half:  # norms and temporal weights are few, and some of them small beyond float16
            head = f'{model.get_classifier(name_only=True)}.weight'
            state |= {n: t.half() for n, t in state.items() if t.ndim == 4 or n == head}
            model.load_state_dict(state)
        safetensors.torch.save_file(state, new / zoo.WEIGHTS, metadata={'format': 'pt'})
        (new / zoo.CARD).write_text(cards.card(model, entry, origin, licence), encoding='utf-8')
        safetensors.torch.save_file(golden_pair(model), new / zoo.GOLDEN)
        sums = (f'{zoo.sha256(new / n)}  {n}\n' for n in (zoo.WEIGHTS, zoo.GOLDEN))
        (new / zoo.SUMS).write_text(''.join(sums))
    return Path(folder)


def golden_pair(model: ZooModel, clip: Tensor | None = None) -> dict[str, Tensor]:
    """A small clip and the model's logits for it, in float32 on the CPU, for `bvtam verify`."""
    if clip is None:
        generator = torch.Generator().manual_seed(0)
        shape = (1, model.in_chans, 4, 64, 64)
        clip = torch.randn(
            shape[:2] + shape[3 if model.input_kind == 'image' else 2 :], generator=generator
        )
    exact = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        return {'clip': clip, 'logits': exact(clip).contiguous()}
