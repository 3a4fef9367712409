"""DeepLabV3+ on Xception-65, as TensorFlow's DeepLab builds it, and on a dilated ResNet.

ASPP with separable atrous convolutions, its projection resized to 1/4 and joined with the entry
flow's second block, two separable convolutions, classifier, resize. Batch norm's epsilon is 1e-3 in
the backbone and 1e-5 behind it. Sizes are multiples of 16 (of 8 at output stride 8), or those plus
one, TensorFlow's own, where the corners of all maps coincide.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", arXiv 1802.02611;
tensorflow/models research/deeplab model.py; duducheng/deeplabv3p_gluon for the Gluon names.
"""

from __future__ import annotations

from export.mxnet_import import mx
from training.networks.layers import DROPOUT, Norm, scale_channels
from training.networks.resnet import DilatedResNet, ResNetForm
from training.networks.sizes import SizeRule
from training.networks.xception import STRIDES, SeparableConv, Xception65

nn = mx.gluon.nn

SIZES = {stride: SizeRule(stride, offsets=(0, 1), smallest=stride) for stride in STRIDES}
HEAD_CHANNELS = 256
SKIP_CHANNELS = 48


class PointwiseNorm(mx.gluon.HybridBlock):
    """1x1 convolution ``<prefix>_``, normalisation ``<prefix>_BN_``, ReLU."""

    def __init__(self, in_channels: int, channels: int, norm: Norm, name: str) -> None:
        super().__init__(prefix="")
        with self.name_scope():
            self.conv = nn.Conv2D(
                channels, 1, in_channels=in_channels, use_bias=False, prefix=f"{name}_"
            )
            self.norm = norm(channels, prefix=f"{name}_BN_")

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        return F.relu(self.norm(self.conv(x)))


class DecoderHead(mx.gluon.HybridBlock):
    """ASPP on ``deep``, joined with the low-level map at 1/4 -> logits at 1/4.

    ``skip_channels`` are those of the low-level map; ``sizes`` are (height, width) of the two maps,
    the deep one's first.
    """

    def __init__(
        self,
        deep_channels: int,
        skip_channels: int,
        num_classes: int,
        sizes: tuple[tuple[int, int], tuple[int, int]],
        atrous_rates: tuple[int, int, int],
        norm: Norm,
        width: float,
    ) -> None:
        # Without a prefix of its own the parameters have TensorFlow's names.
        super().__init__(prefix="")
        self.small, self.quarter = ({"height": h, "width": w} for h, w in sizes)
        channels = scale_channels(HEAD_CHANNELS, width)
        projected = scale_channels(SKIP_CHANNELS, width)
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
            self.logits = nn.Conv2D(num_classes, 1, in_channels=channels, prefix="logits_semantic_")

    def hybrid_forward(self, F, deep, skip):  # type: ignore[no-untyped-def]
        pooled = self.image_pooling(F.contrib.AdaptiveAvgPooling2D(deep, output_size=1))
        branches = [F.contrib.BilinearResize2D(pooled, **self.small), self.aspp0(deep)]
        branches += [self.aspp1(deep), self.aspp2(deep), self.aspp3(deep)]
        x = self.dropout(self.projection(F.concat(*branches, dim=1)))
        x = F.concat(F.contrib.BilinearResize2D(x, **self.quarter), self.skip(skip), dim=1)
        return self.logits(self.decoder1(self.decoder0(x)))


def map_sizes(
    height: int, width: int, output_stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the deep map, and of the one at 1/4."""
    return (
        (-(-height // output_stride), -(-width // output_stride)),
        (-(-height // 4), -(-width // 4)),
    )


class DeepLabV3Plus(mx.gluon.HybridBlock):
    """On Xception-65: ``[N,3,H,W]`` float32 -> a tuple of one: logits ``[N,C,H,W]``.

    The published weights take RGB from -1 to 1 (``x / 127.5 - 1``). ``full_output = False`` (before
    ``hybridize``) leaves the final resize out: the logits are then at 1/4. Parameters do not depend
    on the output stride: a network that was trained at 16 can be evaluated at 8.
    """

    def __init__(
        self,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        channel_multiplier: float = 1.0,
        output_stride: int = 16,
    ) -> None:
        # Without a prefix the parameters have TensorFlow's names.
        super().__init__(prefix="")
        self.full_output = True
        self.full = {"height": height, "width": width}
        strides = STRIDES[output_stride]
        with self.name_scope():
            self.backbone = Xception65(norm, channel_multiplier, strides, prefix="")
            self.head = DecoderHead(
                self.backbone.channels, self.backbone.skip_channels, num_classes,
                map_sizes(height, width, output_stride), strides.atrous_rates, norm,
                channel_multiplier,
            )  # fmt: skip

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        x = self.head(*self.backbone(x))
        return (F.contrib.BilinearResize2D(x, **self.full) if self.full_output else x,)


class DeepLabV3PlusResNet(DilatedResNet):
    """The same head on a dilated ResNet; the low-level map is stage 1's."""

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        channel_multiplier: float = 1.0,
        output_stride: int = 16,
        **scope: str,
    ) -> None:
        form = ResNetForm(output_stride=output_stride)
        super().__init__(backbone, channel_multiplier, norm, form, **scope)
        self.full_output = True
        self.full = {"height": height, "width": width}
        with self.name_scope():
            self.head = DecoderHead(
                self.stage_channels[3], self.stage_channels[0], num_classes,
                map_sizes(height, width, output_stride), STRIDES[output_stride].atrous_rates,
                norm, channel_multiplier,
            )  # fmt: skip

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        skip = self.layer1(self.stem(F, x))
        x = self.head(self.layer4(self.layer3(self.layer2(skip))), skip)
        return (F.contrib.BilinearResize2D(x, **self.full) if self.full_output else x,)
