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

from dataclasses import dataclass

from training.mxnet_import import mx
from training.networks.layers import Norm, scale_channels
from training.networks.sizes import SizeRule

SIZES = SizeRule(1, smallest=16)
STAGE_CHANNELS = (256, 512, 1024, 2048)
FC6_CHANNELS = 1024
EPSILON = 1e-5
OFFSET_CHANNELS = 18  # y and x of nine taps
UNITS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@dataclass(frozen=True)
class _Layers:
    """Convolutions with normalisation under Caffe's names."""

    norm: Norm

    def conv_norm(
        self, x: mx.sym.Symbol, suffix: str, channels: int, kernel: int = 1, stride: int = 1,
        dilation: int = 1, deformable: bool = False,
    ) -> mx.sym.Symbol:  # fmt: skip
        geometry = {
            "kernel": (kernel, kernel),
            "stride": (stride, stride),
            "dilate": (dilation, dilation),
            "pad": (dilation * (kernel // 2),) * 2,
            "num_filter": channels,
            "no_bias": True,
        }
        name = f"res{suffix}"
        if deformable:
            offset = mx.sym.Convolution(
                x, name=f"{name}_offset", num_filter=OFFSET_CHANNELS, kernel=(3, 3), pad=(1, 1)
            )
            x = mx.sym.contrib.DeformableConvolution(
                data=x, offset=offset, name=name, num_deformable_group=1, **geometry
            )
        else:
            x = mx.sym.Convolution(x, name=name, **geometry)
        return self.normalise(x, f"bn{suffix}")

    def normalise(self, x: mx.sym.Symbol, name: str) -> mx.sym.Symbol:
        settings = {"fix_gamma": False, "eps": EPSILON, "momentum": self.norm.momentum}
        if self.norm.num_devices is None:
            # The published networks keep ImageNet's statistics, in training too.
            return mx.sym.BatchNorm(x, name=name, use_global_stats=True, **settings)
        return mx.sym.contrib.SyncBatchNorm(
            x, name=name, key=name, ndev=self.norm.num_devices, **settings
        )

    def unit(
        self, x: mx.sym.Symbol, suffix: str, channels: int, stride: int, dilation: int,
        project: bool, deformable: bool,
    ) -> mx.sym.Symbol:  # fmt: skip
        shortcut = self.conv_norm(x, f"{suffix}_branch1", channels, 1, stride) if project else x
        quarter = channels // 4
        x = self.conv_norm(x, f"{suffix}_branch2a", quarter, 1, stride)
        x = mx.sym.Activation(x, act_type="relu", name=f"res{suffix}_branch2a_relu")
        x = self.conv_norm(x, f"{suffix}_branch2b", quarter, 3, 1, dilation, deformable)
        x = mx.sym.Activation(x, act_type="relu", name=f"res{suffix}_branch2b_relu")
        x = self.conv_norm(x, f"{suffix}_branch2c", channels)
        x = mx.sym.broadcast_add(shortcut, x, name=f"res{suffix}")
        return mx.sym.Activation(x, act_type="relu", name=f"res{suffix}_relu")


def unit_names(backbone: str, stage: int, units: int) -> list[str]:
    """Caffe's: ``3a 3b 3c``; stages 3 and 4 of networks deeper than 50 count ``3a 3b1 3b2``."""
    if backbone == "resnet50" or units == 3:
        return [f"{stage}{letter}" for letter in "abcdef"[:units]]
    return [f"{stage}a", *(f"{stage}b{i}" for i in range(1, units))]


def msra_symbol(
    backbone: str, num_classes: int, norm: Norm, width: float, deformable: bool
) -> mx.sym.Symbol:
    """Inputs ``data`` [N,3,H,W] and ``softmax_label`` (read in training only), output the class
    probabilities [N,C,H,W]. The symbol fits every size."""
    if backbone not in UNITS:
        raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(UNITS)}")
    layers = _Layers(norm)
    data = mx.sym.var("data")
    x = mx.sym.Convolution(
        data, name="conv1", num_filter=scale_channels(64, width), kernel=(7, 7), stride=(2, 2),
        pad=(3, 3), no_bias=True,
    )  # fmt: skip
    x = mx.sym.Activation(layers.normalise(x, "bn_conv1"), act_type="relu", name="conv1_relu")
    x = mx.sym.Pooling(
        x, name="pool1", pool_type="max", kernel=(3, 3), stride=(2, 2), pad=(0, 0),
        pooling_convention="full",
    )  # fmt: skip
    for stage, (units, channels) in enumerate(
        zip(UNITS[backbone], STAGE_CHANNELS, strict=True), start=2
    ):
        # Of a bottleneck's width, so that its quarter is a multiple of 8 too.
        channels = 4 * scale_channels(channels // 4, width)
        for index, suffix in enumerate(unit_names(backbone, stage, units)):
            first = index == 0
            x = layers.unit(
                x, suffix, channels, 2 if first and stage in (3, 4) else 1,
                2 if stage == 5 else 1, project=first, deformable=deformable and stage == 5,
            )  # fmt: skip
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


class MSRADeepLab(mx.gluon.SymbolBlock):
    """``[N,3,H,W]`` float32, BGR minus the mean -> a tuple of one: probabilities ``[N,C,H,W]``.

    Normalisation's gamma and beta and the deconvolution are frozen, the latter bilinear; biases
    learn twice as fast; the offsets of the deformable form start at zero. ``full_output = False``
    gives the logits in place of the probabilities, at the same size: the deconvolution is part of
    the network.
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
        super().__init__(symbol, [mx.sym.var("data"), mx.sym.var("softmax_label")])
        self.full_output = True
        # In a tuple, so that it is no child: its parameters are this block's.
        scores = symbol.get_internals()["croped_score_output"]
        self._scores = (mx.gluon.SymbolBlock(scores, [mx.sym.var("data")], self.params),)
        for name, parameter in self.collect_params().items():
            if name.endswith(("_gamma", "_beta")) or name == "upsampling_weight":
                parameter.grad_req = "null"
            if name.endswith("_bias"):
                parameter.lr_mult = 2.0
            # A parameter of a symbol does not know what it is; its name does.
            if name.endswith(("_gamma", "_moving_var")):
                parameter.init = mx.init.One()
            elif name.endswith(("_beta", "_moving_mean", "_bias", "_offset_weight")):
                parameter.init = mx.init.Zero()
            if name in ("fc6_weight", "score_weight"):
                parameter.init = mx.init.Normal(0.01)
        self.collect_params()["upsampling_weight"].init = mx.init.Bilinear()

    def forward(self, x, label=None):  # type: ignore[no-untyped-def]
        if not self.full_output:
            return (self._scores[0](x),)
        if label is None and isinstance(x, mx.sym.Symbol):
            label = mx.sym.var("softmax_label")
        elif label is None:
            label = mx.nd.zeros((x.shape[0], *x.shape[2:]), ctx=x.context)
        return (super().forward(x, label),)
