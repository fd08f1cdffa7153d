"""ZooModel: what a model of this package has, besides what timm asks of its models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..clip import ClipConfig
from ..layers.folding import unfold_time


def head_of_clips(
    model: ZooModel, pool: Callable[[Tensor], Tensor], x: Tensor, pre_logits: bool
) -> Tensor:
    """(B, num_features, T', h, w) -> (B, num_classes), averaged over time; `pool` takes single steps."""
    steps = x.shape[2]
    x = pool(x.transpose(1, 2).flatten(0, 1))
    x = unfold_time(F.dropout(x, model.drop_rate, model.training), steps)
    if x.ndim == 5:  # not pooled
        return x.transpose(1, 2)
    x = x.mean(1)  # before the linear layer, which is the same and runs once
    return x if pre_logits else model.get_classifier()(x)


class ZooModel(nn.Module):
    """The base of every model; `build` sets the attributes.

    A class with `_walk` and `forward_head` has all that is below.

    Attributes:
        model_name: the variant, or the name to which a model was built by hand.
        model_options: every option of the class, as the model has it.
        clip_config: how clips are made for it; None for a model of images.
        label_names: one per class, where the weights say so.
    """

    model_name: str
    model_options: dict[str, Any]
    _model_args: dict[str, Any]
    clip_config: ClipConfig | None
    label_names: list[str] | None
    pretrained_cfg: dict[str, Any]  # set by timm

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name and the output of each part in turn, up to the head."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, num_features, h, w), clips (B, C, T, H, W) -> (B, num_features, T', h, w)."""
        for _, features in self._walk(x):
            x = features
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last features, and those of the stem and the stages (`feature_info`), as timm gives them.

        Args:
            indices: the last n if an int, these if a list, all if None.
            norm: there is no final norm to apply; accepted for timm's feature extractor.
            stop_early: leave out the stages after the last one asked for.
            output_fmt: 'NCHW', the only one; video models put time after the channels.
            intermediates_only: return the list alone.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt must be NCHW, not {output_fmt}')
        names = [info['module'] for info in self.feature_info]
        take, last = feature_take_indices(len(names), indices)
        found = []
        for name, features in self._walk(x):
            if name in names and names.index(name) in take:
                found.append(features)
            if stop_early and name == names[last]:
                break
        return found if intermediates_only else (features, found)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping what it computed."""
        self.grad_checkpointing = enable

    if TYPE_CHECKING:  # torch has it that any other attribute is a tensor or a module

        def __getattr__(self, name: str) -> Any: ...
