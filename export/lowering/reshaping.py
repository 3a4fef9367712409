"""``Reshape``, ``Flatten``, ``transpose``, ``Crop``, ``slice_axis``, ``slice_like`` and ``Pad`` as
ONNX nodes. The batch stays in front; the bounds and lengths are those of
``export.symbols.shape_rules``.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.lowering.context import Lowering, Site, constant, indices, single
from export.symbols.shape_rules import slice_bounds

_COPY, _INFER, _REST, _MERGE = 0, -1, -2, -3


def reshaping(site: Site) -> Lowering:
    """An ONNX Reshape. Raises UnsupportedOperator where the batch would not stay in front."""
    first = site.node.integers("shape")[0]
    # Shapes are inferred for a batch of one: a first length that depends on it is left open.
    open_first = {_COPY: 0, _REST: 0, _INFER: -1, _MERGE: -1}.get(first)
    if open_first is None:
        raise UnsupportedOperator(f"{site.name}: Reshape to a fixed batch")
    name = f"{site.name}_shape"
    return single(
        site, "Reshape", [site.inputs[0], name], indices(name, [open_first, *site.shape[1:]])
    )


def flattening(site: Site) -> Lowering:
    """An ONNX Flatten."""
    return single(site, "Flatten", site.inputs)


def transposition(site: Site) -> Lowering:
    """An ONNX Transpose."""
    axes = site.node.integers("axes")
    node = helper.make_node("Transpose", [site.inputs[0]], [site.name], name=site.name, perm=axes)
    return Lowering((node,), site.name)


def slicing(site: Site) -> Lowering:
    """One ONNX Slice; nothing where all is kept."""
    shape = site.input_shapes[0]
    bounds = slice_bounds(site.node, site.input_shapes)
    axes = [i for i, bound in enumerate(bounds) if bound != (0, shape[i])]
    if not axes:
        return Lowering((), site.inputs[0])
    names = [f"{site.name}_{part}" for part in ("starts", "ends", "axes")]
    values = [[bounds[i][0] for i in axes], [bounds[i][1] for i in axes], axes]
    constants = [indices(name, part) for name, part in zip(names, values, strict=True)]
    return single(site, "Slice", [site.inputs[0], *names], *constants)


def padding(site: Site) -> Lowering:
    """``Pad``: constant, edge or reflect. Raises UnsupportedOperator for another mode."""
    mode = site.node.text("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise UnsupportedOperator(f"{site.name}: padding of mode {mode!r}")
    widths = site.node.integers("pad_width")
    pads, value = f"{site.name}_pads", f"{site.name}_value"
    node = helper.make_node(
        "Pad", [site.inputs[0], pads, value], [site.name], name=site.name, mode=mode
    )
    filling = np.array(site.node.number("constant_value", 0), np.float32)
    return Lowering(
        (node,), site.name, (indices(pads, [*widths[::2], *widths[1::2]]), constant(value, filling))
    )
