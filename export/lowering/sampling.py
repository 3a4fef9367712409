"""Maps read at computed positions, as ONNX nodes: grids, samplers, and windows as columns.

A grid is [N, 2, h, w], x before y, from -1 to 1 between the centres of the outermost pixels; what
lies outside of the map reads 0. So it is for GridSample with aligned corners, whose grids are
[N, h, w, 2].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.lowering.context import Lowering, LoweringContext, Nodes
from export.symbols.conv_arithmetic import convolution_arithmetic, pair


def grid(context: LoweringContext) -> Lowering:
    """Returns the positions that an affine transformation or a flow in pixels leads to."""
    nodes = Nodes(context)
    if context.node.text("transform_type", "") == "affine":
        return nodes.end(_affine(nodes, context.inputs[0], context.shape[2:]))
    height, width = context.shape[2:]
    halves = np.array([(width - 1) / 2, (height - 1) / 2], np.float32).reshape(1, 2, 1, 1)
    moved = nodes.add("Add", [context.inputs[0], nodes.values(_pixels(height, width), "pixels")])
    shares = nodes.add("Div", [moved, nodes.values(halves, "halves")])
    return nodes.end(nodes.add("Sub", [shares, nodes.number(1)]))


def sampler(context: LoweringContext) -> Lowering:
    """Returns a GridSample; ``SpatialTransformer`` makes its grid of a transformation."""
    nodes = Nodes(context)
    image, places = context.inputs
    if context.node.op == "SpatialTransformer":
        places = _affine(nodes, places, context.shape[2:])
    turned = nodes.add("Transpose", [places], perm=[0, 2, 3, 1])
    return nodes.end(nodes.add("GridSample", [image, turned], align_corners=1))


def _affine(nodes: Nodes, transformation: str, size: tuple[int, ...]) -> str:
    height, width = size
    positions = _pixels(height, width)[0].reshape(2, -1)
    longest = np.array([[width - 1], [height - 1]], np.float32)
    positions = -1 + 2 * positions / np.maximum(longest, 1)
    ones = np.ones((1, positions.shape[1]), np.float32)
    base = nodes.values(np.concatenate([positions, ones]).astype(np.float32), "positions")
    matrices = nodes.reshape(transformation, [-1, 2, 3], "matrices")
    return nodes.reshape(nodes.add("MatMul", [matrices, base]), [-1, 2, height, width])


def _pixels(height: int, width: int) -> NDArray[np.float32]:
    """Returns float32 [1, 2, height, width]: column and row of every pixel."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    pixels: NDArray[np.float32] = np.stack([columns, rows])[None].astype(np.float32)
    return pixels


def columns(context: LoweringContext) -> Lowering:
    """Returns ``im2col``: each tap of a window as a channel, by a convolution that copies it."""
    kernel, stride, dilate, pad = convolution_arithmetic(context.node)
    channels, nodes = context.input_shapes[0][1], Nodes(context)
    weight = nodes.values(_copying(channels, kernel), "taps")
    taps = nodes.add(
        "Conv", [context.inputs[0], weight], kernel_shape=kernel, strides=stride, dilations=dilate,
        pads=pad * 2, group=channels,
    )  # fmt: skip
    return nodes.end(nodes.reshape(taps, context.open_shapes[0]))


def image_of_columns(context: LoweringContext) -> Lowering:
    """Returns ``col2im``: the taps back at their places, added where windows overlap."""
    node, nodes = context.node, Nodes(context)
    kernel, stride, dilate, pad = convolution_arithmetic(node)
    channels, size = context.shape[1], pair(node, "output_size", (), 1)
    spans = [dilate[i] * (kernel[i] - 1) + 1 for i in range(2)]
    counts = [(size[i] + 2 * pad[i] - spans[i]) // stride[i] + 1 for i in range(2)]
    # Rows and columns behind the last window.
    rest = [size[i] - ((counts[i] - 1) * stride[i] + spans[i] - 2 * pad[i]) for i in range(2)]
    taps = nodes.reshape(context.inputs[0], [-1, context.input_shapes[0][1], *counts])
    weight = nodes.values(_copying(channels, kernel), "taps")
    return nodes.end(
        nodes.add(
            "ConvTranspose", [taps, weight], kernel_shape=kernel, strides=stride,
            dilations=dilate, pads=pad * 2, output_padding=rest, group=channels,
        )
    )  # fmt: skip


def _copying(channels: int, kernel: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns float32 [channels * taps, 1, *kernel]: one weight of 1 a filter."""
    taps = int(np.prod(kernel))
    return np.tile(np.eye(taps, dtype=np.float32), (channels, 1)).reshape(-1, 1, *kernel)
