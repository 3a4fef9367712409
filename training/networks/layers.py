"""Layers that the networks share: normalisation, convolution with normalisation, separable one."""

from __future__ import annotations

from dataclasses import dataclass

from export.mxnet_import import mx

nn = mx.gluon.nn

DROPOUT = 0.1


class SyncBatchNorm(mx.gluon.contrib.nn.SyncBatchNorm):
    """Its parameters have ``BatchNorm``'s names: one device reads what several have trained."""

    def _alias(self) -> str:
        return "batchnorm"


@dataclass(frozen=True)
class Norm:
    """The normalisation layer of a network; every layer of it gets the same arguments."""

    layer: type
    momentum: float = 0.9
    epsilon: float = 1e-5
    num_devices: int | None = None

    def __call__(self, channels: int, **scope: str) -> mx.gluon.HybridBlock:
        if self.num_devices is None:
            return self.layer(
                in_channels=channels, momentum=self.momentum, epsilon=self.epsilon, **scope
            )
        # SyncBatchNorm waits for as many devices as it is told; the default is all visible ones.
        return self.layer(
            in_channels=channels,
            momentum=self.momentum,
            epsilon=self.epsilon,
            num_devices=self.num_devices,
            **scope,
        )


def scale_channels(channels: int, width: float) -> int:
    """``channels`` times ``width``, to a multiple of 8 (vector width), at least 8."""
    return max(8, round(channels * width / 8) * 8)


def conv_norm(
    in_channels: int, channels: int, kernel: int, norm: Norm, prefix: str, dilation: int = 1
) -> nn.HybridSequential:
    """``{0: convolution, 1: normalisation}``, the layout of GluonCV's checkpoints."""
    sequence = nn.HybridSequential(prefix=prefix)
    padding = dilation * (kernel // 2)
    with sequence.name_scope():
        sequence.add(
            nn.Conv2D(
                channels, kernel, 1, padding, dilation, in_channels=in_channels, use_bias=False
            ),
            norm(channels),
        )
    return sequence


def conv_norm_relu(
    in_channels: int, channels: int, kernel: int, norm: Norm, prefix: str, dilation: int = 1
) -> nn.HybridSequential:
    """``{0: convolution, 1: normalisation, 2: ReLU}``."""
    sequence = conv_norm(in_channels, channels, kernel, norm, prefix, dilation)
    with sequence.name_scope():
        sequence.add(nn.Activation("relu"))
    return sequence


class ConvBnRelu(mx.gluon.HybridBlock):
    """Convolution, normalisation, ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, norm: Norm, **scope: str
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            self.conv = nn.Conv2D(
                channels, kernel, stride, kernel // 2, in_channels=in_channels, use_bias=False
            )
            self.bn = norm(channels)

    def hybrid_forward(self, F, x):  # type: ignore[no-untyped-def]
        return F.relu(self.bn(self.conv(x)))
