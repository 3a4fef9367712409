"""DeepLabV3: atrous spatial pyramid pooling on a dilated ResNet, at 1/8.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv
1706.05587; gluon-cv model_zoo/deeplabv3.py, whose parameter names and outputs this network has.
"""

from __future__ import annotations

from export.mxnet_import import mx
from training.networks.fcn import STRIDE, DilatedSegmenter
from training.networks.layers import (
    DROPOUT,
    Map,
    NetworkConfig,
    Norm,
    Operators,
    SizeRule,
    conv_norm,
    conv_norm_relu,
)

nn = mx.gluon.nn

SIZES = SizeRule(STRIDE)
ATROUS_RATES = (12, 24, 36)
HEAD_CHANNELS = 256
PROJECTION_DROPOUT = 0.5


class ImagePooling(mx.gluon.HybridBlock):
    """A branch that repeats the image's mean, after a 1x1 convolution, over the map."""

    def __init__(
        self, in_channels: int, channels: int, height: int, width: int, norm: Norm, **scope: str
    ) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}
        with self.name_scope():
            self.gap = nn.HybridSequential(prefix="gap_")
            with self.gap.name_scope():
                self.gap.add(
                    nn.GlobalAvgPool2D(),
                    nn.Conv2D(channels, 1, in_channels=in_channels, use_bias=False),
                    norm(channels),
                    nn.Activation("relu"),
                )

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return F.contrib.BilinearResize2D(self.gap(x), **self.size)


class AtrousPyramid(mx.gluon.HybridBlock):
    """The ASPP: a 1x1 and three dilated 3x3 convolutions, image pooling, and a 1x1 projection."""

    def __init__(
        self, in_channels: int, channels: int, height: int, width: int, norm: Norm, **scope: str
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            # "concurent" is how GluonCV spells it; checkpoints carry the name.
            self.concurent = mx.gluon.contrib.nn.HybridConcurrent(axis=1, prefix="branches_")
            with self.concurent.name_scope():
                self.concurent.add(conv_norm_relu(in_channels, channels, 1, norm, "0_"))
                for number, rate in enumerate(ATROUS_RATES, start=1):
                    self.concurent.add(
                        conv_norm_relu(in_channels, channels, 3, norm, f"{number}_", rate)
                    )
                self.concurent.add(
                    ImagePooling(in_channels, channels, height, width, norm, prefix="pool_")
                )
            branches = len(ATROUS_RATES) + 2
            self.project = conv_norm_relu(branches * channels, channels, 1, norm, "project_")
            with self.project.name_scope():
                self.project.add(nn.Dropout(PROJECTION_DROPOUT))

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return self.project(self.concurent(x))


class DeepLabHead(mx.gluon.HybridBlock):
    """The head: ASPP, 3x3 convolution, classifier."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            self.aspp = AtrousPyramid(in_channels, channels, height, width, norm, prefix="aspp_")
            self.block = conv_norm(channels, channels, 3, norm, "block_")
            with self.block.name_scope():
                self.block.add(
                    nn.Activation("relu"),
                    nn.Dropout(DROPOUT),
                    nn.Conv2D(num_classes, 1, in_channels=channels, prefix="classifier_"),
                )

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return self.block(self.aspp(x))


class DeepLabV3(DilatedSegmenter):
    """DeepLabV3: ``[N,3,H,W]`` -> logits ``[N,C,H,W]``, and the auxiliary head's if ``aux``."""

    def make_head(self, config: NetworkConfig) -> DeepLabHead:
        return DeepLabHead(
            self.stage_channels[3],
            config.scale(HEAD_CHANNELS),
            config.num_classes,
            config.height // STRIDE,
            config.width // STRIDE,
            config.norm,
            prefix="head_",
        )
