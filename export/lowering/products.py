"""Products of matrices, and values picked by index, as ONNX nodes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes
from export.symbols.reshape_rules import axis_of


def fully_connected(context: LoweringContext) -> Lowering:
    """Returns a Gemm of the flattened input, or a product along the last axis."""
    node, nodes = context.node, Nodes(context)
    source, weight, *bias = context.inputs
    flat = node.flag("flatten", True)
    if flat and len(context.input_shapes[0]) != 2:
        source = nodes.add("Flatten", [source])
    if flat or len(context.shape) == 2:
        return nodes.end(nodes.add("Gemm", [source, weight, *bias], transB=1))
    product = nodes.add("MatMul", [source, nodes.add("Transpose", [weight], perm=[1, 0])])
    return nodes.end(nodes.add("Add", [product, *bias]) if bias else product)


def batch_dot(context: LoweringContext) -> Lowering:
    """Returns a MatMul of the last two axes; ``_linalg_gemm2`` is scaled by ``alpha``."""
    node, nodes = context.node, Nodes(context)
    sides = []
    for name, shape, key in zip(
        context.inputs, context.input_shapes, ("transpose_a", "transpose_b"), strict=True
    ):
        *outer, rows, columns = range(len(shape))
        turned = node.flag(key, False)
        sides.append(
            nodes.add("Transpose", [name], perm=[*outer, columns, rows]) if turned else name
        )
    product = nodes.add("MatMul", sides)
    alpha = node.number("alpha", 1)
    return nodes.end(product if alpha == 1 else nodes.add("Mul", [product, nodes.number(alpha)]))


def affine_product(context: LoweringContext) -> Lowering:
    """Returns ``_linalg_gemm``, a scaled product to which a scaled matrix is added, or
    ``_linalg_syrk``, a matrix times itself turned."""
    node, nodes = context.node, Nodes(context)
    rank = len(context.input_shapes[0])
    order = [*range(rank - 2), rank - 1, rank - 2]
    first = context.inputs[0]
    if node.op == "_linalg_syrk":
        sides = [first, nodes.add("Transpose", [first], perm=order)]
        sides = sides[::-1] if node.flag("transpose", False) else sides
    else:
        sides = [
            nodes.add("Transpose", [name], perm=order) if node.flag(key, False) else name
            for name, key in zip(context.inputs, ("transpose_a", "transpose_b"), strict=False)
        ]
    found = nodes.add("MatMul", sides)
    found = nodes.add("Mul", [found, nodes.number(node.number("alpha", 1))])
    if node.op == "_linalg_gemm":
        added = nodes.add("Mul", [context.inputs[2], nodes.number(node.number("beta", 1))])
        found = nodes.add("Add", [found, added])
    return nodes.end(found)


def dot(context: LoweringContext) -> Lowering:
    """Returns the product of the last axis with the first, as one of two matrices."""
    node, nodes = context.node, Nodes(context)
    (left, right), (first, second) = context.inputs, context.input_shapes
    if node.flag("transpose_a", False):
        left = nodes.add("Transpose", [left], perm=[*range(1, len(first)), 0])
        first = (*first[1:], first[0])
    if node.flag("transpose_b", False):
        order = [len(second) - 1, *range(len(second) - 1)]
        right, second = nodes.add("Transpose", [right], perm=order), tuple(second[i] for i in order)
    if len(first) != 2:
        left = nodes.reshape(left, [-1, first[-1]])
    if len(second) != 2:
        right = nodes.reshape(right, [second[0], -1])
    product = nodes.add("MatMul", [left, right])
    if (len(first), len(second)) != (2, 2):
        product = nodes.reshape(product, context.open_shapes[0])
    return nodes.end(product)


def taking(context: LoweringContext) -> Lowering:
    """Returns a Gather; indices beyond the ends are clipped, or wrapped around.

    ``Embedding`` takes rows of its weights.
    """
    node, nodes = context.node, Nodes(context)
    if node.op == "Embedding":
        chosen, source = context.inputs
        axis, length, mode = 0, context.input_shapes[1][0], "clip"
    else:
        source, chosen = context.inputs
        axis = axis_of(node, len(context.input_shapes[0]))
        length, mode = context.input_shapes[0][axis], node.text("mode", "clip")
    found = nodes.add("Gather", [source, _indices(nodes, chosen, length, mode)], axis=axis)
    return nodes.end(found)


def picking(context: LoweringContext) -> Lowering:
    """Returns a GatherElements: one value along an axis by the index of each position."""
    node, nodes = context.node, Nodes(context)
    shape, chosen = context.input_shapes
    axis = axis_of(node, len(shape), default=-1)
    found = _indices(nodes, context.inputs[1], shape[axis], node.text("mode", "clip"))
    axes = nodes.integers([axis], "axis")
    if len(chosen) != len(shape):
        found = nodes.add("Unsqueeze", [found, axes])
    picked = nodes.add("GatherElements", [context.inputs[0], found], axis=axis)
    if not node.flag("keepdims", False):
        picked = nodes.add("Squeeze", [picked, axes])
    return nodes.end(picked)


def _indices(nodes: Nodes, source: str, length: int, mode: str) -> str:
    if mode == "raise":
        raise UnsupportedOperator(f"{nodes.context.name}: mode raise: expected clip or wrap")
    whole = nodes.add("Cast", [source], to=TensorProto.INT64)
    if mode == "wrap":
        return nodes.add("Mod", [whole, nodes.values(np.array(length, np.int64), "length")])
    limits = [nodes.values(np.array(n, np.int64), part)
              for part, n in (("first", 0), ("last", length - 1))]  # fmt: skip
    return nodes.add("Min", [nodes.add("Max", [whole, limits[0]]), limits[1]])


def one_hot(context: LoweringContext) -> Lowering:
    """Returns a comparison of each index with all classes: no index beyond them has a one."""
    node, nodes = context.node, Nodes(context)
    if node.text("dtype", "float32") != "float32":
        raise UnsupportedOperator(f"{context.name}: one_hot of {node.attrs['dtype']}")
    chosen = nodes.add("Unsqueeze", [context.inputs[0], nodes.integers([-1], "axis")])
    classes = nodes.values(np.arange(node.integer("depth", 0), dtype=np.int64), "classes")
    equal = nodes.add("Equal", [nodes.add("Cast", [chosen], to=TensorProto.INT64), classes])
    values = (nodes.number(node.number(key, default)) for key, default in
              (("on_value", 1), ("off_value", 0)))  # fmt: skip
    return nodes.end(nodes.add("Where", [equal, *values]))


def choosing(context: LoweringContext) -> Lowering:
    """Returns a Where: the second input where the first is not 0, else the third."""
    nodes = Nodes(context)
    condition, *values = context.inputs
    is_zero = nodes.add("Equal", [condition, nodes.number(0)])
    return nodes.end(nodes.add("Where", [is_zero, *reversed(values)]))
