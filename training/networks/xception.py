"""Xception-65 as TensorFlow's DeepLab builds it, at output stride 8 or 16.

Every batch norm of it has epsilon 1e-3, those of the two first convolutions and of the shortcuts
too. Parameter names are TensorFlow's with underscores for slashes.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", arXiv 1802.02611;
tensorflow/models research/deeplab core/xception.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from export.mxnet_import import mx
from training.networks.layers import Norm, scale_channels

nn = mx.gluon.nn

EPSILON = 1e-3
MIDDLE_UNITS = 16


@dataclass(frozen=True)
class Strides:
    """What an output stride means: stride of entry block 3, dilations, ASPP rates."""

    entry_block3: int
    middle: int
    exit_blocks: tuple[int, int]
    atrous_rates: tuple[int, int, int]


STRIDES = {16: Strides(2, 1, (1, 2), (6, 12, 18)), 8: Strides(1, 2, (2, 4), (12, 24, 36))}


class SeparableConv(mx.gluon.HybridBlock):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with normalisation.

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

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
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

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        second = self.conv2(self.conv1(x))
        out = self.conv3(second)
        if self.shortcut == "conv":
            return out + self.project_norm(self.project(x)), second
        if self.shortcut == "sum":
            return out + x, second
        return out, second


class Xception65(mx.gluon.HybridBlock):
    """``[N,3,H,W]`` -> features at the output stride, and the decoder's at 1/4."""

    def __init__(self, norm: Norm, width: float, strides: Strides, **scope: str) -> None:
        super().__init__(**scope)
        norm = replace(norm, epsilon=EPSILON)

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

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
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
