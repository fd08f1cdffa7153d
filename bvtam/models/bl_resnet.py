"""bL-ResNet: a deep branch at half resolution (Big) beside a shallow one at full (Little).

Chen et al., "Big-Little Net", ICLR 2019, arXiv 1807.03848. Must equal the release IBM/BigLittleNet
(Apache-2.0), whose checkpoints it loads. The blocks (`_bl_blocks.py`) also build the video models of
`blvnet.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, create_classifier
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import BvtamError
from ..layers.pairs import TemporalOp
from ..layers.recompute import checkpoint
from ..layers.tam import stack_tam_weights
from ._bl_blocks import BLModule, Bottleneck, Chain, Stem
from ._build import build, check_pool, default_cfg
from ._zoo_model import ZooModel

__all__ = ['BLResNet']

DEPTHS = {50: (3, 4, 6, 3), 101: (4, 8, 18, 3), 152: (5, 12, 30, 3)}


class BLResNet(ZooModel):
    """bL-ResNet on images: (B, C, H, W) -> (B, num_classes).

    Args:
        layers: bottlenecks of the four stages (b_1 ... b_4 of the paper).
        num_classes: 0 gives pooled features (B, num_features).
        in_chans: channels of the input.
        global_pool: timm's pooling types ('avg', 'max', ...), '' for none.
        alpha: Little has 1/alpha of Big's channels.
        beta: Little has about 1/beta of Big's blocks.
        width: channels of the stem; the stages have 4, 8, 16 and 32 times as many.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.

    Raises:
        BvtamError: a width that alpha does not divide.
        ValueError (on call): an input of another rank or channel count.
    """

    input_kind = 'image'

    def __init__(
        self,
        layers: tuple[int, int, int, int] = DEPTHS[50],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        alpha: int = 2,
        beta: int = 4,
        width: int = 64,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if alpha < 1 or beta < 1 or width % (4 * alpha):
            raise BvtamError(
                f'alpha={alpha} and beta={beta} must be positive, width={width} divisible by 4*alpha'
            )
        if in_chans < 1 or min(layers[:3]) < 2 or layers[3] < 1:
            raise BvtamError(
                f'in_chans={in_chans} must be positive and layers={layers} at least (2, 2, 2, 1)'
            )
        check_pool(num_classes, global_pool)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = self.cheap_recompute = False
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
        self.stem = Stem(in_chans, width, alpha, self._temporal(width))
        self.feature_info: list[dict[str, Any]] = [
            {'num_chs': width, 'reduction': 4, 'module': 'stem'}
        ]
        chs, reduction = width, 4
        for i, stride in enumerate((2, 2, 1)):
            out_chs = width * 4 * 2**i
            name, temporal = f'layer{i + 1}', self._temporal(chs)
            stage = BLModule(chs, out_chs, layers[i], stride, alpha, beta, rates[i], temporal)
            self.add_module(name, stage)
            chs, reduction = out_chs, reduction * stride
            self.feature_info.append({'num_chs': chs, 'reduction': reduction, 'module': name})
        self.layer4 = Chain(
            Bottleneck(
                2 * chs if i else chs,
                2 * chs,
                stride=1 if i else 2,
                drop_path=rates[3][i],
                temporal=self._temporal(2 * chs if i else chs),
            )
            for i in range(layers[3])
        )
        self.feature_info.append({'num_chs': 2 * chs, 'reduction': 32, 'module': 'layer4'})
        self.num_features = self.head_hidden_size = 2 * chs
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool
        )
        self.init_weights()

    def _temporal(self, channels: int) -> TemporalOp | None:
        """The operator before a module's branches; images have none."""
        return None

    def init_weights(self) -> None:
        """Kaiming normal fan-out, last BN scale of every bottleneck 0, as the release."""
        if self.stem.conv1.weight.is_meta:  # there is nothing to fill, in much time
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
        if self.num_classes:
            nn.init.normal_(self.fc.weight, std=0.001)
            nn.init.zeros_(self.fc.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of stem and stages, or of single blocks, for timm's parameter groups."""
        if coarse:
            return {'stem': r'^stem', 'blocks': r'^layer(\d+)'}
        blocks = [
            (r'^layer(\d+)\.temporal', (0,)),
            (r'^layer(\d+)\.(?:(?:big|little)\.)?(\d+)', None),
            (r'^layer(\d+)\.(?:little_out|fusion)', (99,)),
        ]
        return {'stem': r'^stem', 'blocks': blocks}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """None: the papers decay every parameter."""
        return set()

    @torch.jit.ignore
    def set_cheap_recompute(self, enable: bool = True) -> None:
        """Recompute everything but convolutions in the backward pass, instead of keeping it.

        A graph is then good for one backward pass, also with `retain_graph=True`.
        """
        self.cheap_recompute = enable

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; 0 classes leave pooled features."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        check_pool(num_classes, pool)
        self.num_classes = num_classes
        self.label_names = None
        weight = next(self.parameters())
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool, device=weight.device, dtype=weight.dtype
        )

    def _fold(self, x: Tensor) -> tuple[Tensor, int]:
        """The input as images (N, C, H, W), channels last, and the number of pairs of a clip."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f'expected images (B, C={self.in_chans}, H, W), got a tensor of shape {tuple(x.shape)}'
            )
        return x.contiguous(memory_format=torch.channels_last), 1

    def _unfold(self, x: Tensor, num_pairs: int) -> Tensor:
        return x

    def _run(self, stage: nn.Module, x: Tensor, num_pairs: int) -> Tensor:
        if torch.is_grad_enabled():
            if self.grad_checkpointing:
                return checkpoint(stage, x, num_pairs)
            if self.cheap_recompute and not torch.compiler.is_compiling():
                return checkpoint(stage, x, num_pairs, keep_convolutions=True)
        return stage(x, num_pairs)

    def _walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name and the output of the stem and of each stage in turn."""
        x, num_pairs = self._fold(x)
        for name in ('stem', 'layer1', 'layer2', 'layer3', 'layer4'):
            x = self._run(self.get_submodule(name), x, num_pairs)
            yield name, self._unfold(x, num_pairs)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, h, w) -> (B, num_classes), or (B, num_features) with `pre_logits`."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last index, and the classifier; returns the indices kept."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for info in self.feature_info[last + 1 :]:
            setattr(self, info['module'], Chain())
        if last + 1 < len(self.feature_info):
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if prune_head or last + 1 < len(self.feature_info):
            self.num_classes = 0
            self.global_pool, self.fc = create_classifier(self.num_features, 0, pool_type='')
        return take


# Names of IBM/BigLittleNet (and, behind `baseline_model.`, IBM/bLVNet-TAM), each with ours.
_NAMES = (
    (r'(baseline_model\.)?(new_)?fc\.', 'fc.'),
    (r'baseline_model\.', ''),
    (r'(conv1|bn1|temporal)\.', r'stem.\1.'),
    (r'b_conv0\.', 'stem.big_conv.'),
    (r'bn_b0\.', 'stem.big_bn.'),
    *((rf'l_conv{i}\.', f'stem.little_conv{i + 1}.') for i in range(3)),
    *((rf'bn_l{i}\.', f'stem.little_bn{i + 1}.') for i in range(3)),
    (r'bl_init\.', 'stem.fuse_conv.'),
    (r'bn_bl_init\.', 'stem.fuse_bn.'),
    (r'(layer\d)\.little_e\.', r'\1.little_out.'),
    (r'(layer\d)\.fusion\.0\.', r'\1.fusion.'),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of IBM/BigLittleNet or IBM/bLVNet-TAM to ours; one of ours passes unchanged."""
    if any(name.startswith('stem.') for name in state_dict):
        return dict(state_dict)
    out = {}
    for name, tensor in stack_tam_weights(state_dict).items():
        for old, new in _NAMES:
            name = re.sub(f'^{old}', new, name)
        block, found, rest = name.partition('.downsample.')
        if found:  # [pool, conv, bn] where strided, else [conv, bn]; ours has the pool outside
            index, _, leaf = rest.partition('.')
            strided = f'{block}.downsample.2.weight'.replace('.fusion.', '.fusion.0.')
            pooled = any(n.endswith(strided) for n in state_dict)
            name = f'{block}.shortcut.{int(index) - pooled}.{leaf}'
        out[name] = tensor
    return out


def _blresnet(variant: str, depth: int, pretrained: bool, **kwargs: Any) -> BLResNet:
    defaults = {'layers': DEPTHS[depth]}
    return build(BLResNet, variant, pretrained, checkpoint_filter_fn, defaults=defaults, **kwargs)


default_cfgs = generate_default_cfgs(
    {f'blresnet{depth}': default_cfg('stem.conv1', 'fc', 1000) for depth in DEPTHS}
)


@register_model
def blresnet50(pretrained: bool = False, **kwargs: Any) -> BLResNet:
    """bL-ResNet-50, alpha 2, beta 4: 26.7 M parameters, 2.85 GMACs at 224."""
    return _blresnet('blresnet50', 50, pretrained, **kwargs)


@register_model
def blresnet101(pretrained: bool = False, **kwargs: Any) -> BLResNet:
    """bL-ResNet-101, alpha 2, beta 4: 41.9 M parameters, 3.89 GMACs at 224."""
    return _blresnet('blresnet101', 101, pretrained, **kwargs)


@register_model
def blresnet152(pretrained: bool = False, **kwargs: Any) -> BLResNet:
    """bL-ResNet-152, alpha 2, beta 4."""
    return _blresnet('blresnet152', 152, pretrained, **kwargs)
