"""The published forms of ICNet, each as what differs.

| name | published by | quarter resolution | pyramid |
|---|---|---|---|
| ``icnet`` | GluonCV | stage 2 of the half resolution, resized | concatenation, convolutions |
| ``icnet_fast_seg`` | lxtGH/Fast_Seg | the same, another backbone | no ReLU in the branches |
| ``icnet_two_pass`` | liminn/ICNet-pytorch | the backbone on the image at 1/4 | sum |
| ``icnet_paper`` | hszhao/ICNet (Caffe) | stage 2's first block, resized | sum, fixed windows |

``icnet_paper`` is the paper's half-width network: its sizes are a multiple of 32 plus one.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.networks.resnet import GLUONCV, ResNetForm
from training.networks.sizes import SizeRule

MULTIPLES = SizeRule(32)


@dataclass(frozen=True)
class CascadeForm:
    """How an ICNet is wired.

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
        """Rows or columns of the map at 1/``stride`` of an image of ``image`` pixels."""
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
