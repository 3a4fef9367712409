"""ICNet, the image cascade network, with static shapes so that it hybridizes.

The published forms, each as what differs:

| name | published by | quarter resolution | pyramid |
|---|---|---|---|
| ``icnet`` | GluonCV | stage 2 of the half resolution, resized | concatenation, convolutions |
| ``icnet_fast_seg`` | lxtGH/Fast_Seg | the same, another backbone | no ReLU in the branches |
| ``icnet_two_pass`` | liminn/ICNet-pytorch | the backbone on the image at 1/4 | sum |
| ``icnet_paper`` | hszhao/ICNet (Caffe) | stage 2's first block, resized | sum, fixed windows |

``icnet_paper`` is the paper's half-width network: its sizes are a multiple of 32 plus one. With
ResNet-50 and width 1 the parameters of ``icnet`` have the names and shapes of
``gluoncv.model_zoo.ICNet``; ``width`` scales the backbone and everything behind it.

Outputs, in order: logits at full size, at 1/4, at 1/8 and at 1/16 (the last two are auxiliary).

Source: Zhao et al., "ICNet for Real-Time Semantic Segmentation", arXiv 1704.08545;
gluon-cv model_zoo/icnet.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from export.mxnet_import import mx
from training.networks.layers import (
    ConvBnRelu,
    Map,
    NetworkConfig,
    Norm,
    Operators,
    SizeRule,
    conv_norm,
)
from training.networks.pspnet import CaffePyramidSum, PyramidHead, PyramidSum
from training.networks.resnet import GLUONCV, DilatedResNet, ResNetForm

MULTIPLES = SizeRule(32)


@dataclass(frozen=True)
class CascadeForm:
    """A form of ICNet: how it is wired.

    Attributes:
        backbone: the dilated ResNet's form.
        pyramid: ``concatenated``, ``summed`` or ``summed_caffe``.
        activated: a ReLU in the branches of a concatenated pyramid.
        low_reduced: a 1x1 convolution to 256 channels behind the pyramid.
        high_reduced: the same for the map at 1/16.
        second_pass: stage 4 sees the image at 1/4 through the whole backbone.
        shared_blocks: blocks of stage 2 that both resolutions share; None is all.
        width: channels of the backbone, times ``--width``.
        classifier_bias: of the prediction.
        sizes: what it can be built for.
    """

    backbone: ResNetForm = GLUONCV
    pyramid: str = "concatenated"
    activated: bool = True
    low_reduced: bool = True
    high_reduced: bool = True
    second_pass: bool = False
    shared_blocks: int | None = None
    width: float = 1.0
    classifier_bias: bool = False
    sizes: SizeRule = MULTIPLES

    def length(self, image: int, stride: int) -> int:
        """Returns the length of the map at 1/``stride`` of an image of ``image`` pixels."""
        if self.sizes.offsets == (1,):
            return (image - 1) // stride + 1
        # Max pooling that rounds up leaves one more behind it, on the way to 1/16.
        return image // stride + (stride == 16 and self.backbone.ceil_pool)


FORMS = {
    "icnet": CascadeForm(),
    "icnet_fast_seg": CascadeForm(
        backbone=ResNetForm(first_block_dilated=True, ceil_pool=True), activated=False
    ),
    "icnet_two_pass": CascadeForm(
        pyramid="summed", low_reduced=False, high_reduced=False, second_pass=True
    ),
    "icnet_paper": CascadeForm(
        backbone=ResNetForm(first_block_dilated=True, ceil_pool=True, stride_in_first=True),
        pyramid="summed_caffe",
        high_reduced=False,
        shared_blocks=1,
        width=0.5,
        classifier_bias=True,
        sizes=SizeRule(32, offsets=(1,), smallest=193),
    ),
}


nn = mx.gluon.nn

Size = tuple[int, int]


class CascadeFeatureFusion(mx.gluon.HybridBlock):
    """Adds an upsampled low-resolution map to a high-resolution one; classifies the former."""

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        channels: int,
        num_classes: int,
        size: Size,
        norm: Norm,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.size = _target(size)
        with self.name_scope():
            self.conv_low = conv_norm(low_channels, channels, 3, norm, "low_", dilation=2)
            # "hign" is how GluonCV spells it; checkpoints carry the name.
            self.conv_hign = conv_norm(high_channels, channels, 1, norm, "high_")
            self.conv_low_cls = nn.Conv2D(
                num_classes, 1, in_channels=channels, use_bias=False, prefix="low_cls_"
            )

    def hybrid_forward(self, F: Operators, low: Map, high: Map) -> Map:
        low = self.conv_low(F.contrib.BilinearResize2D(low, **self.size))
        fused = F.relu(low + self.conv_hign(high))
        return fused, self.conv_low_cls(low)


class CascadeHead(mx.gluon.HybridBlock):
    """The head: two fusion units, and the classifier at 1/4 of the input's size.

    ``sizes`` are (height, width) of the maps by their stride.
    """

    def __init__(
        self,
        detail_channels: int,
        low_channels: int,
        high_channels: int,
        fused_channels: int,
        num_classes: int,
        sizes: dict[int, Size],
        norm: Norm,
        classifier_bias: bool,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.quarter = _target(sizes[4])
        with self.name_scope():
            self.cff_24 = CascadeFeatureFusion(
                low_channels, high_channels, fused_channels, num_classes, sizes[16], norm,
                prefix="cff24_",
            )  # fmt: skip
            self.cff_12 = CascadeFeatureFusion(
                fused_channels, detail_channels, fused_channels, num_classes, sizes[8], norm,
                prefix="cff12_",
            )  # fmt: skip
            self.conv_cls = nn.Conv2D(
                num_classes, 1, in_channels=fused_channels, use_bias=classifier_bias, prefix="cls_"
            )

    def hybrid_forward(self, F: Operators, sub1: Map, sub2: Map, sub4: Map) -> Map:
        fused, sixteenth = self.cff_24(sub4, sub2)
        fused, eighth = self.cff_12(fused, sub1)
        # The originals resize first. A 1x1 convolution and a resize commute exactly (the weights of
        # an interpolation add up to 1), and this order resizes num_classes channels, not 128.
        quarter = F.contrib.BilinearResize2D(self.conv_cls(fused), **self.quarter)
        return quarter, eighth, sixteenth


class ICNet(DilatedResNet):
    """ICNet: ``[N,3,H,W]`` float32, normalised -> four maps of logits ``[N,C,.,.]``.

    ``full_output = False`` leaves the first one out (before ``hybridize``): losses are taken at
    1/4, and MXNet's backward pass of an unused resize to full size costs a quarter of a step.
    """

    def __init__(
        self, config: NetworkConfig, form: CascadeForm = FORMS["icnet"], **scope: str
    ) -> None:
        norm, height, width = config.norm, config.height, config.width
        multiplier = config.channel_multiplier * form.width
        super().__init__(config.backbone, multiplier, norm, form.backbone, **scope)
        self.full_output = True
        self.form = form
        sizes = {n: (form.length(height, n), form.length(width, n)) for n in (2, 4, 8, 16, 32)}
        self.full, self.half = config.full, _target(sizes[2])
        # What the quarter resolution starts from: the image, or the half resolution's map.
        self.lower = _target(sizes[4 if form.second_pass else 32])
        channels = config.scale(256)
        high, deep = self.stage_channels[1], self.stage_channels[3]
        with self.name_scope():
            self.conv_sub1 = nn.HybridSequential(prefix="sub1_")
            with self.conv_sub1.name_scope():
                for index, (before, after) in enumerate(((3, 32), (32, 32), (32, 64))):
                    self.conv_sub1.add(ConvBnRelu(before, after, 3, 2, norm, prefix=f"{index}_"))
            if form.pyramid == "concatenated":
                pooled = config.scale(512)
                self.psp_head = PyramidHead(
                    deep, pooled, *sizes[32], norm, activated=form.activated, prefix="psphead_"
                )
            else:
                pooled = deep
                summed = CaffePyramidSum if form.pyramid == "summed_caffe" else PyramidSum
                self.psp_head = summed(*sizes[32], prefix="psphead_")
            self.conv_sub4 = self.conv_sub2 = None
            if form.low_reduced:
                self.conv_sub4 = ConvBnRelu(pooled, channels, 1, 1, norm, prefix="sub4_")
            if form.high_reduced:
                self.conv_sub2 = ConvBnRelu(high, channels, 1, 1, norm, prefix="sub2_")
            self.head = CascadeHead(
                64, channels if form.low_reduced else deep, channels if form.high_reduced else high,
                128, config.num_classes, sizes, norm, form.classifier_bias, prefix="head_",
            )  # fmt: skip

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        resize = F.contrib.BilinearResize2D
        sub1 = self.conv_sub1(x)
        stage1 = self.layer1(self.stem(F, resize(x, **self.half)))
        blocks = list(self.layer2._children.values())
        shared = self.form.shared_blocks or len(blocks)
        sub2 = _apply(blocks[:shared], stage1)
        if self.form.second_pass:
            sub4 = self.layer2(self.layer1(self.stem(F, resize(x, **self.lower))))
        else:
            sub4 = _apply(blocks[shared:], resize(sub2, **self.lower))
        sub4 = self.psp_head(self.layer4(self.layer3(sub4)))
        if self.conv_sub4 is not None:
            sub4 = self.conv_sub4(sub4)
        if self.conv_sub2 is not None:
            sub2 = self.conv_sub2(sub2)
        quarter, eighth, sixteenth = self.head(sub1, sub2, sub4)
        if not self.full_output:
            return quarter, eighth, sixteenth
        return resize(quarter, **self.full), quarter, eighth, sixteenth


def _target(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _apply(blocks: Iterable[Map], x: Map) -> Map:
    for block in blocks:
        x = block(x)
    return x
