"""Transposed and deformable convolutions as ONNX nodes.

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
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, constant
from export.symbols.conv_arithmetic import (
    bilinear_upsampling_arithmetic,
    convolution_arithmetic,
    deconvolution_arithmetic,
)

DEFORMABLE_OPSET = 19
DEFORMABLE_IR_VERSION = 9
_OUTSIDE = -2.0


def deconvolution(context: LoweringContext) -> Lowering:
    """Returns a ConvTranspose; MXNet's ``adj`` is its output padding."""
    window = deconvolution_arithmetic(context.node, context.input_shapes[0][2:])
    node = helper.make_node(
        "ConvTranspose",
        list(context.inputs),
        [context.name],
        name=context.name,
        kernel_shape=window.kernel,
        strides=window.stride,
        dilations=window.dilate,
        pads=window.pad * 2,
        output_padding=window.adjust,
        group=context.node.integer("num_group", 1),
    )
    return Lowering((node,), context.name)


def upsampling(context: LoweringContext) -> Lowering:
    """Returns a Resize (nearest), or a deconvolution a channel with the symbol's own weights
    (bilinear)."""
    scale = context.node.integer("scale", 0)
    if context.node.text("sample_type", "nearest") == "nearest":
        scales = f"{context.name}_scales"
        node = helper.make_node(
            "Resize", [context.inputs[0], "", scales], [context.name], name=context.name,
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
        values = np.array([1, 1, scale, scale], np.float32)
        return Lowering((node,), context.name, (constant(scales, values),))
    kernel, pad = bilinear_upsampling_arithmetic(scale)
    node = helper.make_node(
        "ConvTranspose", list(context.inputs), [context.name], name=context.name,
        kernel_shape=[kernel] * 2, strides=[scale] * 2, pads=[pad] * 4, group=context.shape[1],
    )  # fmt: skip
    return Lowering((node,), context.name)


def deformable_convolution(context: LoweringContext) -> Lowering:
    """Returns the DeformConv of the input at the rewritten positions. Raises UnsupportedOperator
    where the offsets have another number of channels than two a tap."""
    kernel, stride, dilate, pad = convolution_arithmetic(context.node)
    groups = context.node.integer("num_deformable_group", 1)
    if context.input_shapes[1][1] != 2 * groups * kernel[0] * kernel[1]:
        raise UnsupportedOperator(
            f"{context.name}: {context.input_shapes[1][1]} offset channels for {groups} groups of"
            f" {kernel[0]}x{kernel[1]} taps"
        )
    lengths, outputs = context.input_shapes[0][2:], context.shape[2:]
    taps = kernel[0] * kernel[1]
    limits = np.tile(np.array(lengths, np.float32), groups * taps).reshape(1, -1, 1, 1)
    base = np.tile(tap_positions(kernel, stride, dilate, pad, outputs), (1, groups, 1, 1))
    names = {
        part: f"{context.name}_{part}" for part in ("base", "limit", "last", "zero", "outside")
    }
    constants = (
        constant(names["base"], base),
        constant(names["limit"], limits),
        constant(names["last"], limits - 1),
        constant(names["zero"], np.array(0, np.float32)),
        constant(names["outside"], np.array(_OUTSIDE, np.float32)),
    )
    steps = [
        ("Add", [context.inputs[1], names["base"]], "position"),
        ("Less", [f"{context.name}_position", names["zero"]], "before"),
        ("GreaterOrEqual", [f"{context.name}_position", names["limit"]], "behind"),
        ("Or", [f"{context.name}_before", f"{context.name}_behind"], "is_outside"),
        ("Min", [f"{context.name}_position", names["last"]], "inside"),
        (
            "Where",
            [f"{context.name}_is_outside", names["outside"], f"{context.name}_inside"],
            "moved",
        ),
        ("Sub", [f"{context.name}_moved", names["base"]], "rewritten_offset"),
    ]
    nodes = [
        helper.make_node(op, inputs, [f"{context.name}_{out}"], name=f"{context.name}_{out}")
        for op, inputs, out in steps
    ]
    image, _, weight, *bias = context.inputs
    nodes.append(
        helper.make_node(
            "DeformConv",
            [image, weight, f"{context.name}_rewritten_offset", *bias],
            [context.name],
            name=context.name,
            kernel_shape=kernel,
            strides=stride,
            dilations=dilate,
            pads=pad * 2,
            group=context.node.integer("num_group", 1),
            offset_group=groups,
        )
    )
    return Lowering(tuple(nodes), context.name, constants)


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
