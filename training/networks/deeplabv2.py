"""DeepLabV2: four atrous classifiers of different rates on Caffe's ResNet, added up.

Stages 4 and 5 are dilated by 2 and 4 in place of their strides (output stride 8); the classifiers
are 3x3 convolutions at rates 6, 12, 18 and 24 (ASPP-L); their sum is resized to the image.
Parameters have the names of the published files.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", arXiv 1606.00915, and its released prototxt files.
"""

from __future__ import annotations

from export.mxnet_import import mx
from training.networks.caffe_resnet import CaffeForm, CaffeSegmenter, caffe_resnet
from training.networks.layers import Norm
from training.networks.sizes import SizeRule

# Multiples of 8 plus one are Caffe's own: the corners of all maps coincide there.
SIZES = SizeRule(8, offsets=(0, 1), smallest=32)
ATROUS_RATES = (6, 12, 18, 24)
FORM = CaffeForm((1, 2, 1, 1), (1, 1, 2, 4), pool_padding=1)


def deeplabv2_symbol(
    backbone: str, num_classes: int, norm: Norm, width: float
) -> tuple[mx.sym.Symbol, list[str]]:
    """Input ``data`` [N,3,H,W], output logits [N,C,h,w] at 1/8; and the classifiers' names."""
    x = caffe_resnet(mx.sym.var("data"), backbone, norm, width, FORM)
    names = [f"fc1_c{number}" for number in range(len(ATROUS_RATES))]
    scores = [
        mx.sym.Convolution(
            x, name=name, num_filter=num_classes, kernel=(3, 3), pad=(rate, rate),
            dilate=(rate, rate),
        )
        for name, rate in zip(names, ATROUS_RATES, strict=True)
    ]  # fmt: skip
    return mx.sym.add_n(*scores, name="fc1"), names


class DeepLabV2(CaffeSegmenter):
    """``[N,3,H,W]`` float32, BGR minus the mean -> a tuple of one: logits ``[N,C,H,W]``.

    ``full_output = False`` (before ``hybridize``) leaves the final resize out: they are at 1/8.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        height: int,
        width: int,
        norm: Norm,
        channel_multiplier: float = 1.0,
    ) -> None:
        symbol, names = deeplabv2_symbol(backbone, num_classes, norm, channel_multiplier)
        super().__init__(symbol, ["data"], tuple(f"{name}_weight" for name in names))
        self.full = {"height": height, "width": width}

    def forward(self, x):  # type: ignore[no-untyped-def]
        scores = super().forward(x)
        if not self.full_output:
            return (scores,)
        namespace = mx.sym if isinstance(x, mx.sym.Symbol) else mx.nd
        return (namespace.contrib.BilinearResize2D(scores, **self.full),)
