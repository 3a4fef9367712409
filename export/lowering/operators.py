"""One function an MXNet operator: the ONNX nodes (opset 17 to 19) that compute the same.

All shapes but the batch are static, so adaptive pooling and MXNet's ceiling pooling have exact
forms here that a converter for unknown sizes does not have. Operators that do nothing at
inference return no nodes and hand their input on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, Site, constant, indices, single
from export.lowering.convolutions import deconvolution, deformable_convolution, upsampling
from export.lowering.pooling import adaptive_pooling, pooling
from export.lowering.reshaping import flattening, padding, reshaping, slicing, transposition
from export.lowering.resize import resize_nodes
from export.symbols.conv_arithmetic import convolution_geometry
from export.symbols.graph import BATCH_NORMS
from export.symbols.shape_rules import (
    BINARY,
    DEFORMABLE,
    IDENTITIES,
    LABELLED,
    SCALAR,
    SOFTMAXES,
    SUMS,
    UNARY,
)


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
    kind = site.node.text("act_type", "")
    if kind not in kinds:
        raise UnsupportedOperator(f"{site.name}: activation {kind!r}")
    return single(site, kinds[kind], site.inputs)


def _unary(site: Site) -> Lowering:
    return single(site, UNARY[site.node.op], site.inputs)


def _square(site: Site) -> Lowering:
    return single(site, "Mul", [site.inputs[0]] * 2)


def _hard_sigmoid(site: Site) -> Lowering:
    alpha, beta = site.node.number("alpha", 0.2), site.node.number("beta", 0.5)
    node = helper.make_node(
        "HardSigmoid", [site.inputs[0]], [site.name], name=site.name, alpha=alpha, beta=beta
    )
    return Lowering((node,), site.name)


def _softmax(site: Site) -> Lowering:
    """Over the classes; the label of ``SoftmaxOutput`` plays no part in it."""
    node, axis = site.node, -1
    if node.op in LABELLED and not node.flag("multi_output", False):
        if len(site.shape) != 2:
            raise UnsupportedOperator(f"{site.name}: {node.op} of a map without multi_output")
    elif node.op in LABELLED or node.text("mode", "") == "channel":
        axis = 1
    elif node.op == "softmax":
        axis = node.integer("axis", -1)
        if node.number("temperature", 1) != 1 or node.flag("use_length", False):
            raise UnsupportedOperator(f"{site.name}: softmax with temperature or length")
    elif len(site.shape) != 2:
        raise UnsupportedOperator(f"{site.name}: {node.op} of mode instance")
    made = helper.make_node("Softmax", [site.inputs[0]], [site.name], name=site.name, axis=axis)
    return Lowering((made,), site.name)


def _leaky_relu(site: Site) -> Lowering:
    kind = site.node.text("act_type", "leaky")
    if kind == "prelu":
        slope, shape = f"{site.name}_slope", f"{site.name}_slope_shape"
        reshape = helper.make_node("Reshape", [site.inputs[1], shape], [slope], name=slope)
        node = helper.make_node("PRelu", [site.inputs[0], slope], [site.name], name=site.name)
        return Lowering((reshape, node), site.name, (indices(shape, [-1, 1, 1]),))
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


def _sum(site: Site) -> Lowering:
    return single(site, "Sum", site.inputs)


def _scalar(site: Site) -> Lowering:
    kind = site.node.op.strip("_").lower().removesuffix("scalar").rstrip("_")
    op_type = {
        "plus": "Add", "minus": "Sub", "mul": "Mul", "div": "Div", "rminus": "Sub", "rdiv": "Div",
        "maximum": "Max", "minimum": "Min", "power": "Pow",
    }[kind]  # fmt: skip
    value = np.array(site.node.number("scalar", 0), np.float32)
    name = f"{site.name}_scalar"
    inputs = [site.inputs[0], name]
    reverse = kind in ("rminus", "rdiv")
    return single(site, op_type, inputs[::-1] if reverse else inputs, constant(name, value))


def _dropout(site: Site) -> Lowering:
    if site.node.text("mode", "training") != "training":
        raise UnsupportedOperator(f"{site.name}: dropout that is active at inference")
    return _identity(site)


def _identity(site: Site) -> Lowering:
    if site.node.op == "Cast" and site.node.text("dtype", "float32") not in ("float32", "0"):
        raise UnsupportedOperator(f"{site.name}: Cast to {site.node.attrs['dtype']}")
    return Lowering((), site.inputs[0])


def _global_pooling(site: Site) -> Lowering:
    op_type = "GlobalMaxPool" if site.node.op == "max" else "GlobalAveragePool"
    if len(site.shape) == 4:
        return single(site, op_type, site.inputs)
    pooled = f"{site.name}_pooled"
    nodes = (
        helper.make_node(op_type, [site.inputs[0]], [pooled], name=pooled),
        helper.make_node("Flatten", [pooled], [site.name], name=site.name),
    )
    return Lowering(nodes, site.name)


_LOWERINGS: dict[str, Callable[[Site], Lowering]] = {
    "Convolution": _convolution,
    "Deconvolution": deconvolution,
    "UpSampling": upsampling,
    "Activation": _activation,
    "LeakyReLU": _leaky_relu,
    "clip": _clip,
    "hard_sigmoid": _hard_sigmoid,
    "square": _square,
    "Pooling": pooling,
    "_contrib_AdaptiveAvgPooling2D": adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Concat": _concat,
    "concat": _concat,
    "Dropout": _dropout,
    "Flatten": flattening,
    "flatten": flattening,
    "Reshape": reshaping,
    "reshape": reshaping,
    "transpose": transposition,
    "mean": _global_pooling,
    "max": _global_pooling,
    "Pad": padding,
    "pad": padding,
    **dict.fromkeys(("Crop", "slice_axis", "slice_like"), slicing),
    **dict.fromkeys(DEFORMABLE, deformable_convolution),
    **dict.fromkeys(IDENTITIES, _identity),
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(SUMS, _sum),
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(SCALAR, _scalar),
    **dict.fromkeys(SOFTMAXES, _softmax),
}
