"""FCN on a dilated ResNet, and the frame that PSPNet and DeepLabV3 share with it.

Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", arXiv 1411.4038;
gluon-cv model_zoo/fcn.py and segbase.py, whose parameter names these networks have.
"""

from __future__ import annotations

from export.mxnet_import import mx
from training.networks.layers import (
    DROPOUT,
    Map,
    NetworkConfig,
    Norm,
    Operators,
    SizeRule,
    conv_norm,
)
from training.networks.resnet import GLUONCV, DilatedResNet

nn = mx.gluon.nn

SIZES = SizeRule(1, smallest=16)
STRIDE = 8


class FCNHead(mx.gluon.HybridBlock):
    """The head: 3x3 convolution to a quarter of the channels, ReLU, dropout, 1x1 classifier."""

    def __init__(self, in_channels: int, num_classes: int, norm: Norm, **scope: str) -> None:
        super().__init__(**scope)
        channels = in_channels // 4
        with self.name_scope():
            self.block = conv_norm(in_channels, channels, 3, norm, "block_")
            with self.block.name_scope():
                self.block.add(
                    nn.Activation("relu"),
                    nn.Dropout(DROPOUT),
                    nn.Conv2D(num_classes, 1, in_channels=channels, prefix="classifier_"),
                )

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return self.block(x)


class DilatedSegmenter(DilatedResNet):
    """The frame: ``[N,3,H,W]`` float32, normalised RGB -> logits ``[N,C,H,W]``, a tuple of one or
    two.

    Output 0 is the prediction of ``self.head`` on stage 4; output 1, where ``aux``, that of
    ``auxlayer`` on stage 3. ``full_output = False`` (before ``hybridize``) leaves the final
    resizes out: the maps are then at 1/8. Subclasses make the head.
    """

    def __init__(self, config: NetworkConfig, **scope: str) -> None:
        super().__init__(config.backbone, config.channel_multiplier, config.norm, GLUONCV, **scope)
        self.full_output = True
        self.full = config.full
        self.auxlayer = None
        if config.aux:
            with self.name_scope():
                self.auxlayer = FCNHead(
                    self.stage_channels[2], config.num_classes, config.norm, prefix="aux_"
                )
        with self.name_scope():
            self.head = self.make_head(config)

    def make_head(self, config: NetworkConfig) -> mx.gluon.HybridBlock:
        """Returns the head on stage 4, at 1/8 of the image's size, without the final resize."""
        raise TypeError(f"{type(self).__name__} has no head")

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        stage3 = self.layer3(self.layer2(self.layer1(self.stem(F, x))))
        outputs = [self.head(self.layer4(stage3))]
        if self.auxlayer is not None:
            outputs.append(self.auxlayer(stage3))
        if self.full_output:
            outputs = [F.contrib.BilinearResize2D(output, **self.full) for output in outputs]
        return tuple(outputs)


class FCN(DilatedSegmenter):
    """FCN: stage 4 and a convolutional head at 1/8; it takes any size."""

    def make_head(self, config: NetworkConfig) -> FCNHead:
        return FCNHead(self.stage_channels[3], config.num_classes, config.norm, prefix="head_")
