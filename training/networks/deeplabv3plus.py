"""DeepLabV3+ on Xception-65, as TensorFlow's DeepLab builds it, and on a dilated ResNet.

ASPP with separable atrous convolutions, its projection resized to 1/4 and joined with the entry
flow's second block, two separable convolutions, classifier, resize. Every batch norm of the
Xception has epsilon 1e-3, those behind it 1e-5. Parameter names are TensorFlow's with underscores
for slashes. Sizes are multiples of 16 (of 8 at output stride 8), or those plus one, TensorFlow's
own, where the corners of all maps coincide.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", arXiv 1802.02611;
tensorflow/models research/deeplab core/xception.py and model.py; duducheng/deeplabv3p_gluon for the
Gluon names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from export.mxnet_import import mx
from export.symbols.networks import BACKBONES
from training.networks.layers import (
    DROPOUT,
    Map,
    NetworkConfig,
    Norm,
    Operators,
    SizeRule,
    scale_channels,
)
from training.networks.resnet import DilatedResNet, ResNetForm

nn = mx.gluon.nn

XCEPTION = "xception65"
XCEPTION_EPSILON = 1e-3
MIDDLE_UNITS = 16


@dataclass(frozen=True)
class Strides:
    """The consequences of an output stride: stride of entry block 3, dilations, ASPP rates."""

    entry_block3: int
    middle: int
    exit_blocks: tuple[int, int]
    atrous_rates: tuple[int, int, int]


STRIDES = {16: Strides(2, 1, (1, 2), (6, 12, 18)), 8: Strides(1, 2, (2, 4), (12, 24, 36))}


class SeparableConv(mx.gluon.HybridBlock):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with normalisation.

    ``activate_inside`` puts a ReLU after both, else one ReLU comes first.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        norm: Norm,
        stride: int = 1,
        dilation: int = 1,
        activate_inside: bool = False,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.activate_inside = activate_inside
        with self.name_scope():
            self.depthwise = nn.Conv2D(
                in_channels, 3, stride, dilation, dilation, groups=in_channels,
                in_channels=in_channels, use_bias=False, prefix="depthwise_",
            )  # fmt: skip
            self.depthwise_norm = norm(in_channels, prefix="depthwise_BN_")
            self.pointwise = nn.Conv2D(
                channels, 1, in_channels=in_channels, use_bias=False, prefix="pointwise_"
            )
            self.pointwise_norm = norm(channels, prefix="pointwise_BN_")

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        if not self.activate_inside:
            return self.pointwise_norm(
                self.pointwise(self.depthwise_norm(self.depthwise(F.relu(x))))
            )
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        return F.relu(self.pointwise_norm(self.pointwise(x)))


class XceptionBlock(mx.gluon.HybridBlock):
    """Three separable convolutions, the last with the stride; ``shortcut`` is ``conv``, ``sum`` or
    ``none``. Returns the block's output and that of its second convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, int, int],
        norm: Norm,
        shortcut: str,
        stride: int = 1,
        dilation: int = 1,
        activate_inside: bool = False,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.shortcut = shortcut
        with self.name_scope():
            for number, (before, after) in enumerate(
                zip((in_channels, *channels), channels, strict=False), start=1
            ):
                convolution = SeparableConv(
                    before, after, norm, stride if number == 3 else 1, dilation, activate_inside,
                    prefix=f"separable_conv{number}_",
                )  # fmt: skip
                setattr(self, f"conv{number}", convolution)
            if shortcut == "conv":
                self.project = nn.Conv2D(
                    channels[2], 1, stride, in_channels=in_channels, use_bias=False,
                    prefix="shortcut_",
                )  # fmt: skip
                self.project_norm = norm(channels[2], prefix="shortcut_BN_")

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        second = self.conv2(self.conv1(x))
        out = self.conv3(second)
        if self.shortcut == "conv":
            return out + self.project_norm(self.project(x)), second
        if self.shortcut == "sum":
            return out + x, second
        return out, second


class Xception65(mx.gluon.HybridBlock):
    """The backbone: ``[N,3,H,W]`` -> features at the output stride, and the decoder's at 1/4."""

    def __init__(self, norm: Norm, width: float, strides: Strides, **scope: str) -> None:
        super().__init__(**scope)
        norm = replace(norm, epsilon=XCEPTION_EPSILON)

        def scaled(*channels: int) -> tuple[int, ...]:
            return tuple(scale_channels(n, width) for n in channels)

        stem, second, first, skip, wide, deep = scaled(32, 64, 128, 256, 728, 1024)
        exit_channels = scaled(1536, 1536, 2048)
        self.skip_channels, self.channels = skip, exit_channels[2]
        with self.name_scope():
            self.conv1 = nn.Conv2D(
                stem, 3, 2, 1, in_channels=3, use_bias=False, prefix="entry_flow_conv1_1_"
            )
            self.norm1 = norm(stem, prefix="entry_flow_conv1_1_BN_")
            self.conv2 = nn.Conv2D(
                second, 3, 1, 1, in_channels=stem, use_bias=False, prefix="entry_flow_conv1_2_"
            )
            self.norm2 = norm(second, prefix="entry_flow_conv1_2_BN_")
            self.entry = []
            for number, (before, after, stride) in enumerate(
                ((second, first, 2), (first, skip, 2), (skip, wide, strides.entry_block3)), start=1
            ):
                block = XceptionBlock(
                    before, (after, after, after), norm, "conv", stride,
                    prefix=f"entry_flow_block{number}_",
                )  # fmt: skip
                self.register_child(block, f"entry{number}")
                self.entry.append(block)
            self.middle = []
            for number in range(1, MIDDLE_UNITS + 1):
                block = XceptionBlock(
                    wide, (wide, wide, wide), norm, "sum", dilation=strides.middle,
                    prefix=f"middle_flow_unit_{number}_",
                )  # fmt: skip
                self.register_child(block, f"middle{number}")
                self.middle.append(block)
            self.exit1 = XceptionBlock(
                wide, (wide, deep, deep), norm, "conv", dilation=strides.exit_blocks[0],
                prefix="exit_flow_block1_",
            )  # fmt: skip
            self.exit2 = XceptionBlock(
                deep, (exit_channels[0], exit_channels[1], exit_channels[2]), norm, "none",
                dilation=strides.exit_blocks[1], activate_inside=True, prefix="exit_flow_block2_",
            )  # fmt: skip

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x, _ = self.entry[0](x)
        x, skip = self.entry[1](x)
        x, _ = self.entry[2](x)
        for block in self.middle:
            x, _ = block(x)
        x, _ = self.exit1(x)
        x, _ = self.exit2(x)
        return x, skip


SIZES = {stride: SizeRule(stride, offsets=(0, 1), smallest=stride) for stride in STRIDES}
HEAD_CHANNELS = 256
SKIP_CHANNELS = 48


class PointwiseNorm(mx.gluon.HybridBlock):
    """A 1x1 convolution ``<prefix>_``, normalisation ``<prefix>_BN_``, and ReLU."""

    def __init__(self, in_channels: int, channels: int, norm: Norm, name: str) -> None:
        super().__init__(prefix="")
        with self.name_scope():
            self.conv = nn.Conv2D(
                channels, 1, in_channels=in_channels, use_bias=False, prefix=f"{name}_"
            )
            self.norm = norm(channels, prefix=f"{name}_BN_")

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return F.relu(self.norm(self.conv(x)))


class DecoderHead(mx.gluon.HybridBlock):
    """The head: ASPP on ``deep``, joined with the low-level map at 1/4 -> logits at 1/4.

    ``skip_channels`` are those of the low-level map.
    """

    def __init__(self, config: NetworkConfig, deep_channels: int, skip_channels: int) -> None:
        # Without a prefix of its own the parameters have TensorFlow's names.
        super().__init__(prefix="")
        norm, atrous_rates = config.norm, STRIDES[config.output_stride].atrous_rates
        # The deep map and the one at 1/4; odd sizes round up.
        self.small, self.quarter = (
            {"height": -(-config.height // stride), "width": -(-config.width // stride)}
            for stride in (config.output_stride, 4)
        )
        channels, projected = config.scale(HEAD_CHANNELS), config.scale(SKIP_CHANNELS)
        with self.name_scope():
            self.image_pooling = PointwiseNorm(deep_channels, channels, norm, "image_pooling")
            self.aspp0 = PointwiseNorm(deep_channels, channels, norm, "aspp0")
            for number, rate in enumerate(atrous_rates, start=1):
                branch = SeparableConv(
                    deep_channels, channels, norm, dilation=rate, activate_inside=True,
                    prefix=f"aspp{number}_",
                )  # fmt: skip
                setattr(self, f"aspp{number}", branch)
            self.projection = PointwiseNorm(channels * 5, channels, norm, "concat_projection")
            # TensorFlow keeps 0.9.
            self.dropout = nn.Dropout(DROPOUT, prefix="projection_dropout_")
            self.skip = PointwiseNorm(skip_channels, projected, norm, "feature_projection0")
            self.decoder0 = SeparableConv(
                channels + projected, channels, norm, activate_inside=True,
                prefix="decoder_conv0_",
            )  # fmt: skip
            self.decoder1 = SeparableConv(
                channels, channels, norm, activate_inside=True, prefix="decoder_conv1_"
            )
            self.logits = nn.Conv2D(
                config.num_classes, 1, in_channels=channels, prefix="logits_semantic_"
            )

    def hybrid_forward(self, F: Operators, deep: Map, skip: Map) -> Map:
        pooled = self.image_pooling(F.contrib.AdaptiveAvgPooling2D(deep, output_size=1))
        branches = [F.contrib.BilinearResize2D(pooled, **self.small), self.aspp0(deep)]
        branches += [self.aspp1(deep), self.aspp2(deep), self.aspp3(deep)]
        x = self.dropout(self.projection(F.concat(*branches, dim=1)))
        x = F.concat(F.contrib.BilinearResize2D(x, **self.quarter), self.skip(skip), dim=1)
        return self.logits(self.decoder1(self.decoder0(x)))


class DeepLabV3Plus(mx.gluon.HybridBlock):
    """DeepLabV3+ on Xception-65: ``[N,3,H,W]`` float32 -> a tuple of one: logits ``[N,C,H,W]``.

    The published weights take RGB from -1 to 1 (``x / 127.5 - 1``). ``full_output = False`` (before
    ``hybridize``) leaves the final resize out: the logits are then at 1/4. Parameters do not depend
    on the output stride: a network that was trained at 16 can be evaluated at 8.
    """

    def __init__(self, config: NetworkConfig) -> None:
        # Without a prefix the parameters have TensorFlow's names.
        super().__init__(prefix="")
        self.full_output = True
        self.full = config.full
        with self.name_scope():
            self.backbone = Xception65(
                config.norm, config.channel_multiplier, STRIDES[config.output_stride], prefix=""
            )
            self.head = DecoderHead(config, self.backbone.channels, self.backbone.skip_channels)

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        x = self.head(*self.backbone(x))
        return (F.contrib.BilinearResize2D(x, **self.full) if self.full_output else x,)


class DeepLabV3PlusResNet(DilatedResNet):
    """The same head on a dilated ResNet; the low-level map is stage 1's."""

    def __init__(self, config: NetworkConfig, **scope: str) -> None:
        form = ResNetForm(output_stride=config.output_stride)
        super().__init__(config.backbone, config.channel_multiplier, config.norm, form, **scope)
        self.full_output = True
        self.full = config.full
        with self.name_scope():
            self.head = DecoderHead(config, self.stage_channels[3], self.stage_channels[0])

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        skip = self.layer1(self.stem(F, x))
        x = self.head(self.layer4(self.layer3(self.layer2(skip))), skip)
        return (F.contrib.BilinearResize2D(x, **self.full) if self.full_output else x,)


def deeplabv3plus(config: NetworkConfig) -> DeepLabV3Plus | DeepLabV3PlusResNet:
    """Returns the network on Xception-65 or a ResNet. Raises ValueError for another backbone."""
    if config.backbone == XCEPTION:
        return DeepLabV3Plus(config)
    if config.backbone not in BACKBONES:
        known = ", ".join((XCEPTION, *BACKBONES))
        raise ValueError(f"unknown backbone {config.backbone!r} for deeplabv3plus; known: {known}")
    return DeepLabV3PlusResNet(config, prefix="deeplabv3plus_")
