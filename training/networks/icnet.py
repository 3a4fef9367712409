"""ICNet, the image cascade network, with static shapes so that it hybridizes.

GluonCV's variant: one backbone; the quarter-resolution branch is the half-resolution branch's
second stage, resized. ``width`` scales the backbone and everything behind it. With ResNet-50 and
width 1 the parameters have the names and shapes of ``gluoncv.model_zoo.ICNet``.

Outputs, in order: logits at full size, at 1/4, at 1/8 and at 1/16 (the last two are auxiliary).

Source: Zhao et al., "ICNet for Real-Time Semantic Segmentation", arXiv 1704.08545;
gluon-cv model_zoo/icnet.py.
"""

from __future__ import annotations

from training.mxnet_import import mx
from training.networks.layers import ConvBnRelu, Norm, conv_norm, scale_channels
from training.networks.pyramid import PyramidHead
from training.networks.resnet import DilatedResNet
from training.networks.sizes import SizeRule

nn = mx.gluon.nn

SIZES = SizeRule(32)


class CascadeFeatureFusion(mx.gluon.HybridBlock):
    """Adds an upsampled low-resolution map to a high-resolution one; classifies the former."""

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        channels: int,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}
        with self.name_scope():
            self.conv_low = conv_norm(low_channels, channels, 3, norm, "low_", dilation=2)
            # "hign" is how GluonCV spells it; checkpoints carry the name.
            self.conv_hign = conv_norm(high_channels, channels, 1, norm, "high_")
            self.conv_low_cls = nn.Conv2D(
                num_classes, 1, in_channels=channels, use_bias=False, prefix="low_cls_"
            )

    def hybrid_forward(self, F, low, high):  # type: ignore[no-untyped-def]
        low = self.conv_low(F.contrib.BilinearResize2D(low, **self.size))
        fused = F.relu(low + self.conv_hign(high))
        return fused, self.conv_low_cls(low)


class CascadeHead(mx.gluon.HybridBlock):
    """Two fusion units, and the classifier at 1/4 of the input's size."""

    def __init__(
        self,
        detail_channels: int,
        channels: int,
        fused_channels: int,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.quarter = {"height": height // 4, "width": width // 4}
        with self.name_scope():
            self.cff_24 = CascadeFeatureFusion(
                channels, channels, fused_channels, num_classes,
                height // 16, width // 16, norm, prefix="cff24_",
            )  # fmt: skip
            self.cff_12 = CascadeFeatureFusion(
                fused_channels, detail_channels, fused_channels, num_classes,
                height // 8, width // 8, norm, prefix="cff12_",
            )  # fmt: skip
            self.conv_cls = nn.Conv2D(
                num_classes, 1, in_channels=fused_channels, use_bias=False, prefix="cls_"
            )

    def hybrid_forward(self, F, sub1, sub2, sub4):  # type: ignore[no-untyped-def]
        fused, sixteenth = self.cff_24(sub4, sub2)
        fused, eighth = self.cff_12(fused, sub1)
        # GluonCV resizes first. A 1x1 convolution without bias and a resize commute exactly, and
        # this order moves num_classes channels through the resize instead of 128.
        quarter = F.contrib.BilinearResize2D(self.conv_cls(fused), **self.quarter)
        return quarter, eighth, sixteenth


class ICNet(DilatedResNet):
    """``[N,3,H,W]`` float32, normalised RGB -> four maps of logits ``[N,C,.,.]``.

    ``full_output = False`` leaves the first one out (before ``hybridize``): losses are taken at
    1/4, and MXNet's backward pass of an unused resize to full size costs a quarter of a step.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        channel_multiplier: float = 1.0,
        **scope: str,
    ) -> None:
        super().__init__(backbone, channel_multiplier, norm, **scope)
        self.full_output = True
        self.full = {"height": height, "width": width}
        self.half = {"height": height // 2, "width": width // 2}
        self.thirtysecond = {"height": height // 32, "width": width // 32}
        channels = scale_channels(256, channel_multiplier)
        deep = self.stage_channels[3]
        with self.name_scope():
            self.conv_sub1 = nn.HybridSequential(prefix="sub1_")
            with self.conv_sub1.name_scope():
                for index, (before, after) in enumerate(((3, 32), (32, 32), (32, 64))):
                    self.conv_sub1.add(ConvBnRelu(before, after, 3, 2, norm, prefix=f"{index}_"))
            pyramid_channels = scale_channels(512, channel_multiplier)
            self.psp_head = PyramidHead(
                deep, pyramid_channels, height // 32, width // 32, norm, prefix="psphead_"
            )
            self.conv_sub4 = ConvBnRelu(pyramid_channels, channels, 1, 1, norm, prefix="sub4_")
            self.conv_sub2 = ConvBnRelu(
                self.stage_channels[1], channels, 1, 1, norm, prefix="sub2_"
            )
            self.head = CascadeHead(
                64, channels, 128, num_classes, height, width, norm, prefix="head_"
            )

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        sub1 = self.conv_sub1(x)
        sub2 = self.stem(F, F.contrib.BilinearResize2D(x, **self.half))
        sub2 = self.layer2(self.layer1(sub2))
        sub4 = F.contrib.BilinearResize2D(sub2, **self.thirtysecond)
        sub4 = self.conv_sub4(self.psp_head(self.layer4(self.layer3(sub4))))
        quarter, eighth, sixteenth = self.head(sub1, self.conv_sub2(sub2), sub4)
        if not self.full_output:
            return quarter, eighth, sixteenth
        return F.contrib.BilinearResize2D(quarter, **self.full), quarter, eighth, sixteenth
