"""The textbook form of bLVNet-TAM, the oracle of the tests and the yardstick of the benchmarks.

Written down as the paper and its release describe it, with their parameter names: T frames stored at
every step (a pair's tensor twice), a TAM as r depthwise 1x1 convolutions, batch norm and ReLU as
modules. `num_frames` is fixed at construction, as there.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {50: (3, 4, 6, 3), 101: (4, 8, 18, 3), 152: (5, 12, 30, 3)}


class Tam(nn.Module):
    def __init__(self, channels, num_frames, temporal_range=3):
        super().__init__()
        self.num_frames, self.range = num_frames, temporal_range
        convs = [
            nn.Conv2d(channels, channels, 1, groups=channels, bias=False) for _ in range(self.range)
        ]
        if temporal_range == 3:
            self.prev, self.curr, self.next = convs
        else:
            self.blending_layers = nn.ModuleList(convs)

    def forward(self, x):
        half = self.range // 2
        convs = [self.prev, self.curr, self.next] if self.range == 3 else self.blending_layers
        out = None
        for j, conv in enumerate(convs, -half):
            y = conv(x).unflatten(0, (-1, self.num_frames))
            if j < 0:
                zeros = torch.zeros_like(y[:, :-j])
                y = torch.cat([zeros, y[:, :j]], 1)[:, : self.num_frames]
            elif j > 0:
                zeros = torch.zeros_like(y[:, :j])
                y = torch.cat([y[:, j:], zeros], 1)[:, : self.num_frames]
            out = y if out is None else out + y
        return F.relu(out.flatten(0, 1))


class Block(nn.Module):
    def __init__(self, in_chs, out_chs, stride=1, last_relu=True, tam=None):
        super().__init__()
        mid = out_chs // 4
        self.conv1 = nn.Conv2d(in_chs, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)
        self.last_relu = last_relu
        self.tam = tam
        layers = [nn.AvgPool2d(3, stride, padding=1)] if stride != 1 else []
        self.projects = in_chs != out_chs
        if self.projects:
            layers += [nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs)]
        self.downsample = nn.Sequential(*layers)

    def forward(self, x):
        mixed = x if self.tam is None else self.tam(x)
        shortcut = self.downsample(mixed if self.projects else x)
        out = self.relu(self.bn1(self.conv1(mixed)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + shortcut
        return self.relu(out) if self.last_relu else out


class Module(nn.Module):
    def __init__(self, in_chs, out_chs, blocks, stride, alpha, beta, tam):
        super().__init__()
        deep, thin = blocks - 1, out_chs // alpha
        self.big = nn.Sequential(
            *[
                Block(
                    in_chs if i == 0 else out_chs,
                    out_chs,
                    2 if i == 0 else 1,
                    deep == 1 or i < deep - 1,
                )
                for i in range(deep)
            ]
        )
        self.little = nn.Sequential(
            *[Block(in_chs if i == 0 else thin, thin) for i in range(max(1, blocks // beta - 1))]
        )
        self.little_e = nn.Sequential(
            nn.Conv2d(thin, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs)
        )
        self.fusion = nn.Sequential(Block(out_chs, out_chs, stride))
        self.tam = tam

    def forward(self, x):
        x = self.tam(x)
        little = self.little_e(self.little(x[0::2]))
        big = F.interpolate(self.big(x[1::2]), size=little.shape[-2:])
        return self.fusion(F.relu(big + little)).repeat_interleave(2, 0)


class BLVNet(nn.Module):
    """(N, C, T, H, W) -> (N, num_classes), with the release's names less `baseline_model.`."""

    def __init__(self, depth=50, num_frames=16, num_classes=174, temporal_range=3, alpha=2, beta=4,
                 dropout=0.5, in_chans=3, blocks=None, width=64):  # fmt: skip
        super().__init__()
        blocks = blocks or BLOCKS[depth]
        self.num_frames = num_frames
        self.conv1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.b_conv0 = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.bn_b0 = nn.BatchNorm2d(width)
        self.l_conv0 = nn.Conv2d(width, width // alpha, 3, 1, 1, bias=False)
        self.bn_l0 = nn.BatchNorm2d(width // alpha)
        self.l_conv1 = nn.Conv2d(width // alpha, width // alpha, 3, 2, 1, bias=False)
        self.bn_l1 = nn.BatchNorm2d(width // alpha)
        self.l_conv2 = nn.Conv2d(width // alpha, width, 1, bias=False)
        self.bn_l2 = nn.BatchNorm2d(width)
        self.bl_init = nn.Conv2d(width, width, 1, bias=False)
        self.bn_bl_init = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.tam = Tam(width, num_frames, temporal_range)
        chs = width
        for i, stride in enumerate((2, 2, 1)):
            out = width * 4 * 2**i
            tam = Tam(chs, num_frames, temporal_range)
            setattr(self, f'layer{i + 1}', Module(chs, out, blocks[i], stride, alpha, beta, tam))
            chs = out
        self.layer4 = nn.Sequential()
        for i in range(blocks[3]):
            tam = Tam(2 * chs if i else chs, num_frames // 2, temporal_range)
            self.layer4.append(Block(2 * chs if i else chs, 2 * chs, 1 if i else 2, tam=tam))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * chs, num_classes)

    def forward(self, x):
        x = x.transpose(1, 2).flatten(0, 1)
        x = self.tam(self.relu(self.bn1(self.conv1(x))))
        big = self.bn_b0(self.b_conv0(x[1::2]))
        little = self.relu(self.bn_l0(self.l_conv0(x[0::2])))
        little = self.relu(self.bn_l1(self.l_conv1(little)))
        x = self.relu(big + self.bn_l2(self.l_conv2(little)))
        x = self.relu(self.bn_bl_init(self.bl_init(x))).repeat_interleave(2, 0)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.layer4(x[0::2])
        x = self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return x.unflatten(0, (-1, self.num_frames // 2)).mean(1)
