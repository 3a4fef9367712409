"""``Reshape``, ``Flatten``, ``transpose``, ``Crop``, ``slice_axis``, ``slice_like`` and ``Pad`` as
ONNX nodes. The batch stays in front; the bounds and lengths are those of
``export.symbols.shape_rules``.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, LoweringContext, constant, indices, single
from export.symbols.shape_rules import slice_bounds

_COPY, _INFER, _REST, _MERGE = 0, -1, -2, -3


def reshaping(context: LoweringContext) -> Lowering:
    """Returns an ONNX Reshape.

    Raises UnsupportedOperator where the batch would not stay in front.
    """
    first = context.node.integers("shape")[0]
    # Shapes are inferred for a batch of one: a first length that depends on it is left open.
    open_first = {_COPY: 0, _REST: 0, _INFER: -1, _MERGE: -1}.get(first)
    if open_first is None:
        raise UnsupportedOperator(f"{context.name}: Reshape to a fixed batch")
    name = f"{context.name}_shape"
    return single(
        context,
        "Reshape",
        [context.inputs[0], name],
        indices(name, [open_first, *context.shape[1:]]),
    )


def flattening(context: LoweringContext) -> Lowering:
    """Returns an ONNX Flatten."""
    return single(context, "Flatten", context.inputs)


def transposition(context: LoweringContext) -> Lowering:
    """Returns an ONNX Transpose."""
    axes = context.node.integers("axes")
    node = helper.make_node(
        "Transpose", [context.inputs[0]], [context.name], name=context.name, perm=axes
    )
    return Lowering((node,), context.name)


def slicing(context: LoweringContext) -> Lowering:
    """Returns one ONNX Slice; nothing where all is kept."""
    shape = context.input_shapes[0]
    bounds = slice_bounds(context.node, context.input_shapes)
    axes = [i for i, bound in enumerate(bounds) if bound != (0, shape[i])]
    if not axes:
        return Lowering((), context.inputs[0])
    names = [f"{context.name}_{part}" for part in ("starts", "ends", "axes")]
    values = [[bounds[i][0] for i in axes], [bounds[i][1] for i in axes], axes]
    constants = [indices(name, part) for name, part in zip(names, values, strict=True)]
    return single(context, "Slice", [context.inputs[0], *names], *constants)


def padding(context: LoweringContext) -> Lowering:
    """Lowers ``Pad``: constant, edge or reflect. Raises UnsupportedOperator for another mode."""
    mode = context.node.text("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise UnsupportedOperator(f"{context.name}: padding of mode {mode!r}")
    widths = context.node.integers("pad_width")
    pads, value = f"{context.name}_pads", f"{context.name}_value"
    node = helper.make_node(
        "Pad", [context.inputs[0], pads, value], [context.name], name=context.name, mode=mode
    )
    filling = np.array(context.node.number("constant_value", 0), np.float32)
    return Lowering(
        (node,),
        context.name,
        (indices(pads, [*widths[::2], *widths[1::2]]), constant(value, filling)),
    )
