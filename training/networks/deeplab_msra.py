"""The "DeepLab" of MSRA's Deformable ConvNets and of mxnetgo, and its deformable form.

Caffe's ResNet (7x7 stem, stride in the first 1x1 convolution of a stage, ceiling max pooling
without padding), stage 5 dilated by 2 instead of a stride, two 1x1 convolutions, a fixed bilinear
32x32/16 deconvolution cropped to the image, softmax. There is no atrous pyramid in it. In the
deformable form the 3x3 convolutions of stage 5 are deformable. A network of the Symbol API:
parameters have the names of the published files.

Source: Dai et al., "Deformable Convolutional Networks", arXiv 1703.06211;
msracver/Deformable-ConvNets deeplab/symbols; dongzhuoyao/mxnetgo example/deeplab.
"""

from __future__ import annotations

from export.mxnet_import import mx
from training.networks.caffe_resnet import CaffeForm, CaffeSegmenter, caffe_resnet
from training.networks.layers import Norm, scale_channels
from training.networks.sizes import SizeRule

SIZES = SizeRule(1, smallest=16)
FC6_CHANNELS = 1024


def msra_symbol(
    backbone: str, num_classes: int, norm: Norm, width: float, deformable: bool
) -> mx.sym.Symbol:
    """Inputs ``data`` [N,3,H,W] and ``softmax_label`` (read in training only), output the class
    probabilities [N,C,H,W]. The symbol fits every size."""
    form = CaffeForm((1, 2, 2, 1), (1, 1, 1, 2), deformable=deformable)
    data = mx.sym.var("data")
    x = caffe_resnet(data, backbone, norm, width, form)
    x = mx.sym.Convolution(
        x, name="fc6", num_filter=scale_channels(FC6_CHANNELS, width), kernel=(1, 1)
    )
    x = mx.sym.Activation(x, act_type="relu", name="relu_fc6")
    x = mx.sym.Convolution(x, name="score", num_filter=num_classes, kernel=(1, 1))
    x = mx.sym.Deconvolution(
        x, name="upsampling", num_filter=num_classes, num_group=num_classes, kernel=(32, 32),
        stride=(16, 16), no_bias=True,
    )  # fmt: skip
    x = mx.sym.Crop(x, data, offset=(8, 8), name="croped_score")
    return mx.sym.SoftmaxOutput(
        x, name="softmax", multi_output=True, use_ignore=True, ignore_label=255,
        normalization="valid",
    )  # fmt: skip


class MSRADeepLab(CaffeSegmenter):
    """``[N,3,H,W]`` float32, BGR minus the mean -> a tuple of one: probabilities ``[N,C,H,W]``.

    The deconvolution is bilinear and frozen. ``full_output = False`` gives the logits in place of
    the probabilities, at the same size: the deconvolution is part of the network.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        norm: Norm,
        channel_multiplier: float = 1.0,
        deformable: bool = False,
    ) -> None:
        symbol = msra_symbol(backbone, num_classes, norm, channel_multiplier, deformable)
        super().__init__(symbol, ["data", "softmax_label"], ("fc6_weight", "score_weight"))
        # In a tuple, so that it is no child: its parameters are this block's.
        scores = symbol.get_internals()["croped_score_output"]
        self._scores = (mx.gluon.SymbolBlock(scores, [mx.sym.var("data")], self.params),)
        self.collect_params()["upsampling_weight"].grad_req = "null"
        self.collect_params()["upsampling_weight"].init = mx.init.Bilinear()

    def forward(self, x, label=None):  # type: ignore[no-untyped-def]
        if not self.full_output:
            return (self._scores[0](x),)
        if label is None and isinstance(x, mx.sym.Symbol):
            label = mx.sym.var("softmax_label")
        elif label is None:
            label = mx.nd.zeros((x.shape[0], *x.shape[2:]), ctx=x.context)
        return (super().forward(x, label),)
