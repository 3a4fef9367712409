"""ICNet as other projects build it in PyTorch, with their names of the weights.

Written from their descriptions and layer tables, apart from the networks in ``training/networks``:
what those compute is compared with these. ``width`` scales what those scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def rescale(x: Tensor, factor: float) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


class Unit(nn.Module):
    """A bottleneck, the stride in its 3x3 convolution."""

    def __init__(self, before: int, inner: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = None
        if stride != 1 or before != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


def stage(before: int, inner: int, stride: int, dilations: list[int]) -> nn.Sequential:
    units = [Unit(before, inner, stride, dilations[0])]
    units += [Unit(4 * inner, inner, 1, dilation) for dilation in dilations[1:]]
    return nn.Sequential(*units)


class ConvBnRelu(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def detail_branch() -> nn.Sequential:
    return nn.Sequential(
        ConvBnRelu(3, 32, 3, 2), ConvBnRelu(32, 32, 3, 2), ConvBnRelu(32, 64, 3, 2)
    )


class Fusion(nn.Module):
    def __init__(self, low: int, high: int, classes: int) -> None:
        super().__init__()
        self.conv_low = nn.Sequential(
            nn.Conv2d(low, 128, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(128)
        )
        self.conv_high = nn.Sequential(nn.Conv2d(high, 128, 1, bias=False), nn.BatchNorm2d(128))
        self.conv_low_cls = nn.Conv2d(128, classes, 1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low = self.conv_low(enlarge(low, high))
        return torch.relu(low + self.conv_high(high))


class Head(nn.Module):
    def __init__(self, low: int, high: int, classes: int) -> None:
        super().__init__()
        self.cff_12 = Fusion(128, 64, classes)
        self.cff_24 = Fusion(low, high, classes)
        self.conv_cls = nn.Conv2d(128, classes, 1, bias=False)

    def forward(self, sub1: Tensor, sub2: Tensor, sub4: Tensor) -> Tensor:
        """Logits at 1/4."""
        fused = self.cff_12(self.cff_24(sub4, sub2), sub1)
        logits: Tensor = self.conv_cls(rescale(fused, 2))
        return logits


class Pyramid(nn.Module):
    """Fast_Seg's: no ReLU in the branches, which come before the map itself."""

    def __init__(self, features: int) -> None:
        super().__init__()
        branch = features // 4
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(bins), nn.Conv2d(features, branch, 1, bias=False),
                nn.BatchNorm2d(branch),
            )
            for bins in (1, 2, 3, 6)
        )  # fmt: skip
        self.bottleneck = nn.Sequential(
            nn.Conv2d(2 * features, branch, 3, padding=1, bias=False), nn.BatchNorm2d(branch),
            nn.ReLU(), nn.Dropout2d(0.1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        branches = [enlarge(part(x), x) for part in self.stages]
        features: Tensor = self.bottleneck(torch.cat([*branches, x], 1))
        return features


class FastSegBackbone(nn.Module):
    def __init__(self, width: float) -> None:
        super().__init__()
        stem, inner = int(64 * width), [int(n * width) for n in (64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.conv3 = nn.Conv2d(stem, 2 * stem, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.layer1 = stage(2 * stem, inner[0], 1, [1] * 3)
        self.layer2 = stage(4 * inner[0], inner[1], 2, [1] * 4)
        self.layer3 = stage(4 * inner[1], inner[2], 1, [2] * 6)
        self.layer4 = stage(4 * inner[2], inner[3], 1, [4] * 3)
        self.head = Pyramid(4 * inner[3])

    def stem(self, x: Tensor) -> Tensor:
        for conv, norm in (
            (self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3),
        ):  # fmt: skip
            x = torch.relu(norm(conv(x)))
        pooled: Tensor = self.maxpool(x)
        return pooled


class FastSegICNet(nn.Module):
    """Sees BGR bytes less (104.00698793, 116.66876762, 122.67891434)."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        reduced, pooled, high = int(256 * width), int(512 * width), int(512 * width)
        self.conv_sub1 = detail_branch()
        self.backbone = FastSegBackbone(width)
        self.head = Head(reduced, reduced, classes)
        self.conv_sub4 = ConvBnRelu(pooled, reduced, 1, 1)
        self.conv_sub2 = ConvBnRelu(high, reduced, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        b = self.backbone
        sub2 = b.layer2(b.layer1(b.stem(rescale(image, 0.5))))
        sub4 = b.head(b.layer4(b.layer3(rescale(sub2, 0.5))))
        parts = (self.conv_sub1(image), self.conv_sub2(sub2), self.conv_sub4(sub4))
        logits: Tensor = self.head(*parts)
        return logits

    @staticmethod
    def see(image: Tensor) -> Tensor:
        """uint8 RGB [H,W,3] -> the input [1,3,H,W]."""
        mean = torch.tensor([104.00698793, 116.66876762, 122.67891434])
        return (image.flip(2).float() - mean).permute(2, 0, 1)[None]


class LiminnBackbone(nn.Module):
    """With ImageNet's classifier, which is saved and not used."""

    def __init__(self, width: float) -> None:
        super().__init__()
        stem, inner = int(64 * width), [int(n * width) for n in (64, 128, 256, 512)]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
            nn.Conv2d(stem, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(),
            nn.Conv2d(stem, 2 * stem, 3, 1, 1, bias=False),
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(2 * stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(2 * stem, inner[0], 1, [1] * 3)
        self.layer2 = stage(4 * inner[0], inner[1], 2, [1] * 4)
        self.layer3 = stage(4 * inner[1], inner[2], 1, [1, *[2] * 5])
        self.layer4 = stage(4 * inner[2], inner[3], 1, [2, 4, 4])
        self.fc = nn.Linear(4 * inner[3], 10)

    def to_stage2(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        features: Tensor = self.layer2(self.layer1(x))
        return features


class LiminnICNet(nn.Module):
    """Sees RGB with ImageNet's mean and deviation."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        self.pretrained = LiminnBackbone(width)
        self.conv_sub1 = detail_branch()
        self.head = Head(int(2048 * width), int(512 * width), classes)

    def forward(self, image: Tensor) -> Tensor:
        b = self.pretrained
        sub2 = b.to_stage2(rescale(image, 0.5))
        sub4 = b.layer4(b.layer3(b.to_stage2(rescale(image, 0.25))))
        total = sub4
        for bins in (1, 2, 3, 6):
            total = total + enlarge(functional.adaptive_avg_pool2d(sub4, bins), sub4)
        logits: Tensor = self.head(self.conv_sub1(image), sub2, total)
        return logits

    @staticmethod
    def see(image: Tensor) -> Tensor:
        """uint8 RGB [H,W,3] -> the input [1,3,H,W]."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return ((image.float() / 255 - mean) / std).permute(2, 0, 1)[None]


def randomise(network: nn.Module) -> nn.Module:
    """Weights that keep the signal's size, and batch norms that do something."""
    torch.manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            assert module.running_mean is not None, "the norm tracks its statistics"
            assert module.running_var is not None, "the norm tracks its statistics"
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()
