"""Pyramid pooling, the head of PSPNet and the middle of ICNet.

Source: Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105; gluon-cv
model_zoo/pspnet.py.
"""

from __future__ import annotations

from training.mxnet_import import mx
from training.networks.layers import DROPOUT, Norm, conv_norm, conv_norm_relu

nn = mx.gluon.nn

PYRAMID_BINS = (1, 2, 3, 6)


class PyramidPooling(mx.gluon.HybridBlock):
    """``[N,C,h,w]`` -> ``[N,2C,h,w]``: adaptive average pooling to 1, 2, 3 and 6 bins, 1x1
    convolution, upsampling, concatenation behind the input."""

    def __init__(self, in_channels: int, height: int, width: int, norm: Norm, **scope: str) -> None:
        super().__init__(**scope)
        self.size = {"height": height, "width": width}
        with self.name_scope():
            for number in range(1, len(PYRAMID_BINS) + 1):
                branch = conv_norm_relu(in_channels, in_channels // 4, 1, norm, f"conv{number}_")
                setattr(self, f"conv{number}", branch)

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        outputs = [x]
        for number, bins in enumerate(PYRAMID_BINS, start=1):
            pooled = F.contrib.AdaptiveAvgPooling2D(x, output_size=bins)
            branch = getattr(self, f"conv{number}")(pooled)
            outputs.append(F.contrib.BilinearResize2D(branch, **self.size))
        return F.concat(*outputs, dim=1)


class PyramidHead(mx.gluon.HybridBlock):
    """Pyramid pooling and the 3x3 convolution after it; a 1x1 classifier where ``num_classes`` is
    given."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        height: int,
        width: int,
        norm: Norm,
        num_classes: int | None = None,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            self.psp = PyramidPooling(in_channels, height, width, norm, prefix="psp_")
            self.block = conv_norm(in_channels * 2, channels, 3, norm, "block_")
            with self.block.name_scope():
                self.block.add(nn.Activation("relu"), nn.Dropout(DROPOUT))
                if num_classes is not None:
                    self.block.add(
                        nn.Conv2D(num_classes, 1, in_channels=channels, prefix="classifier_")
                    )

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        return self.block(self.psp(x))
