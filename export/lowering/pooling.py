"""MXNet's poolings as ONNX nodes, exact for static sizes.

Windows of ``full`` pooling reach beyond the padding; MXNet does not count that part into an
average, ONNX Runtime does (ORT#16203), so there the average is corrected by a constant factor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes, constant, single

# Of one constant averaging matrix: 8192 bins of 8192 positions.
_MAX_MATRIX = 1 << 26


def pooling(context: LoweringContext) -> Lowering:
    """Lowers ``Pooling``: max, average, sum or lp; valid or full. Raises UnsupportedOperator."""
    node = context.node
    kind, is_global = node.text("pool_type", "max"), node.flag("global_pool", False)
    if kind not in ("max", "avg", "sum", "lp"):
        raise UnsupportedOperator(f"{context.name}: pool_type {kind!r}")
    if node.text("layout", "NCHW") != "NCHW":
        raise UnsupportedOperator(f"{context.name}: layout {node.attrs['layout']}")
    if kind in ("sum", "lp"):
        return _sum_pooling(context, node.integer("p_value", 1) if kind == "lp" else 1)
    if is_global:
        return single(
            context, "GlobalMaxPool" if kind == "max" else "GlobalAveragePool", context.inputs
        )
    convention = node.text("pooling_convention", "valid")
    if convention not in ("valid", "full"):
        raise UnsupportedOperator(f"{context.name}: pooling_convention {convention!r}")
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    lengths, outputs = context.input_shapes[0][2:], context.shape[2:]
    # The ceiling is explicit padding at the end: ONNX's ceil_mode counts it into averages.
    ends = [
        max(0, (outputs[i] - 1) * stride[i] + kernel[i] - lengths[i] - pad[i]) for i in range(2)
    ]
    if max(*pad, *ends) >= min(kernel):
        raise UnsupportedOperator(f"{context.name}: a pooling window lies in the padding alone")
    include = node.flag("count_include_pad", True)
    divisors = None
    if kind == "avg" and include:
        counts = [_window_lengths(lengths[i], outputs[i], kernel[i], stride[i], pad[i])
                  for i in range(2)]  # fmt: skip
        divisors = np.outer(*counts)
    corrected = divisors is not None and bool((divisors != kernel[0] * kernel[1]).any())
    pooled = f"{context.name}_pooled" if corrected else context.name
    attributes = {"count_include_pad": int(include)} if kind == "avg" else {}
    nodes = [
        helper.make_node(
            "MaxPool" if kind == "max" else "AveragePool",
            [context.inputs[0]],
            [pooled],
            name=pooled,
            kernel_shape=kernel,
            strides=stride,
            pads=(*pad, *ends),
            **attributes,
        )
    ]
    if not corrected or divisors is None:
        return Lowering(tuple(nodes), context.name)
    factor = (kernel[0] * kernel[1] / divisors).astype(np.float32)[None, None]
    name = f"{context.name}_divisor"
    nodes.append(helper.make_node("Mul", [pooled, name], [context.name], name=context.name))
    return Lowering(tuple(nodes), context.name, (constant(name, factor),))


def _sum_pooling(context: LoweringContext, power: int) -> Lowering:
    """Returns the sum of a window's values, or the root of the sum of their powers: a convolution
    of ones a channel."""
    node, nodes, channels = context.node, Nodes(context), context.shape[1]
    source = context.inputs[0]
    if node.text("pooling_convention", "valid") not in ("valid", "full"):
        raise UnsupportedOperator(
            f"{context.name}: pooling_convention {node.attrs['pooling_convention']!r}"
        )
    if power != 1:
        source = nodes.add("Pow", [nodes.add("Abs", [source]), nodes.number(power)])
    if node.flag("global_pool", False):
        total = nodes.reduce("Sum", source, [2, 3], kept=True)
    else:
        kernel = node.integers("kernel")
        stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
        lengths, outputs = context.input_shapes[0][2:], context.shape[2:]
        ends = [(outputs[i] - 1) * stride[i] + kernel[i] - lengths[i] - pad[i] for i in range(2)]
        ones = nodes.values(np.ones((channels, 1, *kernel), np.float32), "ones")
        total = nodes.add(
            "Conv", [source, ones], kernel_shape=kernel, strides=stride,
            pads=(*pad, *(max(end, 0) for end in ends)), group=channels,
        )  # fmt: skip
    return nodes.end(nodes.add("Pow", [total, nodes.number(1 / power)]) if power != 1 else total)


def _window_lengths(
    length: int, outputs: int, kernel: int, stride: int, pad: int
) -> NDArray[np.int64]:
    """Returns how much of each window MXNet counts: up to the symmetric padding, not the
    ceiling's."""
    starts = np.arange(outputs) * stride - pad
    counts: NDArray[np.int64] = np.minimum(starts + kernel, length + pad) - starts
    return counts


def adaptive_pooling(context: LoweringContext) -> Lowering:
    """Lowers ``_contrib_AdaptiveAvgPooling2D``: one average pooling where the bins are equal, else
    a product with constant matrices over rows and columns."""
    lengths, outputs = context.input_shapes[0][2:], context.shape[2:]
    if outputs == (1, 1):
        return single(context, "GlobalAveragePool", context.inputs)
    if lengths == outputs:
        return Lowering((), context.inputs[0])
    if all(n % out == 0 for n, out in zip(lengths, outputs, strict=True)):
        kernel = [n // out for n, out in zip(lengths, outputs, strict=True)]
        node = helper.make_node("AveragePool", [context.inputs[0]], [context.name],
                                name=context.name, kernel_shape=kernel, strides=kernel)  # fmt: skip
        return Lowering((node,), context.name)
    if max(n * out for n, out in zip(lengths, outputs, strict=True)) > _MAX_MATRIX:
        raise UnsupportedOperator(f"{context.name}: pooling of {lengths} into {outputs} bins")
    rows, columns = (f"{context.name}_rows", f"{context.name}_columns")
    pooled = f"{context.name}_pooled_columns"
    nodes = (
        helper.make_node("MatMul", [context.inputs[0], columns], [pooled], name=pooled),
        helper.make_node("MatMul", [rows, pooled], [context.name], name=context.name),
    )
    constants = (
        constant(columns, np.ascontiguousarray(averaging_matrix(lengths[1], outputs[1]).T)),
        constant(rows, averaging_matrix(lengths[0], outputs[0])),
    )
    return Lowering(nodes, context.name, constants)


def averaging_matrix(length: int, outputs: int) -> NDArray[np.float32]:
    """Returns float32 [outputs, length]: row i averages floor(i*length/outputs) to
    ceil((i+1)*length/outputs), the windows of AdaptiveAvgPooling2D."""
    matrix = np.zeros((outputs, length), np.float32)
    for i in range(outputs):
        start, end = i * length // outputs, -(-(i + 1) * length // outputs)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
