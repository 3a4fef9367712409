"""DeepLabV3+ on Xception-65, as TensorFlow's DeepLab builds it.

ASPP with separable atrous convolutions, its projection resized to 1/4 and joined with the entry
flow's second block, two separable convolutions, classifier, resize. Batch norm's epsilon is 1e-3 in
the backbone and 1e-5 behind it. Sizes are multiples of 16 (of 8 at output stride 8), or those plus
one, TensorFlow's own, where the corners of all maps coincide.

Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", arXiv 1802.02611;
tensorflow/models research/deeplab model.py; duducheng/deeplabv3p_gluon for the Gluon names.
"""

from __future__ import annotations

from training.mxnet_import import mx
from training.networks.layers import DROPOUT, Norm, scale_channels
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


class DeepLabV3Plus(mx.gluon.HybridBlock):
    """``[N,3,H,W]`` float32 -> a tuple of one: logits ``[N,C,H,W]``.

    The published weights take RGB from -1 to 1 (``x / 127.5 - 1``). ``full_output = False`` (before
    ``hybridize``) leaves the final resize out: the logits are then at 1/4.
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
        self.quarter = {"height": -(-height // 4), "width": -(-width // 4)}
        self.small = {"height": -(-height // output_stride), "width": -(-width // output_stride)}
        strides = STRIDES[output_stride]
        channels = scale_channels(HEAD_CHANNELS, channel_multiplier)
        skip_channels = scale_channels(SKIP_CHANNELS, channel_multiplier)
        with self.name_scope():
            self.backbone = Xception65(norm, channel_multiplier, strides, prefix="")
            deep = self.backbone.channels
            self.image_pooling = PointwiseNorm(deep, channels, norm, "image_pooling")
            self.aspp0 = PointwiseNorm(deep, channels, norm, "aspp0")
            for number, rate in enumerate(strides.atrous_rates, start=1):
                branch = SeparableConv(
                    deep, channels, norm, dilation=rate, activate_inside=True,
                    prefix=f"aspp{number}_",
                )  # fmt: skip
                setattr(self, f"aspp{number}", branch)
            self.projection = PointwiseNorm(channels * 5, channels, norm, "concat_projection")
            # TensorFlow keeps 0.9.
            self.dropout = nn.Dropout(DROPOUT, prefix="projection_dropout_")
            self.skip = PointwiseNorm(
                self.backbone.skip_channels, skip_channels, norm, "feature_projection0"
            )
            self.decoder0 = SeparableConv(
                channels + skip_channels, channels, norm, activate_inside=True,
                prefix="decoder_conv0_",
            )  # fmt: skip
            self.decoder1 = SeparableConv(
                channels, channels, norm, activate_inside=True, prefix="decoder_conv1_"
            )
            self.logits = nn.Conv2D(num_classes, 1, in_channels=channels, prefix="logits_semantic_")

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        x, skip = self.backbone(x)
        pooled = self.image_pooling(F.contrib.AdaptiveAvgPooling2D(x, output_size=1))
        branches = [F.contrib.BilinearResize2D(pooled, **self.small), self.aspp0(x)]
        branches += [self.aspp1(x), self.aspp2(x), self.aspp3(x)]
        x = self.dropout(self.projection(F.concat(*branches, dim=1)))
        x = F.concat(F.contrib.BilinearResize2D(x, **self.quarter), self.skip(skip), dim=1)
        x = self.logits(self.decoder1(self.decoder0(x)))
        return (F.contrib.BilinearResize2D(x, **self.full) if self.full_output else x,)
