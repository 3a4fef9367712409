"""Shapes of reductions, of products of matrices, and of values picked by index."""

from __future__ import annotations

from collections.abc import Sequence

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import Shape
from export.symbols.graph import Node
from export.symbols.reshape_rules import axes_of, axis_of


def reduction_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape without the reduced axes, or with lengths of 1."""
    shape = features[0]
    axes = axes_of(node, len(shape))
    if node.flag("keepdims", False):
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes) or (1,)


def index_reduction_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``argmax``, ``argmin`` or ``argmax_channel``."""
    if node.op == "argmax_channel":
        return (features[0][0], *features[0][2:])
    return reduction_shape(node, features)


def batch_dot_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of products of the last two axes; ``transpose_a`` turns the first's."""
    sides = []
    for shape, key in zip(features, ("transpose_a", "transpose_b"), strict=True):
        turned = node.flag(key, False)
        sides.append((shape[:-2], *(reversed(shape[-2:]) if turned else shape[-2:])))
    (outer, rows, inner), (other, length, columns) = sides
    if min(map(len, features)) < 2 or outer != other or inner != length:
        raise InvalidSymbol(f"{node.name} ({node.op}): the shapes {features} do not fit")
    if node.op != "batch_dot" and node.integer("axis", -2) not in (-2, len(features[0]) - 2):
        raise UnsupportedOperator(f"{node.name}: {node.op} over axis {node.attrs['axis']}")
    return (*outer, rows, columns)


def affine_product_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``_linalg_gemm`` or ``_linalg_syrk``."""
    if node.op == "_linalg_syrk":
        (shape,) = features
        length = shape[-1 if node.flag("transpose", False) else -2]
        return (*shape[:-2], length, length)
    product = batch_dot_shape(node, features[:2])
    if len(features) != 3 or features[2] != product:
        raise InvalidSymbol(f"{node.name}: cannot add {features[2:]} to products of {product}")
    return product


def ranked_shapes(node: Node, features: Sequence[Shape]) -> list[Shape]:
    """Returns the shapes of ``topk``, ``sort`` and ``argsort``: values, indices, or both."""
    shape = features[0]
    if node.attrs.get("axis") == "None":
        raise UnsupportedOperator(f"{node.name}: {node.op} without an axis mixes images")
    axis = axis_of(node, len(shape), default=-1)
    count = node.integer("k", 1) if node.op == "topk" else 0
    length = shape[axis] if count < 1 else count
    if length > shape[axis]:
        raise InvalidSymbol(f"{node.name}: k={length} of {shape[axis]} values")
    kind = node.text("ret_typ", "indices")
    if node.op == "topk" and kind not in ("value", "indices", "both"):
        raise UnsupportedOperator(f"{node.name}: topk of ret_typ {kind!r}")
    found = (*shape[:axis], length, *shape[axis + 1 :])
    return [found] * (2 if node.op == "topk" and kind == "both" else 1)


def moments_shapes(node: Node, features: Sequence[Shape]) -> list[Shape]:
    """Returns the shapes of mean and variance."""
    shape = features[0]
    axes = axes_of(node, len(shape), "axes")
    if node.flag("keepdims", False):
        return [tuple(1 if i in axes else n for i, n in enumerate(shape))] * 2
    return [tuple(n for i, n in enumerate(shape) if i not in axes) or (1,)] * 2


def dot_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of the last axis of one times the first of the other."""
    left, right = features
    if node.flag("transpose_a", False):
        left = (*left[1:], left[0])
    if node.flag("transpose_b", False):
        right = (right[-1], *right[:-1])
    if left[-1] != right[0]:
        raise InvalidSymbol(f"{node.name}: dot of {features[0]} and {features[1]}")
    return (*left[:-1], *right[1:]) or (1,)


def take_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape with the indices' in place of one axis; ``Embedding`` adds one."""
    if node.op == "Embedding":
        return (*features[0], node.integer("output_dim", 0))
    shape, chosen = features
    axis = axis_of(node, len(shape))
    return (*shape[:axis], *chosen, *shape[axis + 1 :])


def pick_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of one value along an axis for each position."""
    shape = features[0]
    axis = axis_of(node, len(shape), default=-1)
    kept = tuple(1 if i == axis else n for i, n in enumerate(shape))
    dropped = tuple(n for i, n in enumerate(shape) if i != axis)
    if features[1] not in (kept, dropped):
        raise InvalidSymbol(f"{node.name}: pick from {shape} by {features[1]}")
    return kept if node.flag("keepdims", False) else dropped


def one_hot_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape with the classes behind."""
    return (*features[0], node.integer("depth", 0))
