"""Operators that move values without computing, as ONNX nodes.

Shapes, bounds and orders are those of ``export.symbols.reshape_rules``; lengths that depend on the
batch stay open.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, Nodes, constant, single
from export.symbols.elementwise import constant_values
from export.symbols.reshape_rules import (
    axis_of,
    permutation,
    slice_bounds,
    split_axis,
    tile_repetitions,
)


def reshaping(context: LoweringContext) -> Lowering:
    """Returns an ONNX Reshape. Raises UnsupportedOperator where the batch would be divided."""
    shape = context.open_shapes[0]
    if shape.count(-1) > 1:
        raise UnsupportedOperator(f"{context.name}: {context.node.op} to a fixed batch")
    nodes = Nodes(context)
    # The first length stays open by being copied, where it is the same.
    copied = shape[0] == -1 and context.shape[0] == context.input_shapes[0][0] == 1
    return nodes.end(nodes.reshape(context.inputs[0], [0 if copied else shape[0], *shape[1:]]))


def flattening(context: LoweringContext) -> Lowering:
    """Returns an ONNX Flatten."""
    return single(context, "Flatten", context.inputs)


def transposition(context: LoweringContext) -> Lowering:
    """Returns an ONNX Transpose."""
    nodes = Nodes(context)
    order = permutation(context.node, len(context.shape))
    return nodes.end(nodes.add("Transpose", context.inputs, perm=order))


def slicing(context: LoweringContext) -> Lowering:
    """Returns one ONNX Slice; nothing where all is kept."""
    shape = context.input_shapes[0]
    bounds = slice_bounds(context.node, context.input_shapes)
    axes = [i for i, bound in enumerate(bounds) if bound != (0, shape[i], 1)]
    if not axes:
        return Lowering((), context.inputs[0])
    return _slice(context, axes, [bounds[i] for i in axes])


def _slice(
    context: LoweringContext, axes: Sequence[int], bounds: Sequence[tuple[int, int, int]]
) -> Lowering:
    nodes = Nodes(context)
    begins, ends, steps = zip(*bounds, strict=True)
    # Before the first value: ONNX would count -1 from the end.
    ends = tuple(-(1 << 31) if end < 0 else end for end in ends)
    lists = [nodes.integers(values, part) for values, part in
             ((begins, "starts"), (ends, "ends"), (axes, "axes"))]  # fmt: skip
    if any(step != 1 for step in steps):
        lists.append(nodes.integers(steps, "steps"))
    return nodes.end(nodes.add("Slice", [context.inputs[0], *lists]))


def splitting(context: LoweringContext) -> Lowering:
    """Returns an ONNX Split, its parts without the axis where ``squeeze_axis`` is set."""
    nodes = Nodes(context)
    axis, parts = split_axis(context.node, context.input_shapes[0])
    if len(parts) == 1 and not context.node.flag("squeeze_axis", False):
        return Lowering((), context.inputs[0])
    lengths = nodes.integers([end - begin for begin, end in parts], "lengths")
    first = nodes.add("Split", [context.inputs[0], lengths], axis=axis)
    names = [first, *(f"{first}_{n}" for n in range(1, len(parts)))]
    del nodes.nodes[-1].output[:]
    nodes.nodes[-1].output.extend(names)
    if context.node.flag("squeeze_axis", False):
        axes = nodes.integers([axis], "axis")
        names = [nodes.add("Squeeze", [name, axes]) for name in names]
    return Lowering(tuple(nodes.nodes), names[0], tuple(nodes.constants.values()), tuple(names[1:]))


def concatenation(context: LoweringContext) -> Lowering:
    """Returns an ONNX Concat."""
    nodes = Nodes(context)
    axis = context.node.integer("dim", 1)
    return nodes.end(nodes.add("Concat", context.inputs, axis=axis))


def stacking(context: LoweringContext) -> Lowering:
    """Returns an ONNX Concat along a new axis."""
    nodes = Nodes(context)
    axis = axis_of(context.node, len(context.shape))
    axes = nodes.integers([axis], "axis")
    parts = [nodes.add("Unsqueeze", [name, axes]) for name in context.inputs]
    return nodes.end(nodes.add("Concat", parts, axis=axis))


def padding(context: LoweringContext) -> Lowering:
    """Lowers ``Pad``: constant, edge or reflect."""
    nodes, node = Nodes(context), context.node
    widths = node.integers("pad_width")
    pads = nodes.integers([*widths[::2], *widths[1::2]], "pads")
    value = nodes.number(node.number("constant_value", 0))
    mode = node.text("mode", "constant")
    return nodes.end(nodes.add("Pad", [context.inputs[0], pads, value], mode=mode))


def broadcasting(context: LoweringContext) -> Lowering:
    """Returns an ONNX Expand. Raises UnsupportedOperator where a tensor without a batch gets one
    whose length no other input has."""
    nodes = Nodes(context)
    before, after = context.open_inputs[0], context.open_shapes[0]
    gained = [i for i, n in enumerate(after) if n == -1 and before[i] != -1]
    if not gained:
        shape = nodes.integers([1 if n == -1 else n for n in after], "shape")
        return nodes.end(nodes.add("Expand", [context.inputs[0], shape]))
    if len(context.inputs) < 2 or -1 not in context.open_inputs[1]:
        raise UnsupportedOperator(f"{context.name}: {context.node.op} to a fixed batch")
    axis = context.open_inputs[1].index(-1)
    lengths = nodes.add("Shape", [context.inputs[1]])
    batch = nodes.add("Gather", [lengths, nodes.integers([axis], "axis")])
    parts = [batch if n == -1 else nodes.integers([n], "length") for n in after]
    shape = nodes.add("Concat", parts, axis=0)
    return nodes.end(nodes.add("Expand", [context.inputs[0], shape]))


def tiling(context: LoweringContext) -> Lowering:
    """Returns an ONNX Tile, with the missing axes in front."""
    nodes = Nodes(context)
    source = context.inputs[0]
    front, repetitions = tile_repetitions(context.node, len(context.input_shapes[0]))
    if front:
        source = nodes.reshape(source, [*front, *context.open_inputs[0]], "wider")
    return nodes.end(nodes.add("Tile", [source, nodes.integers(repetitions, "repetitions")]))


def repeating(context: LoweringContext) -> Lowering:
    """Returns every value of an axis several times in a row: a Tile of a new axis behind it."""
    nodes = Nodes(context)
    shape = context.open_inputs[0]
    axis, count = axis_of(context.node, len(shape)), context.node.integer("repeats", 1)
    wider = nodes.add("Unsqueeze", [context.inputs[0], nodes.integers([axis + 1], "axis")])
    repetitions = [count if i == axis + 1 else 1 for i in range(len(shape) + 1)]
    tiled = nodes.add("Tile", [wider, nodes.integers(repetitions, "repetitions")])
    return nodes.end(nodes.reshape(tiled, context.open_shapes[0]))


def blocks(context: LoweringContext) -> Lowering:
    """Returns a DepthToSpace or SpaceToDepth, whose blocks are the first part of the channels."""
    nodes = Nodes(context)
    size = context.node.integer("block_size", 1)
    op_type = "DepthToSpace" if context.node.op == "depth_to_space" else "SpaceToDepth"
    return nodes.end(nodes.add(op_type, context.inputs, blocksize=size))


def constant_tensor(context: LoweringContext) -> Lowering:
    """Returns a constant: what ``_zeros``, ``_arange`` and their like make."""
    if -1 in context.open_shapes[0]:
        raise UnsupportedOperator(f"{context.name}: {context.node.op} along the batch")
    values = constant_values(context.node, context.shape)
    return Lowering((), context.name, (constant(context.name, values),))
