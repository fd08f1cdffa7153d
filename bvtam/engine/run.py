"""From a recipe to a finished run: reads the data, builds the model, trains it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ..factory import create_model
from .data import build_datasets, load_data
from .recipe import Recipe
from .setup import build_model, enough_epochs, warn_all_warmup
from .train import RunResults, Trainer


def train(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    resume: str = 'auto',
    progress: Callable[[int, int], object] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> RunResults:
    """Trains by a recipe; `train.py` lists the files that it writes.

    Args:
        recipe: see `Recipe.load`.
        out: folder of the run; None: `runs/` and the name of the model.
        resume: 'auto' goes on with the run that `out` holds, 'never' refuses to.
        progress, on_log: as in `Trainer`.

    Raises:
        BvtamError, FileNotFoundError: a recipe, data or first weights that do not fit together.
        Stopped: SIGTERM or SIGINT came; the same call goes on from there.
    """
    model, train_set, val_set = build(recipe)
    recipe = enough_epochs(recipe, len(train_set))
    warn_all_warmup(recipe)
    out = Path(out) if out is not None else Path('runs') / recipe.model
    trainer = Trainer(model, recipe, train_set, val_set, out, progress, on_log)
    return {**trainer.fit(resume), 'out': str(out)}


def build(recipe: Recipe) -> tuple[nn.Module, Dataset, Dataset | None]:
    """The recipe's model and the data sets that it is trained and validated on."""
    data = load_data(recipe)
    model = build_model(recipe, data.label_names, data.num_classes)
    return model, *build_datasets(recipe, model, data)


def finetune(
    data: str | os.PathLike[str],
    model: str = 'bvtam_r50_8x2',
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] = 'finetune',
    resume: str = 'auto',
    **settings: Any,
) -> nn.Module:
    """Finetunes a model on videos of your own, as `bvtam train --data DATA model=MODEL` does.

    Args:
        data: a folder with a folder of videos for each class, or what `load_records` takes.
        model: name of the model; it starts from its weights where they are on this machine, unless
            `init=` says otherwise.
        recipe: name of a recipe that ships, or path of one.
        out, resume: as in `train`.
        settings: of the recipe, by the last part of their names: `lr=1e-4, epochs=5`.

    Returns:
        The best model of the run, in eval mode, with its ClipConfig and label names.

    Raises:
        As `train`.
    """
    pairs = [f'{key}={"" if value is None else value}' for key, value in settings.items()]
    chosen = Recipe.load(recipe, [*pairs, f'model={model}']).with_data(os.fspath(data))
    result = train(chosen, out, resume)
    return create_model(Path(result['out']), pretrained=True).eval()
