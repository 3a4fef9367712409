"""Caffe's ResNet with the Symbol API, and the two DeepLabs on it: MSRA's, and DeepLabV2.

The ResNet: 7x7 stem, stride in the first 1x1 convolution of a stage, max pooling that rounds up,
bottlenecks under Caffe's names. Batch norms keep ImageNet's statistics, in training too.

``deeplab_msra`` is the "DeepLab" of MSRA's Deformable ConvNets and of mxnetgo: stage 5 dilated by 2
instead of a stride, two 1x1 convolutions, a fixed bilinear 32x32/16 deconvolution cropped to the
image, softmax. There is no atrous pyramid in it. In ``deeplab_msra_dcn`` the 3x3 convolutions of
stage 5 are deformable.

``deeplabv2`` dilates stages 4 and 5 by 2 and 4 in place of their strides (output stride 8); four
atrous 3x3 classifiers at rates 6, 12, 18 and 24 (ASPP-L) are added up and resized to the image.

Parameters have the names of the published files.

Sources: He et al., "Deep Residual Learning", arXiv 1512.03385, and its released prototxt files;
Dai et al., "Deformable Convolutional Networks", arXiv 1703.06211; msracver/Deformable-ConvNets
deeplab/symbols; dongzhuoyao/mxnetgo example/deeplab; Chen et al., "DeepLab: Semantic Image
Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs", arXiv
1606.00915, and its released prototxt files.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.mxnet_import import mx
from export.symbols.networks import BACKBONES
from training.networks.layers import (
    Map,
    NetworkConfig,
    Norm,
    SizeRule,
)

STAGE_CHANNELS = (256, 512, 1024, 2048)
EPSILON = 1e-5
OFFSET_CHANNELS = 18  # y and x of nine taps
UNITS = {name: spec.blocks for name, spec in BACKBONES.items() if spec.bottleneck}


@dataclass(frozen=True)
class CaffeForm:
    """A form of Caffe's ResNet: how it is dilated.

    Attributes:
        strides, dilations: of stages 2 to 5; every 3x3 convolution of a stage is dilated.
        pool_padding: of the max pooling.
        deformable: the 3x3 convolutions of stage 5 are deformable.
    """

    strides: tuple[int, int, int, int]
    dilations: tuple[int, int, int, int]
    pool_padding: int = 0
    deformable: bool = False


@dataclass(frozen=True)
class CaffeLayers:
    """A builder of convolutions with normalisation under Caffe's names."""

    norm: Norm

    def conv_norm(
        self, x: mx.sym.Symbol, suffix: str, channels: int, kernel: int = 1, stride: int = 1,
        dilation: int = 1, deformable: bool = False,
    ) -> mx.sym.Symbol:  # fmt: skip
        settings = {
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
                data=x, offset=offset, name=name, num_deformable_group=1, **settings
            )
        else:
            x = mx.sym.Convolution(x, name=name, **settings)
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
    """Returns Caffe's names: ``3a 3b 3c``; stages 3 and 4 of networks deeper than 50 count ``3a 3b1
    3b2``.
    """
    if backbone == "resnet50" or units == 3:
        return [f"{stage}{letter}" for letter in "abcdef"[:units]]
    return [f"{stage}a", *(f"{stage}b{i}" for i in range(1, units))]


def caffe_resnet(data: mx.sym.Symbol, config: NetworkConfig, form: CaffeForm) -> mx.sym.Symbol:
    """Returns stem and stages 2 to 5. Raises ValueError for an unknown backbone."""
    backbone = config.backbone
    if backbone not in UNITS:
        raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(UNITS)}")
    layers = CaffeLayers(config.norm)
    x = mx.sym.Convolution(
        data, name="conv1", num_filter=config.scale(64), kernel=(7, 7), stride=(2, 2),
        pad=(3, 3), no_bias=True,
    )  # fmt: skip
    x = mx.sym.Activation(layers.normalise(x, "bn_conv1"), act_type="relu", name="conv1_relu")
    x = mx.sym.Pooling(
        x, name="pool1", pool_type="max", kernel=(3, 3), stride=(2, 2),
        pad=(form.pool_padding,) * 2, pooling_convention="full",
    )  # fmt: skip
    for index, (units, channels) in enumerate(zip(UNITS[backbone], STAGE_CHANNELS, strict=True)):
        stage = index + 2
        # Of a bottleneck's width, so that its quarter is a multiple of 8 too.
        channels = 4 * config.scale(channels // 4)
        for number, suffix in enumerate(unit_names(backbone, stage, units)):
            first = number == 0
            x = layers.unit(
                x, suffix, channels, form.strides[index] if first else 1, form.dilations[index],
                project=first, deformable=form.deformable and stage == 5,
            )  # fmt: skip
    return x


class CaffeSegmenter(mx.gluon.SymbolBlock):
    """A network of the Symbol API whose batch norms, gamma and beta too, are frozen.

    Biases learn twice as fast as weights; offsets of deformable convolutions start at zero, and
    the layers of ``small_start`` at deviations of 0.01.
    """

    def __init__(
        self, symbol: mx.sym.Symbol, inputs: list[str], small_start: tuple[str, ...]
    ) -> None:
        super().__init__(symbol, [mx.sym.var(name) for name in inputs])
        self.full_output = True
        for name, parameter in self.collect_params().items():
            if name.endswith(("_gamma", "_beta")):
                parameter.grad_req = "null"
            if name.endswith("_bias"):
                parameter.lr_mult = 2.0
            # A parameter of a symbol does not know what it is; its name does.
            if name.endswith(("_gamma", "_moving_var")):
                parameter.init = mx.init.One()
            elif name.endswith(("_beta", "_moving_mean", "_bias", "_offset_weight")):
                parameter.init = mx.init.Zero()
            if name in small_start:
                parameter.init = mx.init.Normal(0.01)


MSRA_SIZES = SizeRule(1, smallest=16)
FC6_CHANNELS = 1024


def msra_symbol(config: NetworkConfig, deformable: bool) -> mx.sym.Symbol:
    """Returns the symbol, which fits every size.

    Its inputs are ``data`` [N,3,H,W] and ``softmax_label`` (read in training only), its output is
    the class probabilities [N,C,H,W].
    """
    form = CaffeForm((1, 2, 2, 1), (1, 1, 1, 2), deformable=deformable)
    data, num_classes = mx.sym.var("data"), config.num_classes
    x = caffe_resnet(data, config, form)
    x = mx.sym.Convolution(x, name="fc6", num_filter=config.scale(FC6_CHANNELS), kernel=(1, 1))
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
    """MSRA's DeepLab: ``[N,3,H,W]`` float32, BGR minus the mean -> a tuple of one: probabilities
    ``[N,C,H,W]``.

    The deconvolution is bilinear and frozen. ``full_output = False`` gives the logits in place of
    the probabilities, at the same size: the deconvolution is part of the network.
    """

    def __init__(self, config: NetworkConfig, deformable: bool = False) -> None:
        symbol = msra_symbol(config, deformable)
        super().__init__(symbol, ["data", "softmax_label"], ("fc6_weight", "score_weight"))
        # In a tuple, so that it is not a child: its parameters are this block's.
        scores = symbol.get_internals()["croped_score_output"]
        self._scores = (mx.gluon.SymbolBlock(scores, [mx.sym.var("data")], self.params),)
        self.collect_params()["upsampling_weight"].grad_req = "null"
        self.collect_params()["upsampling_weight"].init = mx.init.Bilinear()

    def forward(self, x: Map, label: Map | None = None) -> Map:
        if not self.full_output:
            return (self._scores[0](x),)
        if label is None and isinstance(x, mx.sym.Symbol):
            label = mx.sym.var("softmax_label")
        elif label is None:
            label = mx.nd.zeros((x.shape[0], *x.shape[2:]), ctx=x.context)
        return (super().forward(x, label),)


# Multiples of 8 plus one are Caffe's own: the corners of all maps coincide there.
V2_SIZES = SizeRule(8, offsets=(0, 1), smallest=32)
ATROUS_RATES = (6, 12, 18, 24)
V2_FORM = CaffeForm((1, 2, 1, 1), (1, 1, 2, 4), pool_padding=1)


def deeplabv2_symbol(config: NetworkConfig) -> tuple[mx.sym.Symbol, list[str]]:
    """Returns ``data`` [N,3,H,W] -> logits [N,C,h,w] at 1/8, and the names of the classifiers."""
    x = caffe_resnet(mx.sym.var("data"), config, V2_FORM)
    names = [f"fc1_c{number}" for number in range(len(ATROUS_RATES))]
    scores = [
        mx.sym.Convolution(
            x, name=name, num_filter=config.num_classes, kernel=(3, 3), pad=(rate, rate),
            dilate=(rate, rate),
        )
        for name, rate in zip(names, ATROUS_RATES, strict=True)
    ]  # fmt: skip
    return mx.sym.add_n(*scores, name="fc1"), names


class DeepLabV2(CaffeSegmenter):
    """DeepLabV2: ``[N,3,H,W]`` float32, BGR minus the mean -> a tuple of one: logits ``[N,C,H,W]``.

    ``full_output = False`` (before ``hybridize``) leaves the final resize out: they are at 1/8.
    """

    def __init__(self, config: NetworkConfig) -> None:
        symbol, names = deeplabv2_symbol(config)
        super().__init__(symbol, ["data"], tuple(f"{name}_weight" for name in names))
        self.full = config.full

    def forward(self, x: Map) -> Map:
        scores = super().forward(x)
        if not self.full_output:
            return (scores,)
        namespace = mx.sym if isinstance(x, mx.sym.Symbol) else mx.nd
        return (namespace.contrib.BilinearResize2D(scores, **self.full),)
