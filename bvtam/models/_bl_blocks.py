"""The blocks of bL-ResNet and bLVNet: a deep branch at half resolution (Big) beside a shallow one (Little).

Images are pairs of one frame: Little and Big see the same. In video models a temporal operator before
the branches gives Little the even frame of a pair and Big the odd one; after the branches are summed a
pair is one tensor. Shapes: N clips of K pairs are folded into the batch, (N*K, C, H, W); an image is K = 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ..layers.folding import unfold_time
from ..layers.pairs import TemporalOp
from ..layers.recompute import norm_relu, norm_relu_conv, norm_relu_split


def _conv(in_chs: int, out_chs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _conv_norm(in_chs: int, out_chs: int) -> nn.Sequential:
    """1x1 convolution and batch norm."""
    return nn.Sequential(_conv(in_chs, out_chs, 1), nn.BatchNorm2d(out_chs))


class Bottleneck(nn.Module):
    """1x1 - 3x3 (stride) - 1x1 residual block; the shortcut pools before it projects.

    With a temporal operator (layer 4 of the video models) its output feeds the convolutions and a
    projection; an identity shortcut takes the input before it.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        last_act: bool = True,
        drop_path: float = 0.0,
        temporal: TemporalOp | None = None,
    ) -> None:
        super().__init__()
        mid_chs = out_chs // 4
        self.temporal = temporal
        self.conv1 = _conv(in_chs, mid_chs, 1)
        self.bn1 = nn.BatchNorm2d(mid_chs)
        self.conv2 = _conv(mid_chs, mid_chs, 3, stride)
        self.bn2 = nn.BatchNorm2d(mid_chs)
        self.conv3 = _conv(mid_chs, out_chs, 1)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.pool = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else nn.Identity()
        self.shortcut = _conv_norm(in_chs, out_chs) if in_chs != out_chs else None
        self.drop_path = DropPath(drop_path) if drop_path else None
        self.last_act = last_act

    def forward(self, x: Tensor, num_pairs: int = 1) -> Tensor:
        mixed = x if self.temporal is None else self.temporal(x, num_pairs)
        return self.residual(x, mixed, num_pairs)

    def residual(self, x: Tensor, mixed: Tensor, num_pairs: int = 1) -> Tensor:
        """The block of the input and of what its temporal operator made of it."""
        shortcut = x if self.shortcut is None else mixed
        x = norm_relu_conv(self.conv1(mixed), self.bn1, self.conv2)
        x = norm_relu_conv(x, self.bn2, self.conv3)
        x = self.bn3(x)
        shortcut = self.pool(shortcut)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        if self.drop_path is not None:  # a clip is dropped whole
            x = self.drop_path(unfold_time(x, num_pairs)).flatten(0, 1)
        x += shortcut
        return F.relu(x, inplace=True) if self.last_act else x


class Chain(nn.ModuleList):
    """Bottlenecks in a row."""

    def forward(self, x: Tensor, num_pairs: int = 1) -> Tensor:
        for block in self:
            x = block(x, num_pairs)
        return x


class Stem(nn.Module):
    """7x7/2, then Big (3x3/2) beside Little (3x3, 3x3/2, 1x1), summed and fused by a 1x1: (H/4, W/4)."""

    def __init__(self, in_chans: int, width: int, alpha: int, temporal: TemporalOp | None) -> None:
        super().__init__()
        thin = width // alpha
        self.conv1 = _conv(in_chans, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.temporal = temporal
        self.big_conv = _conv(width, width, 3, 2)
        self.big_bn = nn.BatchNorm2d(width)
        self.little_conv1 = _conv(width, thin, 3)
        self.little_bn1 = nn.BatchNorm2d(thin)
        self.little_conv2 = _conv(thin, thin, 3, 2)
        self.little_bn2 = nn.BatchNorm2d(thin)
        self.little_conv3 = _conv(thin, width, 1)
        self.little_bn3 = nn.BatchNorm2d(width)
        self.fuse_conv = _conv(width, width, 1)
        self.fuse_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, num_pairs: int = 1) -> Tensor:
        little, big = norm_relu_split(self.conv1(x), self.bn1, self.temporal, num_pairs)
        return self.branches(little, big)

    def branches(self, little: Tensor, big: Tensor) -> Tensor:
        """The part behind the temporal operator."""
        x = norm_relu_conv(self.little_conv1(little), self.little_bn1, self.little_conv2)
        x = norm_relu_conv(x, self.little_bn2, self.little_conv3)
        x = self.little_bn3(x)
        x += self.big_bn(self.big_conv(big))
        return norm_relu(self.fuse_conv(F.relu(x, inplace=True)), self.fuse_bn)


class BLModule(nn.Module):
    """Big: `blocks - 1` bottlenecks at half resolution; Little: few thin ones at full; one to fuse."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        blocks: int,
        stride: int,
        alpha: int,
        beta: int,
        drop_path: list[float],
        temporal: TemporalOp | None,
    ) -> None:
        super().__init__()
        self.temporal = temporal
        deep, shallow = blocks - 1, max(1, blocks // beta - 1)
        thin = out_chs // alpha
        self.big = Chain(
            Bottleneck(
                out_chs if i else in_chs,
                out_chs,
                stride=1 if i else 2,
                last_act=deep == 1 or i < deep - 1,
                drop_path=drop_path[i],
            )
            for i in range(deep)
        )
        self.little = Chain(Bottleneck(thin if i else in_chs, thin) for i in range(shallow))
        self.little_out = _conv_norm(thin, out_chs)
        self.fusion = Bottleneck(out_chs, out_chs, stride, drop_path=drop_path[deep])

    def forward(self, x: Tensor, num_pairs: int = 1) -> Tensor:
        little, big = (x, x) if self.temporal is None else self.temporal.pair(x, num_pairs)
        return self.branches(little, big, num_pairs)

    def branches(self, little: Tensor, big: Tensor, num_pairs: int = 1) -> Tensor:
        """The part behind the temporal operator."""
        x = self.little_out(self.little(little, num_pairs))
        x += F.interpolate(self.big(big, num_pairs), size=x.shape[-2:], mode='nearest')
        return self.fusion(F.relu(x, inplace=True), num_pairs)
