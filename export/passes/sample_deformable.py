"""Writes deformable convolutions as ``GridSample`` and a 1x1 convolution. Exact up to rounding.

A deformable convolution reads each tap at a place of its own, bilinearly, and multiplies what it
read by the weights: sampling all taps side by side leaves a convolution of one position. DeformConv
needs opset 19 and ONNX Runtime has kernels for it only since 2026; GridSample is of opset 16. The
sampled map holds as many maps as there are taps. Positions go through GridSample's -1 to 1, which
moves them by about 1e-7 of the map's length. Source: onnx/docs/Operators.md, DeformConv-19 and
GridSample-16; Dai et al., "Deformable Convolutional Networks", arXiv 1703.06211.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from export.errors import UnsupportedOperator
from export.lowering.convolutions import tap_positions
from export.passes.onnx_graph import OnnxGraph, integers, make_node, rewrite_at


@rewrite_at("DeformConv")
def sample_deformable(graph: OnnxGraph, node: NodeProto) -> None:
    """Writes a DeformConv as sampling and a convolution; the opset stays.

    Raises UnsupportedOperator where ONNX does not infer the sizes of its inputs.
    """
    image, weight_name, offset = node.input[:3]
    bias, mask = (node.input[i] if len(node.input) > i else "" for i in (3, 4))
    weight = graph.constant(weight_name)
    image_shape, places = graph.shape(image), graph.shape(offset)
    if weight is None or len(image_shape) != 4 or not all((*image_shape[1:], *places[2:])):
        raise UnsupportedOperator(
            f"{node.name}: sizes are not static, so it cannot be written for opset 17; leave"
            " --opset out"
        )
    channels, height, width = image_shape[1:]
    rows, columns = places[2:]
    filters, inner, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    groups = integers(node, "offset_group", (1,))[0]
    stride, dilation = integers(node, "strides", (1, 1)), integers(node, "dilations", (1, 1))
    pad = integers(node, "pads", (0, 0))[:2]
    base = tap_positions(tuple(kernel), stride, dilation, pad, (rows, columns))
    # x before y, and pixel p of n at (2 p + 1) / n - 1: GridSample's places.
    swapped = np.arange(2 * groups * taps).reshape(-1, 2)[:, ::-1].reshape(-1)
    lengths = np.tile([width, height], groups * taps).reshape(1, -1, 1, 1).astype(np.float64)
    steps: list[NodeProto] = []

    def constant(name: str, values: object, kind: type = np.int64) -> str:
        graph.set_constant(f"{node.name}_{name}", np.array(values, kind))
        return f"{node.name}_{name}"

    def add(op: str, name: str, *inputs: str, **attributes: object) -> str:
        steps.append(make_node(op, inputs, f"{node.name}_{name}", **attributes))
        return f"{node.name}_{name}"

    def reshape(name: str, tensor: str, *shape: int) -> str:
        return add("Reshape", name, tensor, constant(f"{name}_shape", shape))

    start = np.tile(base, (1, groups, 1, 1))[:, swapped].astype(np.float64)
    grid = add("Gather", "offset_xy", offset, constant("xy", swapped), axis=1)
    grid = add("Mul", "offset_share", grid, constant("share", 2 / lengths, np.float32))
    grid = add("Add", "places", grid, constant("start", (2 * start + 1) / lengths - 1, np.float32))
    grid = reshape("places_split", grid, -1, taps, 2, rows * columns)
    grid = add("Transpose", "places_moved", grid, perm=[0, 1, 3, 2])
    grid = reshape("grid", grid, -1, taps * rows, columns, 2)
    if groups > 1:
        image = reshape("grouped", image, -1, channels // groups, height, width)
    sampled = add("GridSample", "sampled", image, grid, align_corners=0)
    if mask:
        share = reshape("mask_grouped", mask, -1, 1, taps * rows, columns)
        sampled = add("Mul", "sampled_masked", sampled, share)
    sampled = reshape("taps", sampled, -1, channels * taps, rows, columns)
    flat = constant("pointwise", weight.reshape(filters, inner * taps, 1, 1), np.float32)
    steps.append(
        helper.make_node(
            "Conv",
            [sampled, flat, *([bias] if bias else [])],
            list(node.output),
            name=node.name,
            kernel_shape=[1, 1],
            group=channels // inner,
        )
    )
    graph.insert_after(node, steps)
    graph.remove(node)
