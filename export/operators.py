"""One function an MXNet operator: the ONNX nodes (opset 17) that compute the same.

All shapes but the batch are static, so adaptive pooling and MXNet's ceiling pooling have exact
forms here that a converter for unknown sizes does not have. Operators that do nothing at
inference return no nodes and hand their input on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import UnsupportedOperator
from export.resize import resize_nodes
from export.shapes import BINARY, Shape, convolution_geometry
from export.symbol import BATCH_NORMS, Node


@dataclass(frozen=True)
class Lowering:
    """ONNX nodes and constants for one operator; ``output`` is the tensor it computes."""

    nodes: tuple[NodeProto, ...]
    output: str
    constants: tuple[TensorProto, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where an operator stands: its node under a unique ``name``, its inputs and shapes.

    ``input_shapes`` and ``shape`` are (1, C, H, W); for parameters the shape is their own.
    """

    node: Node
    name: str
    inputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    shape: Shape


def lower(site: Site) -> Lowering:
    """The ONNX form of one operator. Raises UnsupportedOperator naming node and attribute."""
    return _LOWERINGS[site.node.op](site)


def unsupported(operators: Sequence[str]) -> list[str]:
    """Those of the operator names that have no conversion, sorted."""
    return sorted(set(operators) - set(_LOWERINGS))


def _single(site: Site, op_type: str, inputs: Sequence[str], *constants: TensorProto) -> Lowering:
    node = helper.make_node(op_type, list(inputs), [site.name], name=site.name)
    return Lowering((node,), site.name, constants)


def _constant(name: str, values: NDArray[np.float32]) -> TensorProto:
    tensor: TensorProto = numpy_helper.from_array(values, name)
    return tensor


def _convolution(site: Site) -> Lowering:
    kernel, stride, dilate, pad = convolution_geometry(site.node)
    node = helper.make_node(
        "Conv",
        list(site.inputs),
        [site.name],
        name=site.name,
        kernel_shape=kernel,
        strides=stride,
        dilations=dilate,
        pads=pad * 2,
        group=site.node.integer("num_group", 1),
    )
    return Lowering((node,), site.name)


def _batch_norm(site: Site) -> Lowering:
    if site.node.integer("axis", 1) != 1:
        raise UnsupportedOperator(f"{site.name}: batch norm on axis {site.node.attrs['axis']}")
    inputs, constants = list(site.inputs), []
    if site.node.flag("fix_gamma", True):
        inputs[1] = f"{site.name}_gamma_one"
        constants.append(_constant(inputs[1], np.ones(site.shape[1], np.float32)))
    epsilon = site.node.number("eps", 1e-3)
    node = helper.make_node(
        "BatchNormalization", inputs, [site.name], name=site.name, epsilon=epsilon
    )
    return Lowering((node,), site.name, tuple(constants))


def _activation(site: Site) -> Lowering:
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus",
             "softsign": "Softsign"}  # fmt: skip
    kind = site.node.text("act_type", "") if site.node.op == "Activation" else site.node.op
    if kind not in kinds:
        raise UnsupportedOperator(f"{site.name}: activation {kind!r}")
    return _single(site, kinds[kind], site.inputs)


def _leaky_relu(site: Site) -> Lowering:
    kind = site.node.text("act_type", "leaky")
    if kind not in ("leaky", "elu"):
        raise UnsupportedOperator(f"{site.name}: LeakyReLU of type {kind!r}")
    node = helper.make_node(
        "LeakyRelu" if kind == "leaky" else "Elu",
        [site.inputs[0]],
        [site.name],
        name=site.name,
        alpha=site.node.number("slope", 0.25),
    )
    return Lowering((node,), site.name)


def _clip(site: Site) -> Lowering:
    limits = [f"{site.name}_min", f"{site.name}_max"]
    values = [np.array(site.node.number(key, 0), np.float32) for key in ("a_min", "a_max")]
    constants = [_constant(n, v) for n, v in zip(limits, values, strict=True)]
    return _single(site, "Clip", [site.inputs[0], *limits], *constants)


def _pooling(site: Site) -> Lowering:
    node = site.node
    kind, is_global = node.text("pool_type", "max"), node.flag("global_pool", False)
    if kind not in ("max", "avg"):
        raise UnsupportedOperator(f"{site.name}: pool_type {kind!r}")
    if node.text("layout", "NCHW") != "NCHW":
        raise UnsupportedOperator(f"{site.name}: layout {node.attrs['layout']}")
    if is_global:
        return _single(site, "GlobalMaxPool" if kind == "max" else "GlobalAveragePool", site.inputs)
    convention = node.text("pooling_convention", "valid")
    if convention not in ("valid", "full"):
        raise UnsupportedOperator(f"{site.name}: pooling_convention {convention!r}")
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    lengths, outputs = site.input_shapes[0][2:], site.shape[2:]
    # The ceiling is explicit padding at the end: ONNX's ceil_mode counts it into averages.
    ends = [
        max(0, (outputs[i] - 1) * stride[i] + kernel[i] - lengths[i] - pad[i]) for i in range(2)
    ]
    if max(*pad, *ends) >= min(kernel):
        raise UnsupportedOperator(f"{site.name}: a pooling window lies in the padding alone")
    include = node.flag("count_include_pad", True)
    divisors = None
    if kind == "avg" and include:
        counts = [_window_lengths(lengths[i], outputs[i], kernel[i], stride[i], pad[i])
                  for i in range(2)]  # fmt: skip
        divisors = np.outer(*counts)
    corrected = divisors is not None and bool((divisors != kernel[0] * kernel[1]).any())
    pooled = f"{site.name}_pooled" if corrected else site.name
    attributes = {"count_include_pad": int(include)} if kind == "avg" else {}
    nodes = [
        helper.make_node(
            "MaxPool" if kind == "max" else "AveragePool",
            [site.inputs[0]],
            [pooled],
            name=pooled,
            kernel_shape=kernel,
            strides=stride,
            pads=(*pad, *ends),
            **attributes,
        )
    ]
    if not corrected or divisors is None:
        return Lowering(tuple(nodes), site.name)
    factor = (kernel[0] * kernel[1] / divisors).astype(np.float32)[None, None]
    name = f"{site.name}_divisor"
    nodes.append(helper.make_node("Mul", [pooled, name], [site.name], name=site.name))
    return Lowering(tuple(nodes), site.name, (_constant(name, factor),))


def _window_lengths(
    length: int, outputs: int, kernel: int, stride: int, pad: int
) -> NDArray[np.int64]:
    """How much of each window MXNet counts: up to the symmetric padding, not the ceiling's."""
    starts = np.arange(outputs) * stride - pad
    counts: NDArray[np.int64] = np.minimum(starts + kernel, length + pad) - starts
    return counts


def _adaptive_pooling(site: Site) -> Lowering:
    lengths, outputs = site.input_shapes[0][2:], site.shape[2:]
    if outputs == (1, 1):
        return _single(site, "GlobalAveragePool", site.inputs)
    if lengths == outputs:
        return Lowering((), site.inputs[0])
    if all(n % out == 0 for n, out in zip(lengths, outputs, strict=True)):
        kernel = [n // out for n, out in zip(lengths, outputs, strict=True)]
        node = helper.make_node("AveragePool", [site.inputs[0]], [site.name], name=site.name,
                                kernel_shape=kernel, strides=kernel)  # fmt: skip
        return Lowering((node,), site.name)
    rows, columns = (f"{site.name}_rows", f"{site.name}_columns")
    pooled = f"{site.name}_pooled_columns"
    nodes = (
        helper.make_node("MatMul", [site.inputs[0], columns], [pooled], name=pooled),
        helper.make_node("MatMul", [rows, pooled], [site.name], name=site.name),
    )
    constants = (
        _constant(columns, np.ascontiguousarray(averaging_matrix(lengths[1], outputs[1]).T)),
        _constant(rows, averaging_matrix(lengths[0], outputs[0])),
    )
    return Lowering(nodes, site.name, constants)


def averaging_matrix(length: int, outputs: int) -> NDArray[np.float32]:
    """float32 [outputs, length]: row i averages floor(i*length/outputs) to
    ceil((i+1)*length/outputs), the windows of AdaptiveAvgPooling2D."""
    matrix = np.zeros((outputs, length), np.float32)
    for i in range(outputs):
        start, end = i * length // outputs, -(-(i + 1) * length // outputs)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _resize(site: Site) -> Lowering:
    aligned = site.node.flag("align_corners", True)
    nodes, constants = resize_nodes(
        site.name, site.inputs[0], site.input_shapes[0][2:], site.shape[2:], aligned
    )
    return Lowering(nodes, site.name if nodes else site.inputs[0], constants)


def _concat(site: Site) -> Lowering:
    axis = site.node.integer("dim", 1)
    node = helper.make_node("Concat", list(site.inputs), [site.name], name=site.name, axis=axis)
    return Lowering((node,), site.name)


def _binary(site: Site) -> Lowering:
    return _single(site, BINARY[site.node.op], site.inputs)


def _scalar(site: Site) -> Lowering:
    op_type = {"plus": "Add", "minus": "Sub", "mul": "Mul", "div": "Div"}[
        site.node.op.strip("_").lower().removesuffix("scalar").rstrip("_")
    ]
    value = np.array(site.node.number("scalar", 0), np.float32)
    name = f"{site.name}_scalar"
    return _single(site, op_type, [site.inputs[0], name], _constant(name, value))


def _dropout(site: Site) -> Lowering:
    if site.node.text("mode", "training") != "training":
        raise UnsupportedOperator(f"{site.name}: dropout that is active at inference")
    return _identity(site)


def _identity(site: Site) -> Lowering:
    return Lowering((), site.inputs[0])


def _flatten(site: Site) -> Lowering:
    return _single(site, "Flatten", site.inputs)


_LOWERINGS: dict[str, Callable[[Site], Lowering]] = {
    "Convolution": _convolution,
    "Activation": _activation,
    "relu": _activation,
    "sigmoid": _activation,
    "tanh": _activation,
    "LeakyReLU": _leaky_relu,
    "clip": _clip,
    "Pooling": _pooling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Concat": _concat,
    "concat": _concat,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "flatten": _flatten,
    **dict.fromkeys(("identity", "_copy", "BlockGrad"), _identity),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(("_plus_scalar", "_PlusScalar", "_minus_scalar", "_MinusScalar"), _scalar),
    **dict.fromkeys(("_mul_scalar", "_MulScalar", "_div_scalar", "_DivScalar"), _scalar),
}
