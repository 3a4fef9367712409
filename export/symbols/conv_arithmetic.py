"""Kernels, strides, paddings and output lengths of windows, as MXNet reckons them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbols.graph import Node

Shape = tuple[int, ...]
# A length that a file may name; no image is larger.
MAX_WINDOW = 1 << 16


def pair(node: Node, key: str, default: Shape, least: int = 0) -> Shape:
    """Returns an attribute for height and width. Raises InvalidSymbol unless it is two integers of
    at least ``least``."""
    values = node.integers(key, default)
    if len(values) != 2 or min(values) < least:
        raise InvalidSymbol(
            f"{node.name}: {key}={values} is not valid: expected two integers of at least {least}"
        )
    return values


def pooled_length(length: int, kernel: int, stride: int, pad: int, full: bool) -> int:
    """Returns output length of a pooling window along one axis."""
    span = length + 2 * pad - kernel
    return 1 + (-(-span // stride) if full else span // stride)


def convolution_arithmetic(node: Node) -> tuple[Shape, Shape, Shape, Shape]:
    """Returns kernel, stride, dilation and padding of a convolution, an integer an axis each.

    Raises UnsupportedOperator but for 2-D NCHW, and plain convolutions of 1-D NCW.
    """
    kernel = node.integers("kernel")
    layout = {2: "NCHW", 1: "NCW"}.get(len(kernel), "")
    plain = node.op in ("Convolution", "Convolution_v1")
    if not layout or node.text("layout", layout) != layout or (layout == "NCW" and not plain):
        raise UnsupportedOperator(
            f"{node.name}: only 2-D NCHW convolutions, not kernel {kernel} layout"
            f" {node.text('layout', 'NCHW')}"
        )
    ones = (1,) * len(kernel)
    stride = node.integers("stride", ones)
    dilate = node.integers("dilate", ones)
    pad = node.integers("pad", (0,) * len(kernel))
    check_window(node, (kernel, stride, dilate), pad)
    return kernel, stride, dilate, pad


def check_window(node: Node, positive: Sequence[Shape], pad: Shape) -> None:
    """Raises InvalidSymbol where a window has lengths that none can have, or not one an axis."""
    lengths = [length for part in positive for length in part]
    even = all(len(part) == len(pad) for part in positive)
    if not even or min(lengths) < 1 or min(pad) < 0 or max(*lengths, *pad) > MAX_WINDOW:
        raise InvalidSymbol(
            f"{node.name} ({node.op}) has the kernel, stride or dilation {list(positive)} and the"
            f" padding {pad}: expected two lengths each, from 1 (the padding from 0) to"
            f" {MAX_WINDOW}"
        )


def convolved_lengths(node: Node, lengths: Sequence[int]) -> Shape:
    """Returns the lengths (height and width) that a convolution gives."""
    kernel, stride, dilate, pad = convolution_arithmetic(node)
    if len(kernel) != len(lengths):
        raise InvalidSymbol(f"{node.name}: a kernel {kernel} for a map of {tuple(lengths)}")
    return tuple(
        (length + 2 * pad[i] - dilate[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(lengths)
    )


@dataclass(frozen=True)
class Deconvolution:
    """The arithmetic of a transposed convolution.

    ``adjust`` are the rows and columns added at the end.
    """

    kernel: Shape
    stride: Shape
    dilate: Shape
    pad: Shape
    adjust: Shape
    lengths: Shape


def deconvolution_arithmetic(node: Node, lengths: Sequence[int]) -> Deconvolution:
    """Returns the arithmetic for an input of ``lengths`` (height, width).

    A ``target_shape`` overrides ``pad`` and ``adj``, as in ``deconvolution-inl.h``. Raises
    InvalidSymbol where it is too large.
    """
    kernel, stride, dilate, pad = convolution_arithmetic(node)
    adjust = pair(node, "adj", (0, 0))
    target = pair(node, "target_shape", (0, 0))
    spans = [stride[i] * (lengths[i] - 1) + dilate[i] * (kernel[i] - 1) + 1 for i in range(2)]
    if any(target):
        if any(span < wanted for span, wanted in zip(spans, target, strict=True)):
            raise InvalidSymbol(f"{node.name}: target_shape {target} is larger than {spans}")
        excess = [spans[i] - target[i] for i in range(2)]
        adjust = tuple(e % 2 for e in excess)
        pad = tuple((e + 1) // 2 for e in excess)
    sizes = tuple(spans[i] - 2 * pad[i] + adjust[i] for i in range(2))
    return Deconvolution(kernel, stride, dilate, pad, adjust, sizes)


def bilinear_upsampling_arithmetic(scale: int) -> tuple[int, int]:
    """Returns kernel and padding of ``UpSampling``'s bilinear deconvolution, whose stride is
    ``scale``."""
    return 2 * scale - scale % 2, scale // 2
