"""A model as a function of clips: checked, in eval mode, on its own device and in its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..data.transforms import check_channels, normalize
from ..errors import BvtamError
from .eval_mode import evaluating

Result = TypeVar('Result')
_LARGEST = 10_000  # beyond it a count is a mistake


class Runner:
    """Runs a model on clips as they are read from videos; the model is left as it came.

    Args:
        model: a model of the zoo, on the device that is to be used.
        task: the word for its use in messages.
        images: whether an image model will do; its clips have one frame.

    Raises:
        BvtamError: an image model where `images` is False, or one that does not take colours.
    """

    def __init__(self, model: nn.Module, task: str, images: bool = False) -> None:
        self.model, self.name = model, model_name(model)
        self.clip, self.is_image = getattr(model, 'clip_config', None), is_image(model)
        if not images:
            if self.clip is None or self.is_image:
                raise BvtamError(f'{self.name} takes single images; {task} needs a video model')
            check_channels(self.name, self.clip, model)

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        return next(self.model.parameters(), torch.empty(0))

    def inputs(self, clips: Tensor) -> Tensor:
        """What the model takes of clips (B, C, T, S, S): uint8, or floats that are normalised."""
        x = clips.to(self.device, non_blocking=clips.is_pinned())
        if x.dtype == torch.uint8:
            x = normalize(x, self.clip, self.dtype)
        if self.is_image:
            if x.shape[2] != 1:
                raise BvtamError(f'{self.name} takes single images: evaluate it on an ImageDataset')
            x = x.squeeze(2)
        return x.to(self.dtype)

    def run(
        self,
        clips: Tensor,
        forward: Callable[[nn.Module, Tensor], Result] = nn.Module.__call__,
    ) -> Result:
        """`forward(model, inputs)` with the model in eval mode and without gradients."""
        with evaluating(self.model) as model:
            return forward(model, self.inputs(clips))

    def logits(self, clips: Tensor) -> Tensor:
        """(B, C, T, S, S) -> float32 (B, num_classes) on the model's device; see `finite`."""
        return self.finite(self.run(clips))

    def finite(self, logits: Tensor) -> Tensor:
        """The logits in float32; `BvtamError` where they are not finite."""
        logits = logits.float()
        if not logits.isfinite().all():
            raise BvtamError(
                f'{self.name} gave scores that are not finite; its weights may be damaged'
            )
        return logits


def check_classes(model: nn.Module, task: str) -> list[str] | None:
    """The label names of a model, where it has them.

    Raises:
        BvtamError: it has no classes, or another number of them than of label names.
    """
    name, labels = model_name(model), getattr(model, 'label_names', None)
    if not model.num_classes:
        raise BvtamError(f'{name} has no classifier (num_classes=0); {task} needs one')
    if labels and len(labels) != model.num_classes:
        raise BvtamError(
            f'{name} has {model.num_classes} classes but {len(labels)} label names; '
            'give one for each class, or none'
        )
    return labels


def blank(model: nn.Module, batch: int, frames: int, height: int, width: int) -> Tensor:
    """Zeros that a model takes, clips or images, on its device and in its precision.

    Raises:
        BvtamError: it does not say how many channels it takes.
    """
    if not hasattr(model, 'in_chans'):
        raise BvtamError(
            f"{model_name(model)} has no attribute 'in_chans': set it to the channels that it takes"
        )
    shape = (batch, model.in_chans, *(() if is_image(model) else (frames,)), height, width)
    return next(model.parameters(), torch.empty(0)).new_zeros(shape)


def check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not 1 <= value <= _LARGEST:
            raise BvtamError(f'{name} must be from 1 to {_LARGEST}, not {value}')


def is_image(model: nn.Module) -> bool:
    """Whether a model takes images (B, C, H, W) and not clips."""
    return getattr(model, 'input_kind', 'clip') == 'image'


def model_name(model: nn.Module) -> str:
    """The name of a model in results and messages."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    name = getattr(model, 'model_name', None) or config.get('architecture')
    return name or type(model).__name__
