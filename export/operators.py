"""One function an MXNet operator: the ONNX nodes (opset 17) that compute the same.

All shapes but the batch are static, so adaptive pooling and MXNet's ceiling pooling have exact
forms here that a converter for unknown sizes does not have. Operators that do nothing at
inference return no nodes and hand their input on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering import Lowering, Site, constant, single
from export.pooling import adaptive_pooling, pooling
from export.resize import resize_nodes
from export.shapes import BINARY, convolution_geometry
from export.symbol import BATCH_NORMS


def lower(site: Site) -> Lowering:
    """The ONNX form of one operator. Raises UnsupportedOperator naming node and attribute."""
    return _LOWERINGS[site.node.op](site)


def unsupported(operators: Sequence[str]) -> list[str]:
    """Those of the operator names that have no conversion, sorted."""
    return sorted(set(operators) - set(_LOWERINGS))


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
        constants.append(constant(inputs[1], np.ones(site.shape[1], np.float32)))
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
    return single(site, kinds[kind], site.inputs)


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
    constants = [constant(n, v) for n, v in zip(limits, values, strict=True)]
    return single(site, "Clip", [site.inputs[0], *limits], *constants)


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
    return single(site, BINARY[site.node.op], site.inputs)


def _scalar(site: Site) -> Lowering:
    op_type = {"plus": "Add", "minus": "Sub", "mul": "Mul", "div": "Div"}[
        site.node.op.strip("_").lower().removesuffix("scalar").rstrip("_")
    ]
    value = np.array(site.node.number("scalar", 0), np.float32)
    name = f"{site.name}_scalar"
    return single(site, op_type, [site.inputs[0], name], constant(name, value))


def _dropout(site: Site) -> Lowering:
    if site.node.text("mode", "training") != "training":
        raise UnsupportedOperator(f"{site.name}: dropout that is active at inference")
    return _identity(site)


def _identity(site: Site) -> Lowering:
    return Lowering((), site.inputs[0])


def _flatten(site: Site) -> Lowering:
    return single(site, "Flatten", site.inputs)


_LOWERINGS: dict[str, Callable[[Site], Lowering]] = {
    "Convolution": _convolution,
    "Activation": _activation,
    "relu": _activation,
    "sigmoid": _activation,
    "tanh": _activation,
    "LeakyReLU": _leaky_relu,
    "clip": _clip,
    "Pooling": pooling,
    "_contrib_AdaptiveAvgPooling2D": adaptive_pooling,
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
