"""Caffe's ResNet with the Symbol API: what MSRA's DeepLab and DeepLabV2 stand on.

7x7 stem, stride in the first 1x1 convolution of a stage, max pooling that rounds up, bottlenecks
under Caffe's names. Batch norms keep ImageNet's statistics, in training too.

Source: He et al., "Deep Residual Learning", arXiv 1512.03385, and its released prototxt files.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.mxnet_import import mx
from export.symbols.networks import BACKBONES
from training.networks.layers import Norm, scale_channels

STAGE_CHANNELS = (256, 512, 1024, 2048)
EPSILON = 1e-5
OFFSET_CHANNELS = 18  # y and x of nine taps
UNITS = {name: spec.blocks for name, spec in BACKBONES.items() if spec.bottleneck}


@dataclass(frozen=True)
class CaffeForm:
    """How a Caffe ResNet is dilated.

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


def caffe_resnet(
    data: mx.sym.Symbol, backbone: str, norm: Norm, width: float, form: CaffeForm
) -> mx.sym.Symbol:
    """Stem and stages 2 to 5. Raises ValueError for an unknown backbone."""
    if backbone not in UNITS:
        raise ValueError(f"unknown backbone {backbone!r}; known: {', '.join(UNITS)}")
    layers = CaffeLayers(norm)
    x = mx.sym.Convolution(
        data, name="conv1", num_filter=scale_channels(64, width), kernel=(7, 7), stride=(2, 2),
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
        channels = 4 * scale_channels(channels // 4, width)
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
