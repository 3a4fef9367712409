"""Normalisations as ONNX nodes: over a batch's statistics, or over parts of one image."""

from __future__ import annotations

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes, constant
from export.symbols.reshape_rules import axis_of


def batch_norm(context: LoweringContext) -> Lowering:
    """Returns a BatchNormalization, and a Relu where the operator holds one.

    Raises UnsupportedOperator for another axis than the channels.
    """
    node = context.node
    if axis_of(node, len(context.shape), default=1) != 1:
        raise UnsupportedOperator(f"{context.name}: batch norm on axis {node.attrs['axis']}")
    inputs, constants = list(context.inputs), []
    if node.flag("fix_gamma", True):
        inputs[1] = f"{context.name}_gamma_one"
        constants.append(constant(inputs[1], np.ones(context.shape[1], np.float32)))
    epsilon = node.number("eps", 1e-3)
    rectified = node.op == "_contrib_BatchNormWithReLU"
    name = f"{context.name}_normalised" if rectified else context.name
    nodes = [helper.make_node("BatchNormalization", inputs, [name], name=name, epsilon=epsilon)]
    if rectified:
        nodes.append(helper.make_node("Relu", [name], [context.name], name=context.name))
    return Lowering(tuple(nodes), context.name, tuple(constants))


def instance_norm(context: LoweringContext) -> Lowering:
    """Returns an InstanceNormalization."""
    nodes = Nodes(context)
    epsilon = context.node.number("eps", 1e-3)
    return nodes.end(nodes.add("InstanceNormalization", context.inputs, epsilon=epsilon))


def layer_norm(context: LoweringContext) -> Lowering:
    """Returns a LayerNormalization, with its axis brought to the end and back."""
    nodes, rank = Nodes(context), len(context.shape)
    axis = axis_of(context.node, rank, default=-1)
    data, *affine = context.inputs
    order = [i for i in range(rank) if i != axis] + [axis]
    if axis != rank - 1:
        data = nodes.add("Transpose", [data], perm=order)
    epsilon = context.node.number("eps", 1e-5)
    found = nodes.add("LayerNormalization", [data, *affine], axis=-1, epsilon=epsilon)
    if axis != rank - 1:
        found = nodes.add("Transpose", [found], perm=[order.index(i) for i in range(rank)])
    return nodes.end(found)


def group_norm(context: LoweringContext) -> Lowering:
    """Returns an InstanceNormalization of the groups; MXNet has a scale a group."""
    nodes, groups = Nodes(context), context.node.integer("num_groups", 1)
    data, *affine = context.inputs
    grouped = nodes.reshape(data, [0, groups, -1], "grouped")
    epsilon = context.node.number("eps", 1e-5)
    found = nodes.add("InstanceNormalization", [grouped, *affine], epsilon=epsilon)
    return nodes.end(nodes.reshape(found, context.open_shapes[0]))


def l2_normalisation(context: LoweringContext) -> Lowering:
    """Returns the values by their length: over an image, its channels or its positions."""
    nodes, mode = Nodes(context), context.node.text("mode", "instance")
    rank = len(context.shape)
    axes = {"instance": range(1, rank), "channel": (1,), "spatial": range(2, rank)}[mode]
    source = context.inputs[0]
    squares = nodes.add("Mul", [source, source], "squares")
    total = nodes.reduce("Sum", squares, list(axes), kept=True)
    epsilon = nodes.number(context.node.number("eps", 1e-10))
    length = nodes.add("Sqrt", [nodes.add("Add", [total, epsilon])], "length")
    return nodes.end(nodes.add("Div", [source, length]))


def local_response_norm(context: LoweringContext) -> Lowering:
    """Returns an LRN over neighbouring channels."""
    node, nodes = context.node, Nodes(context)
    size = node.integer("nsize", 1)
    if size % 2 == 0:
        raise UnsupportedOperator(f"{context.name}: LRN over an even number of channels, {size}")
    return nodes.end(
        nodes.add(
            "LRN", context.inputs, size=size, alpha=node.number("alpha", 1e-4),
            beta=node.number("beta", 0.75), bias=node.number("knorm", 2),
        )
    )  # fmt: skip
