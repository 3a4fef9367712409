"""Building blocks of the networks: legal sizes, normalisation, convolutions with normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from export.mxnet_import import mx


@dataclass(frozen=True)
class SizeRule:
    """A rule that allows heights and widths which are a multiple of ``multiple`` plus one of
    ``offsets``, and at least ``smallest``.
    """

    multiple: int
    offsets: tuple[int, ...] = (0,)
    smallest: int = 0

    def allows(self, length: int) -> bool:
        """Returns whether a height or width in pixels is legal."""
        return length >= max(self.smallest, 1) and length % self.multiple in self.offsets

    def nearest(self, length: int) -> int:
        """Returns the legal length nearest to ``length``."""
        smallest = max(self.smallest, self.multiple)
        candidates = [
            max(round((length - offset) / self.multiple), -(-(smallest - offset) // self.multiple))
            * self.multiple
            + offset
            for offset in self.offsets
        ]
        return min(candidates, key=lambda candidate: abs(candidate - length))

    def check(self, name: str, height: int, width: int) -> None:
        """Raises ValueError for an illegal size; the message names the nearest legal one."""
        if self.allows(height) and self.allows(width):
            return
        kinds = [f"multiples of {self.multiple}" + (f" plus {o}" if o else "")
                 for o in self.offsets]  # fmt: skip
        if self.multiple == 1:
            kinds = [f"of at least {self.smallest} pixels"]
        raise ValueError(
            f"{name} takes sizes that are {' or '.join(kinds)}, not {height}x{width}; "
            f"the nearest is {self.nearest(height)}x{self.nearest(width)}"
        )


nn = mx.gluon.nn

# What Gluon passes to ``hybrid_forward``: ``mx.nd`` or ``mx.sym``, and arrays or symbols. MXNet has
# no types.
Operators: TypeAlias = Any
Map: TypeAlias = Any

DROPOUT = 0.1


class SyncBatchNorm(mx.gluon.contrib.nn.SyncBatchNorm):
    """A ``SyncBatchNorm`` whose parameters have ``BatchNorm``'s names: one device reads what
    several have trained.
    """

    def _alias(self) -> str:
        return "batchnorm"


@dataclass(frozen=True)
class Norm:
    """The normalisation layer of a network; every layer of it gets the same arguments."""

    layer: Callable[..., mx.gluon.HybridBlock]
    momentum: float = 0.9
    epsilon: float = 1e-5
    num_devices: int | None = None

    def __call__(self, channels: int, **scope: str) -> mx.gluon.HybridBlock:
        # SyncBatchNorm waits for this many devices; the default is all visible ones.
        devices = {} if self.num_devices is None else {"num_devices": self.num_devices}
        return self.layer(
            in_channels=channels, momentum=self.momentum, epsilon=self.epsilon, **devices, **scope
        )


@dataclass(frozen=True)
class NetworkConfig:
    """The configuration that every network is built from; networks ignore what they do not have.

    Attributes:
        height, width: of the images, exactly, in pixels.
        channel_multiplier: width of the backbone and the layers behind it (``--width``).
        aux: an auxiliary head on stage 3.
        output_stride: of the backbone, 8 or 16.
    """

    backbone: str
    num_classes: int
    height: int
    width: int
    norm: Norm
    channel_multiplier: float = 1.0
    aux: bool = False
    output_stride: int = 16

    @property
    def full(self) -> dict[str, int]:
        """Returns the images' size as the arguments of a resize."""
        return {"height": self.height, "width": self.width}

    def scale(self, channels: int) -> int:
        """Returns ``channels`` times the multiplier; see :func:`scale_channels`."""
        return scale_channels(channels, self.channel_multiplier)


def scale_channels(channels: int, width: float) -> int:
    """Returns ``channels`` times ``width``, to a multiple of 8 (vector width), at least 8."""
    return max(8, round(channels * width / 8) * 8)


def conv_norm(
    in_channels: int, channels: int, kernel: int, norm: Norm, prefix: str, dilation: int = 1
) -> mx.gluon.HybridBlock:
    """Returns ``{0: convolution, 1: normalisation}``, the layout of GluonCV's checkpoints."""
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
) -> mx.gluon.HybridBlock:
    """Returns ``{0: convolution, 1: normalisation, 2: ReLU}``."""
    sequence = conv_norm(in_channels, channels, kernel, norm, prefix, dilation)
    with sequence.name_scope():
        sequence.add(nn.Activation("relu"))
    return sequence


class ConvBnRelu(mx.gluon.HybridBlock):
    """A convolution, its normalisation and ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, norm: Norm, **scope: str
    ) -> None:
        super().__init__(**scope)
        with self.name_scope():
            self.conv = nn.Conv2D(
                channels, kernel, stride, kernel // 2, in_channels=in_channels, use_bias=False
            )
            self.bn = norm(channels)

    def hybrid_forward(self, F: Operators, x: Map) -> Map:
        return F.relu(self.bn(self.conv(x)))
