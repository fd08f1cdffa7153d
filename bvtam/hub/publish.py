"""From a net to a zoo folder, which is a Hugging Face Hub repo as it stands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from timm.models import save_for_hf

from ..errors import BvtamError
from . import store


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a new folder beside `folder` that takes its place, whole, when the block ends well.

    Raises:
        BvtamError: `folder` is there and is neither empty nor a zoo folder.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder.is_dir() and _replaceable(folder)):
        raise BvtamError(f'{folder} is there and is no zoo folder: name another one')
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f'.{folder.name}.{os.getpid()}.{end}') for end in ('new', 'old'))
    new.mkdir()
    try:
        yield new
        for path in new.iterdir():
            with path.open('rb') as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    return not any(folder.iterdir()) or (folder / store.CONFIG).is_file()


def save_pretrained(
    model: torch.nn.Module, folder: str | os.PathLike, origin: str = '', licence: str = ''
) -> Path:
    """Writes `config.json` (timm's keys, "clip", label names), `model.safetensors` and a model card.

    Args:
        model: a net of this package, from any of its factories.
        folder: made whole or not at all; a zoo folder of the same name is replaced.
        origin: where the weights come from, in a sentence for the card.
        licence: of the weights, as the Hub names it; left open when nobody chose one.

    Returns:
        The folder.

    Raises:
        BvtamError: `folder` is there and is no zoo folder.
    """
    config = {'label_names': model.label_names}
    if model.clip_config is not None:
        config['clip'] = model.clip_config.to_dict()
    with atomic_folder(folder) as new:
        save_for_hf(model, new, model_config=config, safe_serialization=True)
        (new / store.CARD).write_text(_card(model, origin, licence), encoding='utf-8')
    return Path(folder)


def _card(model: torch.nn.Module, origin: str, licence: str) -> str:
    name = model.model_name
    data = ModelCardData(
        library_name='timm',
        pipeline_tag='video-classification' if model.clip_config else 'image-classification',
        license=licence or None,
        tags=['bvtam', 'video-recognition'],
    )
    lines = [f'---\n{data.to_yaml()}\n---', f'# {name}', origin or 'Origin not recorded.']
    params = sum(p.numel() for p in model.parameters())
    facts = [f'{params:,} parameters', f'{model.num_classes} classes']
    if clip := model.clip_config:
        facts += [
            f'{clip.num_frames} frames, {clip.sampling} sampling',
            f'shorter side {clip.resize}, crop {clip.crop_size}',
            f'views: {clip.num_clips} clip(s) x {clip.num_crops} crop(s)',
        ]
    lines.append('\n'.join(f'- {fact}' for fact in facts))
    lines.append(
        '```python\nimport bvtam\n\n'
        "model = bvtam.create_model('local-dir:PATH_OF_THIS_FOLDER', pretrained=True)\n```"
    )
    return '\n\n'.join(lines) + '\n'
