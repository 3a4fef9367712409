"""Convolutions as ONNX nodes: plain, transposed and deformable, and what enlarges maps.

``_contrib_DeformableConvolution`` becomes DeformConv (opset 19). The two agree inside the map only.
Outside of it MXNet reads 0, and from the last row's centre to the border it repeats that row; ONNX
fades to 0 over one pixel on all sides. So the offsets are rewritten: a position below 0 or from n
on goes to -2, where ONNX reads 0 too, and one between n - 1 and n goes to n - 1. Source: MXNet
``contrib/nn/deformable_im2col.h``; Dai et al., "Deformable Convolutional Networks", arXiv
1703.06211.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes, resize_nodes
from export.symbols.conv_arithmetic import (
    bilinear_upsampling_arithmetic,
    convolution_arithmetic,
    deconvolution_arithmetic,
)
from export.symbols.shape_rules import MODULATED

DEFORMABLE_OPSET = 19
DEFORMABLE_IR_VERSION = 9
_OUTSIDE = -2.0


def convolution(context: LoweringContext) -> Lowering:
    """Returns a Conv."""
    kernel, stride, dilate, pad = convolution_arithmetic(context.node)
    nodes = Nodes(context)
    return nodes.end(
        nodes.add(
            "Conv", context.inputs, kernel_shape=kernel, strides=stride, dilations=dilate,
            pads=pad * 2, group=context.node.integer("num_group", 1),
        )
    )  # fmt: skip


def deconvolution(context: LoweringContext) -> Lowering:
    """Returns a ConvTranspose; MXNet's ``adj`` is its output padding."""
    window = deconvolution_arithmetic(context.node, context.input_shapes[0][2:])
    nodes = Nodes(context)
    return nodes.end(
        nodes.add(
            "ConvTranspose", context.inputs, kernel_shape=window.kernel, strides=window.stride,
            dilations=window.dilate, pads=window.pad * 2, output_padding=window.adjust,
            group=context.node.integer("num_group", 1),
        )
    )  # fmt: skip


def upsampling(context: LoweringContext) -> Lowering:
    """Returns a Resize (nearest) of each input, concatenated or added, or a deconvolution a channel
    with the symbol's own weights (bilinear)."""
    node, nodes = context.node, Nodes(context)
    scale = node.integer("scale", 0)
    if node.text("sample_type", "nearest") == "bilinear":
        kernel, pad = bilinear_upsampling_arithmetic(scale)
        return nodes.end(
            nodes.add(
                "ConvTranspose", context.inputs, kernel_shape=[kernel] * 2, strides=[scale] * 2,
                pads=[pad] * 4, group=context.shape[1],
            )
        )  # fmt: skip
    large = []
    for source, shape in zip(context.inputs, context.input_shapes, strict=True):
        steps = [out / n for out, n in zip(context.shape[2:], shape[2:], strict=True)]
        scales = nodes.values(np.array([1, 1, *steps], np.float32), "scales")
        large.append(
            nodes.add(
                "Resize", [source, "", scales], mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )
        )  # fmt: skip
    if len(large) == 1:
        return nodes.end(large[0])
    if node.text("multi_input_mode", "concat") == "sum":
        return nodes.end(nodes.add("Sum", large))
    return nodes.end(nodes.add("Concat", large, axis=1))


def resizing(context: LoweringContext) -> Lowering:
    """Returns a Resize (linear); nothing where the size stays."""
    aligned = context.node.flag("align_corners", True)
    nodes, constants = resize_nodes(
        context.name, context.inputs[0], context.input_shapes[0][2:], context.shape[2:], aligned
    )
    return Lowering(nodes, context.name if nodes else context.inputs[0], constants)


def deformable_convolution(context: LoweringContext) -> Lowering:
    """Returns a DeformConv of the input at the rewritten positions.

    A modulated one weighs its taps, and fades at the border as ONNX does: its positions stay.
    Raises UnsupportedOperator where the offsets have another number of channels than two a tap.
    """
    node, nodes = context.node, Nodes(context)
    kernel, stride, dilate, pad = convolution_arithmetic(node)
    groups, taps = node.integer("num_deformable_group", 1), kernel[0] * kernel[1]
    image, offset, *rest = context.inputs
    masks = [rest.pop(0)] if node.op == MODULATED else []
    channels = [shape[1] for shape in context.input_shapes[1 : 2 + len(masks)]]
    if channels != [2 * groups * taps, groups * taps][: len(channels)]:
        raise UnsupportedOperator(
            f"{context.name}: {channels[0]} offset channels for {groups} groups of"
            f" {kernel[0]}x{kernel[1]} taps"
        )
    if not masks:
        lengths, outputs = context.input_shapes[0][2:], context.shape[2:]
        limits = np.tile(np.array(lengths, np.float32), groups * taps).reshape(1, -1, 1, 1)
        start = tap_positions(kernel, stride, dilate, pad, outputs)
        base = nodes.values(np.tile(start, (1, groups, 1, 1)), "base")
        position = nodes.add("Add", [offset, base], "position")
        before = nodes.add("Less", [position, nodes.number(0)], "before")
        behind = nodes.add("GreaterOrEqual", [position, nodes.values(limits, "limit")], "behind")
        outside = nodes.add("Or", [before, behind], "is_outside")
        inside = nodes.add("Min", [position, nodes.values(limits - 1, "last")], "inside")
        moved = nodes.add("Where", [outside, nodes.number(_OUTSIDE), inside], "moved")
        offset = nodes.add("Sub", [moved, base], "rewritten_offset")
    weight, *bias = rest
    return nodes.end(
        nodes.add(
            "DeformConv", [image, weight, offset, *(bias or [""] * len(masks)), *masks],
            kernel_shape=kernel, strides=stride, dilations=dilate, pads=pad * 2,
            group=node.integer("num_group", 1), offset_group=groups,
        )
    )  # fmt: skip


def tap_positions(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilate: tuple[int, ...],
    pad: tuple[int, ...],
    outputs: tuple[int, ...],
) -> NDArray[np.float32]:
    """Returns float32 [1, 2 * taps, h, w]: where each tap reads without offset, y and x in turn."""
    taps_y, taps_x = np.meshgrid(*(np.arange(n) for n in kernel), indexing="ij")
    rows, columns = (np.arange(outputs[i]) * stride[i] - pad[i] for i in range(2))
    positions = np.zeros((kernel[0] * kernel[1], 2, *outputs), np.float32)
    positions[:, 0] = (taps_y.reshape(-1, 1) * dilate[0] + rows)[:, :, None]
    positions[:, 1] = (taps_x.reshape(-1, 1) * dilate[1] + columns)[:, None, :]
    return positions.reshape(1, -1, *outputs)
