"""The dilated ResNet that all networks here stand on: GluonCV's ``ResNetV1s``, at any width.

Deep stem (three 3x3 convolutions), stride in the 3x3 convolution of a bottleneck, stages 3 and 4
without stride but dilated by 2 and 4 (their first blocks by 1 and 2). Parameter names are those of
``gluoncv.model_zoo.resnetv1b``, so ``save_parameters`` files load either way.

Source: He et al., "Deep Residual Learning", arXiv 1512.03385; gluon-cv model_zoo/resnetv1b.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.mxnet_import import mx
from training.networks.layers import Norm, scale_channels

nn = mx.gluon.nn

STAGE_CHANNELS = (64, 128, 256, 512)
STEM_CHANNELS = 64


@dataclass(frozen=True)
class BackboneSpec:
    """Blocks a stage, and whether they are bottlenecks (output four times as wide)."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1


BACKBONES: dict[str, BackboneSpec] = {
    "resnet18": BackboneSpec((2, 2, 2, 2), bottleneck=False),
    "resnet34": BackboneSpec((3, 4, 6, 3), bottleneck=False),
    "resnet50": BackboneSpec((3, 4, 6, 3), bottleneck=True),
    "resnet101": BackboneSpec((3, 4, 23, 3), bottleneck=True),
    "resnet152": BackboneSpec((3, 8, 36, 3), bottleneck=True),
}


class Block(mx.gluon.HybridBlock):
    """A residual block; ``bottleneck`` chooses 1x1-3x3-1x1 over 3x3-3x3."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        bottleneck: bool,
        stride: int,
        dilation: int,
        next_dilation: int,
        norm: Norm,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.bottleneck = bottleneck
        out_channels = channels * (4 if bottleneck else 1)
        with self.name_scope():
            if bottleneck:
                self.conv1 = nn.Conv2D(channels, 1, in_channels=in_channels, use_bias=False)
                self.bn1 = norm(channels)
                self.conv2 = nn.Conv2D(
                    channels, 3, stride, dilation, dilation, in_channels=channels, use_bias=False
                )
                self.bn2 = norm(channels)
                self.conv3 = nn.Conv2D(out_channels, 1, in_channels=channels, use_bias=False)
                self.bn3 = norm(out_channels)
            else:
                self.conv1 = nn.Conv2D(
                    channels, 3, stride, dilation, dilation, in_channels=in_channels, use_bias=False
                )
                self.bn1 = norm(channels)
                self.conv2 = nn.Conv2D(
                    channels,
                    3,
                    1,
                    next_dilation,
                    next_dilation,
                    in_channels=channels,
                    use_bias=False,
                )
                self.bn2 = norm(channels)
            self.downsample = None
            if stride != 1 or in_channels != out_channels:
                self.downsample = nn.HybridSequential(prefix="down_")
                with self.downsample.name_scope():
                    self.downsample.add(
                        nn.Conv2D(out_channels, 1, stride, in_channels=in_channels, use_bias=False),
                        norm(out_channels),
                    )

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + shortcut)


class DilatedResNet(mx.gluon.HybridBlock):
    """Stem and four stages as attributes; subclasses wire them and add their heads."""

    def __init__(self, backbone: str, width: float, norm: Norm, **scope: str) -> None:
        super().__init__(**scope)
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(BACKBONES)}")
        spec = BACKBONES[backbone]
        stem = scale_channels(STEM_CHANNELS, width)
        stages = [scale_channels(channels, width) for channels in STAGE_CHANNELS]
        self.stage_channels = tuple(channels * spec.expansion for channels in stages)
        with self.name_scope():
            self.conv1 = nn.HybridSequential(prefix="conv1_")
            with self.conv1.name_scope():
                self.conv1.add(
                    nn.Conv2D(stem, 3, 2, 1, in_channels=3, use_bias=False),
                    norm(stem),
                    nn.Activation("relu"),
                    nn.Conv2D(stem, 3, 1, 1, in_channels=stem, use_bias=False),
                    norm(stem),
                    nn.Activation("relu"),
                    nn.Conv2D(stem * 2, 3, 1, 1, in_channels=stem, use_bias=False),
                )
            self.bn1 = norm(stem * 2)
            self.maxpool = nn.MaxPool2D(3, 2, 1)
            in_channels = stem * 2
            for number, (blocks, channels, stride, dilation) in enumerate(
                zip(spec.blocks, stages, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=1
            ):
                stage = nn.HybridSequential(prefix=f"layer{number}_")
                with stage.name_scope():
                    for index in range(blocks):
                        first = index == 0
                        stage.add(
                            Block(
                                in_channels,
                                channels,
                                bottleneck=spec.bottleneck,
                                stride=stride if first else 1,
                                # A stage's first block keeps the dilation of the stage before it.
                                dilation=max(1, dilation // 2) if first else dilation,
                                next_dilation=dilation,
                                norm=norm,
                                prefix=f"block{index}_",
                            )
                        )
                        in_channels = channels * spec.expansion
                setattr(self, f"layer{number}", stage)

    def stem(self, F, x):  # type: ignore[no-untyped-def]
        """``[N,3,H,W]`` -> ``[N,2*stem,H/4,W/4]``."""
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))
