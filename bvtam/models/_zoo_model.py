"""ZooModel: what a model of this package has, besides what timm asks of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..clip import ClipConfig


class ZooModel(nn.Module):
    """The base of every model; `build` sets the attributes.

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

    if TYPE_CHECKING:  # torch has it that any other attribute is a tensor or a module

        def __getattr__(self, name: str) -> Any: ...
