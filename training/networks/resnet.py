"""The dilated ResNet that all networks here stand on: GluonCV's ``ResNetV1s``, at any width.

Deep stem (three 3x3 convolutions), stride in the 3x3 convolution of a bottleneck, stages 3 and 4
without stride but dilated by 2 and 4 (their first blocks by 1 and 2). Parameter names are those of
``gluoncv.model_zoo.resnetv1b``, so ``save_parameters`` files load either way. ``ResNetForm`` says
where other published networks differ.

Source: He et al., "Deep Residual Learning", arXiv 1512.03385; gluon-cv model_zoo/resnetv1b.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.mxnet_import import mx
from export.symbols.networks import BACKBONES
from training.networks.layers import (
    Map,
    Norm,
    Operators,
    scale_channels,
)

nn = mx.gluon.nn

STAGE_CHANNELS = (64, 128, 256, 512)
STEM_CHANNELS = 64


@dataclass(frozen=True)
class ResNetForm:
    """A form of the dilated ResNet: what published ones differ in; the defaults are GluonCV's.

    Attributes:
        output_stride: 8, or 16: stage 3 strided, stage 4 dilated by 2.
        first_block_dilated: the first blocks of stages 3 and 4 have the dilation of the others.
        ceil_pool: max pooling rounds sizes up.
        stride_in_first: the stride of a bottleneck is in its first 1x1 convolution (Caffe).
    """

    output_stride: int = 8
    first_block_dilated: bool = False
    ceil_pool: bool = False
    stride_in_first: bool = False

    def stage_plan(self) -> tuple[tuple[int, int], ...]:
        """Returns (stride, dilation) of the four stages. Raises ValueError."""
        plans = {
            8: ((1, 1), (2, 1), (1, 2), (1, 4)),
            16: ((1, 1), (2, 1), (2, 1), (1, 2)),
        }
        if self.output_stride not in plans:
            raise ValueError(f"output stride {self.output_stride}; dilated ResNets have 8 and 16")
        return plans[self.output_stride]


GLUONCV = ResNetForm()


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
        stride_in_first: bool = False,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.bottleneck = bottleneck
        first, second = (stride, 1) if stride_in_first else (1, stride)
        out_channels = channels * (4 if bottleneck else 1)
        with self.name_scope():
            if bottleneck:
                self.conv1 = nn.Conv2D(channels, 1, first, in_channels=in_channels, use_bias=False)
                self.bn1 = norm(channels)
                self.conv2 = nn.Conv2D(
                    channels, 3, second, dilation, dilation, in_channels=channels, use_bias=False
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

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + shortcut)


class DilatedResNet(mx.gluon.HybridBlock):
    """A stem and four stages as attributes; subclasses wire them and add their heads."""

    def __init__(
        self,
        backbone: str,
        width: float,
        norm: Norm,
        form: ResNetForm = GLUONCV,
        **scope: str,
    ) -> None:
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
            self.maxpool = nn.MaxPool2D(3, 2, 1, ceil_mode=form.ceil_pool)
            in_channels = stem * 2
            for number, (blocks, channels, (stride, dilation)) in enumerate(
                zip(spec.blocks, stages, form.stage_plan(), strict=True), start=1
            ):
                # A stage's first block keeps the dilation of the stage before it.
                start = dilation if form.first_block_dilated else max(1, dilation // 2)
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
                                dilation=start if first else dilation,
                                next_dilation=dilation,
                                norm=norm,
                                stride_in_first=form.stride_in_first,
                                prefix=f"block{index}_",
                            )
                        )
                        in_channels = channels * spec.expansion
                setattr(self, f"layer{number}", stage)

    def stem(self, F: Operators, x: Map) -> Map:
        """Returns the stem's output: ``[N,3,H,W]`` -> ``[N,2*stem,H/4,W/4]``."""
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))
