"""ResNets that timm and torchvision lack: stem and stages times a width, with selective kernels or not.

SwAV's `w2`, `w4`, `w5`, SimCLR's `2x`, `4x`, SimCLR v2 with selective kernels (Li et al., arXiv:1903.06586; sizes as
in SimCLR v2, arXiv:2006.10029). Parameter names are torchvision's, the three-convolution stem's are timm's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
SQUEEZE_AT_LEAST = 32  # channels between the two mixing convolutions


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that pads by half its kernel."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _in_two(maps: Tensor) -> Tensor:
    """(B, 2 C, H, W) -> (B, 2, C, H, W): the two kernels' maps."""
    return maps.reshape(maps.shape[0], 2, -1, *maps.shape[2:])


class SelectiveKernel(nn.Module):
    """Two 3x3 convolutions, mixed per channel by a softmax over what their pooled sum suggests."""

    def __init__(self, inputs: int, outputs: int, stride: int, ratio: float):
        super().__init__()
        squeezed = max(round(outputs * ratio), SQUEEZE_AT_LEAST)
        self.main = conv(inputs, 2 * outputs, 3, stride)
        self.main_bn = nn.BatchNorm2d(2 * outputs)
        self.squeeze = conv(outputs, squeezed, 1)
        self.squeeze_bn = nn.BatchNorm2d(squeezed)
        self.mix = conv(squeezed, 2 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        both = _in_two(F.relu(self.main_bn(self.main(x))))
        pooled = both.sum(1).mean((2, 3), keepdim=True)
        logits = _in_two(self.mix(F.relu(self.squeeze_bn(self.squeeze(pooled)))))
        return (both * logits.softmax(1)).sum(1)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, or a selective kernel), 1x1 to four times the planes, and the shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, project: bool, selective: float):
        super().__init__()
        outputs = 4 * planes
        self.conv1 = conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = (
            SelectiveKernel(planes, planes, stride, selective) if selective else conv(planes, planes, 3, stride)
        )
        # A selective kernel ends in its mixture: its norm and ReLU are inside.
        self.bn2 = nn.Identity() if selective else nn.BatchNorm2d(planes)
        self.conv3 = conv(planes, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        # With selective kernels the shortcut averages 2x2 cells instead of skipping pixels, also at stride 1.
        self.pool = nn.AvgPool2d(2, stride) if selective and project else None
        step = 1 if selective else stride
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, step), nn.BatchNorm2d(outputs)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        shortcut = x if self.pool is None else self.pool(F.pad(x, (0, 1, 0, 1)))
        shortcut = shortcut if self.downsample is None else self.downsample(shortcut)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out if isinstance(self.bn2, nn.Identity) else F.relu(out)
        return F.relu(shortcut + self.bn3(self.conv3(out)))


class WideResNet(nn.Module):
    """A bottleneck ResNet of that depth; `selective` is the squeeze ratio of selective kernels, 0 for none.

    Maps normalised pixels (B, 3, H, W) to the last map (B, 2048 * width, H / 32, W / 32).
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, depth: int, width: int = 1, selective: float = 0.0):
        super().__init__()
        stem = 64 * width
        half = stem // 2
        if selective:
            first = [conv(3, half, 3, 2), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
            second = [conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
            self.conv1: nn.Module = nn.Sequential(*first, *second, conv(half, stem, 3))
        else:
            self.conv1 = conv(3, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = stem
        for stage, count in enumerate(LAYERS[depth], start=1):
            planes = 64 * width * 2 ** (stage - 1)
            blocks = []
            for block in range(count):
                stride = 2 if block == 0 and stage > 1 else 1
                blocks.append(Bottleneck(inputs, planes, stride, block == 0, selective))
                inputs = 4 * planes
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.num_features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x
