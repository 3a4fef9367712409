"""PSPNet: pyramid pooling on a dilated ResNet, at 1/8; ICNet has pyramid pooling in its middle.

``PyramidSum`` and ``CaffePyramidSum`` are the forms without convolutions of ICNet's paper.

Source: Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105; gluon-cv
model_zoo/pspnet.py, whose parameter names and outputs this network has; hszhao/ICNet
evaluation/prototxt for the sums.
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

PYRAMID_BINS = (1, 2, 3, 6)


class PyramidPooling(mx.gluon.HybridBlock):
    """Pyramid pooling: ``[N,C,h,w]`` -> ``[N,2C,h,w]`` by adaptive average pooling to 1, 2, 3 and 6
    bins, 1x1 convolution (ReLU if ``activated``), upsampling, concatenation behind the input.
    """

    def __init__(
        self,
        in_channels: int,
        height: int,
        width: int,
        norm: Norm,
        activated: bool = True,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}
        make = conv_norm_relu if activated else conv_norm
        with self.name_scope():
            for number in range(1, len(PYRAMID_BINS) + 1):
                branch = make(in_channels, in_channels // 4, 1, norm, f"conv{number}_")
                setattr(self, f"conv{number}", branch)

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        outputs = [x]
        for number, bins in enumerate(PYRAMID_BINS, start=1):
            pooled = F.contrib.AdaptiveAvgPooling2D(x, output_size=bins)
            branch = getattr(self, f"conv{number}")(pooled)
            outputs.append(F.contrib.BilinearResize2D(branch, **self.size))
        return F.concat(*outputs, dim=1)


class PyramidHead(mx.gluon.HybridBlock):
    """The head: pyramid pooling and the 3x3 convolution after it; a 1x1 classifier if
    ``num_classes`` is given.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        height: int,
        width: int,
        norm: Norm,
        num_classes: int | None = None,
        activated: bool = True,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            self.psp = PyramidPooling(in_channels, height, width, norm, activated, prefix="psp_")
            self.block = conv_norm(in_channels * 2, channels, 3, norm, "block_")
            with self.block.name_scope():
                self.block.add(nn.Activation("relu"), nn.Dropout(DROPOUT))
                if num_classes is not None:
                    self.block.add(
                        nn.Conv2D(num_classes, 1, in_channels=channels, prefix="classifier_")
                    )

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return self.block(self.psp(x))


class PyramidSum(mx.gluon.HybridBlock):
    """Pyramid pooling without convolutions: ``[N,C,h,w]`` plus its adaptive averages, enlarged."""

    def __init__(self, height: int, width: int, **scope: str) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        total = x
        for bins in PYRAMID_BINS:
            pooled = F.contrib.AdaptiveAvgPooling2D(x, output_size=bins)
            total = total + F.contrib.BilinearResize2D(pooled, **self.size)
        return total


class CaffePyramidSum(mx.gluon.HybridBlock):
    """A ``PyramidSum`` with Caffe's windows of one size (``fixed_window``)."""

    def __init__(self, height: int, width: int, **scope: str) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}
        self.pools = []
        for bins in PYRAMID_BINS:
            windows = fixed_window(height, bins), fixed_window(width, bins)
            kernel, stride = zip(*windows, strict=True)
            pool = nn.AvgPool2D(kernel, stride)
            self.register_child(pool, f"pool{bins}")
            self.pools.append(pool)

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        total = x
        for pool in self.pools:
            total = total + F.contrib.BilinearResize2D(pool(x), **self.size)
        return total


# Strides at 33 rows, for an input of 1025: those of the published prototxt.
CAFFE_LENGTH = 33
CAFFE_STRIDES = {1: 32, 2: 16, 3: 10, 6: 5}


def fixed_window(length: int, bins: int) -> tuple[int, int]:
    """Returns (kernel, stride) of ``bins`` equal windows over ``length``, in the proportions of
    Caffe's ICNet, whose maps are 33x65.

    Raises ValueError where the windows do not fit.
    """
    stride = max(1, CAFFE_STRIDES[bins] * (length - 1) // (CAFFE_LENGTH - 1))
    kernel = length - (bins - 1) * stride
    if kernel < 1:
        raise ValueError(f"{bins} windows do not fit a map {length} wide")
    return kernel, stride


SIZES = SizeRule(STRIDE)
HEAD_CHANNELS = 512


class PSPNet(DilatedSegmenter):
    """PSPNet: ``[N,3,H,W]`` -> logits ``[N,C,H,W]``, and those of the auxiliary head if ``aux``."""

    def make_head(self, config: NetworkConfig) -> PyramidHead:
        return PyramidHead(
            self.stage_channels[3],
            config.scale(HEAD_CHANNELS),
            config.height // STRIDE,
            config.width // STRIDE,
            config.norm,
            config.num_classes,
            prefix="head_",
        )
