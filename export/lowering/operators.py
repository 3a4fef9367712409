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
from export.lowering.context import (
    Lowering,
    LoweringContext,
    constant,
    indices,
    resize_nodes,
    single,
)
from export.lowering.convolutions import deconvolution, deformable_convolution, upsampling
from export.lowering.pooling import adaptive_pooling, pooling
from export.lowering.reshaping import flattening, padding, reshaping, slicing, transposition
from export.symbols.conv_arithmetic import convolution_arithmetic
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


def lower(context: LoweringContext) -> Lowering:
    """Returns the ONNX form of one operator.

    Raises UnsupportedOperator naming node and attribute.
    """
    return _LOWERINGS[context.node.op](context)


def unsupported(operators: Sequence[str]) -> list[str]:
    """Returns those of the operator names that have no conversion, sorted."""
    return sorted(set(operators) - set(_LOWERINGS))


def _convolution(context: LoweringContext) -> Lowering:
    kernel, stride, dilate, pad = convolution_arithmetic(context.node)
    node = helper.make_node(
        "Conv",
        list(context.inputs),
        [context.name],
        name=context.name,
        kernel_shape=kernel,
        strides=stride,
        dilations=dilate,
        pads=pad * 2,
        group=context.node.integer("num_group", 1),
    )
    return Lowering((node,), context.name)


def _batch_norm(context: LoweringContext) -> Lowering:
    if context.node.integer("axis", 1) != 1:
        raise UnsupportedOperator(
            f"{context.name}: batch norm on axis {context.node.attrs['axis']}"
        )
    inputs, constants = list(context.inputs), []
    if context.node.flag("fix_gamma", True):
        inputs[1] = f"{context.name}_gamma_one"
        constants.append(constant(inputs[1], np.ones(context.shape[1], np.float32)))
    epsilon = context.node.number("eps", 1e-3)
    node = helper.make_node(
        "BatchNormalization", inputs, [context.name], name=context.name, epsilon=epsilon
    )
    return Lowering((node,), context.name, tuple(constants))


def _activation(context: LoweringContext) -> Lowering:
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus",
             "softsign": "Softsign"}  # fmt: skip
    kind = context.node.text("act_type", "")
    if kind not in kinds:
        raise UnsupportedOperator(f"{context.name}: activation {kind!r}")
    return single(context, kinds[kind], context.inputs)


def _unary(context: LoweringContext) -> Lowering:
    return single(context, UNARY[context.node.op], context.inputs)


def _square(context: LoweringContext) -> Lowering:
    return single(context, "Mul", [context.inputs[0]] * 2)


def _hard_sigmoid(context: LoweringContext) -> Lowering:
    alpha, beta = context.node.number("alpha", 0.2), context.node.number("beta", 0.5)
    node = helper.make_node(
        "HardSigmoid",
        [context.inputs[0]],
        [context.name],
        name=context.name,
        alpha=alpha,
        beta=beta,
    )
    return Lowering((node,), context.name)


def _softmax(context: LoweringContext) -> Lowering:
    """Returns a softmax over the classes; the label of ``SoftmaxOutput`` plays no part in it."""
    node, axis = context.node, -1
    if node.op in LABELLED and not node.flag("multi_output", False):
        if len(context.shape) != 2:
            raise UnsupportedOperator(f"{context.name}: {node.op} of a map without multi_output")
    elif node.op in LABELLED or node.text("mode", "") == "channel":
        axis = 1
    elif node.op == "softmax":
        axis = node.integer("axis", -1)
        if node.number("temperature", 1) != 1 or node.flag("use_length", False):
            raise UnsupportedOperator(f"{context.name}: softmax with temperature or length")
    elif len(context.shape) != 2:
        raise UnsupportedOperator(f"{context.name}: {node.op} of mode instance")
    made = helper.make_node(
        "Softmax", [context.inputs[0]], [context.name], name=context.name, axis=axis
    )
    return Lowering((made,), context.name)


def _leaky_relu(context: LoweringContext) -> Lowering:
    kind = context.node.text("act_type", "leaky")
    if kind == "prelu":
        slope, shape = f"{context.name}_slope", f"{context.name}_slope_shape"
        reshape = helper.make_node("Reshape", [context.inputs[1], shape], [slope], name=slope)
        node = helper.make_node(
            "PRelu", [context.inputs[0], slope], [context.name], name=context.name
        )
        return Lowering((reshape, node), context.name, (indices(shape, [-1, 1, 1]),))
    if kind not in ("leaky", "elu"):
        raise UnsupportedOperator(f"{context.name}: LeakyReLU of type {kind!r}")
    node = helper.make_node(
        "LeakyRelu" if kind == "leaky" else "Elu",
        [context.inputs[0]],
        [context.name],
        name=context.name,
        alpha=context.node.number("slope", 0.25),
    )
    return Lowering((node,), context.name)


def _clip(context: LoweringContext) -> Lowering:
    limits = [f"{context.name}_min", f"{context.name}_max"]
    values = [np.array(context.node.number(key, 0), np.float32) for key in ("a_min", "a_max")]
    constants = [constant(n, v) for n, v in zip(limits, values, strict=True)]
    return single(context, "Clip", [context.inputs[0], *limits], *constants)


def _resize(context: LoweringContext) -> Lowering:
    aligned = context.node.flag("align_corners", True)
    nodes, constants = resize_nodes(
        context.name, context.inputs[0], context.input_shapes[0][2:], context.shape[2:], aligned
    )
    return Lowering(nodes, context.name if nodes else context.inputs[0], constants)


def _concat(context: LoweringContext) -> Lowering:
    axis = context.node.integer("dim", 1)
    node = helper.make_node(
        "Concat", list(context.inputs), [context.name], name=context.name, axis=axis
    )
    return Lowering((node,), context.name)


def _binary(context: LoweringContext) -> Lowering:
    return single(context, BINARY[context.node.op], context.inputs)


def _sum(context: LoweringContext) -> Lowering:
    return single(context, "Sum", context.inputs)


def _scalar(context: LoweringContext) -> Lowering:
    kind = context.node.op.strip("_").lower().removesuffix("scalar").rstrip("_")
    op_type = {
        "plus": "Add", "minus": "Sub", "mul": "Mul", "div": "Div", "rminus": "Sub", "rdiv": "Div",
        "maximum": "Max", "minimum": "Min", "power": "Pow",
    }[kind]  # fmt: skip
    value = np.array(context.node.number("scalar", 0), np.float32)
    name = f"{context.name}_scalar"
    inputs = [context.inputs[0], name]
    reverse = kind in ("rminus", "rdiv")
    return single(context, op_type, inputs[::-1] if reverse else inputs, constant(name, value))


def _dropout(context: LoweringContext) -> Lowering:
    if context.node.text("mode", "training") != "training":
        raise UnsupportedOperator(f"{context.name}: dropout that is active at inference")
    return _identity(context)


def _identity(context: LoweringContext) -> Lowering:
    if context.node.op == "Cast" and context.node.text("dtype", "float32") not in ("float32", "0"):
        raise UnsupportedOperator(f"{context.name}: Cast to {context.node.attrs['dtype']}")
    return Lowering((), context.inputs[0])


def _global_pooling(context: LoweringContext) -> Lowering:
    op_type = "GlobalMaxPool" if context.node.op == "max" else "GlobalAveragePool"
    if len(context.shape) == 4:
        return single(context, op_type, context.inputs)
    pooled = f"{context.name}_pooled"
    nodes = (
        helper.make_node(op_type, [context.inputs[0]], [pooled], name=pooled),
        helper.make_node("Flatten", [pooled], [context.name], name=context.name),
    )
    return Lowering(nodes, context.name)


_LOWERINGS: dict[str, Callable[[LoweringContext], Lowering]] = {
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
