"""Sums, means, largest values and their places along axes, and softmax, as ONNX nodes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes, single
from export.symbols.reshape_rules import axes_of, axis_of
from export.symbols.shape_rules import SOFTMAX_OUTPUT

_KINDS = {"sum": "Sum", "mean": "Mean", "prod": "Prod", "max": "Max", "min": "Min",
          "nansum": "Sum", "nanprod": "Prod"}  # fmt: skip


def reduction(context: LoweringContext) -> Lowering:
    """Returns a reduction; a global pooling where it is one, which engines know best."""
    node, (source, *_) = context.node, context.inputs
    rank = len(context.input_shapes[0])
    axes, kept = axes_of(node, rank), node.flag("keepdims", False)
    nodes = Nodes(context)
    if node.op in ("mean", "max") and rank == 4 and axes == (2, 3):
        op_type = "GlobalMaxPool" if node.op == "max" else "GlobalAveragePool"
        if kept:
            return single(context, op_type, context.inputs)
        return nodes.end(nodes.add("Flatten", [nodes.add(op_type, context.inputs, "pooled")]))
    if node.op == "norm":
        order = node.integer("ord", 2)
        if order not in (1, 2):
            raise UnsupportedOperator(f"{context.name}: norm of order {order}: expected 1 or 2")
        return nodes.end(nodes.reduce(f"L{order}", source, axes, kept))
    if node.op in ("nansum", "nanprod"):
        neutral = nodes.number(0 if node.op == "nansum" else 1)
        source = nodes.add("Where", [nodes.add("IsNaN", [source]), neutral, source])
    return nodes.end(nodes.reduce(_KINDS[node.op], source, axes, kept))


def index_reduction(context: LoweringContext) -> Lowering:
    """Returns an ArgMax or ArgMin as float32, as MXNet gives it; the first of equal values."""
    node, nodes = context.node, Nodes(context)
    channels = node.op == "argmax_channel"
    axis, kept = (1, False) if channels else (node.integer("axis", 0), node.flag("keepdims", False))
    op_type = "ArgMin" if node.op == "argmin" else "ArgMax"
    found = nodes.add(op_type, context.inputs, axis=axis, keepdims=int(kept))
    return nodes.end(nodes.add("Cast", [found], to=TensorProto.FLOAT))


def moments(context: LoweringContext) -> Lowering:
    """Returns mean and variance along axes."""
    node, nodes = context.node, Nodes(context)
    axes = axes_of(node, len(context.input_shapes[0]), "axes")
    mean = nodes.reduce("Mean", context.inputs[0], axes, kept=True)
    centred = nodes.add("Sub", [context.inputs[0], mean])
    variance = nodes.reduce("Mean", nodes.add("Mul", [centred, centred]), axes, kept=True)
    both = [mean, variance]
    if not node.flag("keepdims", False):
        both = [nodes.reshape(name, context.open_shapes[0]) for name in both]
    return Lowering(tuple(nodes.nodes), both[0], tuple(nodes.constants.values()), (both[1],))


def ranking(context: LoweringContext) -> Lowering:
    """Returns a TopK of as many values as are wanted; indices are float32, as in MXNet."""
    node, nodes = context.node, Nodes(context)
    axis = axis_of(node, len(context.input_shapes[0]), default=-1)
    count = nodes.integers([context.shape[axis]], "count")
    largest = int(not node.flag("is_ascend", node.op != "topk"))
    values = nodes.add("TopK", [context.inputs[0], count], axis=axis, largest=largest)
    places = f"{values}_places"
    nodes.nodes[-1].output.append(places)
    kind = {"sort": "value", "argsort": "indices"}.get(node.op, node.text("ret_typ", "indices"))
    if kind == "value":
        return Lowering(tuple(nodes.nodes), values, tuple(nodes.constants.values()))
    indices = nodes.add("Cast", [places], to=TensorProto.FLOAT)
    outputs = [indices] if kind == "indices" else [values, indices]
    return Lowering(
        tuple(nodes.nodes), outputs[0], tuple(nodes.constants.values()), tuple(outputs[1:])
    )


def running_sum(context: LoweringContext) -> Lowering:
    """Returns a CumSum. Raises UnsupportedOperator without an axis."""
    nodes = Nodes(context)
    if not context.node.text("axis", ""):
        raise UnsupportedOperator(f"{context.name}: cumsum without an axis mixes images")
    axis = nodes.values(np.array(axis_of(context.node, len(context.shape)), np.int64), "axis")
    return nodes.end(nodes.add("CumSum", [context.inputs[0], axis]))


def softmax(context: LoweringContext) -> Lowering:
    """Returns a softmax; the label of ``SoftmaxOutput`` plays no part in it.

    Raises UnsupportedOperator for lengths, and a map without ``multi_output``.
    """
    node, nodes = context.node, Nodes(context)
    (source, *_), axis = context.inputs, -1
    if node.op == SOFTMAX_OUTPUT and not node.flag("multi_output", False):
        if node.flag("preserve_shape", False):
            axis = -1
        elif len(context.shape) != 2:
            raise UnsupportedOperator(f"{context.name}: {node.op} of a map without multi_output")
    elif node.op == SOFTMAX_OUTPUT or node.text("mode", "") == "channel":
        axis = 1
    elif node.op == "SoftmaxActivation":
        axis = -1  # of mode instance; MXNet takes all axes but the last for the batch
    else:
        axis = node.integer("axis", -1)
        if node.flag("use_length", False):
            raise UnsupportedOperator(f"{context.name}: {node.op} with lengths")
        if node.op == "softmin":
            source = nodes.add("Neg", [source])
        if (temperature := node.number("temperature", 1)) != 1:
            source = nodes.add("Div", [source, nodes.number(temperature)])
    op_type = "LogSoftmax" if node.op == "log_softmax" else "Softmax"
    return nodes.end(nodes.add(op_type, [source], axis=axis))
