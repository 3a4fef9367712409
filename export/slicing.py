"""``Crop``, ``slice_axis``, ``slice_like``, ``Pad``: parts of a feature map, or a frame around it.

Shapes and lowerings stand together here, because both need the same bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from export.errors import InvalidSymbol, UnsupportedOperator
from export.geometry import Shape, pair
from export.lowering import Lowering, Site, constant, indices, single
from export.symbol import Node

Bounds = tuple[tuple[int, int], ...]


def slice_bounds(node: Node, features: Sequence[Shape]) -> Bounds:
    """Begin and end along every axis. Raises InvalidSymbol where they leave the input, and
    UnsupportedOperator where they cut the batch."""
    shape = features[0]
    bounds = {"Crop": _crop, "crop_like": _crop, "slice_axis": _slice_axis}.get(
        node.op, _slice_like
    )(node, features)
    for axis, ((begin, end), length) in enumerate(zip(bounds, shape, strict=True)):
        if not 0 <= begin < end <= length:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) takes {begin} to {end} of axis {axis}, which has {length}"
            )
        if axis == 0 and (begin, end) != (0, length):
            raise UnsupportedOperator(f"{node.name} ({node.op}) cuts the batch")
    return bounds


def sliced_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """The shape of what is left."""
    return tuple(end - begin for begin, end in slice_bounds(node, features))


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


def padded_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """The shape with its frame. Raises UnsupportedOperator where the batch or channels get one."""
    widths = node.integers("pad_width")
    if len(widths) != 8 or len(features[0]) != 4 or any(widths[:4]) or min(widths) < 0:
        raise UnsupportedOperator(f"{node.name}: only rows and columns can be padded, not {widths}")
    shape = features[0]
    return (*shape[:2], *(shape[i] + widths[2 * i] + widths[2 * i + 1] for i in (2, 3)))


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


def _crop(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} (Crop) needs a feature map, not {shape}")
    size = features[1][2:] if len(features) > 1 else pair(node, "h_w", (0, 0))
    offset = pair(node, "offset", (0, 0))
    if node.flag("center_crop", False):
        offset = tuple((shape[2 + i] - size[i]) // 2 for i in range(2))
    rows, columns = ((offset[i], offset[i] + size[i]) for i in range(2))
    return ((0, shape[0]), (0, shape[1]), rows, columns)


def _slice_axis(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    axis = node.integer("axis", 0) % len(shape)
    length = shape[axis]
    begin = node.integer("begin", 0)
    end = node.integer("end", length)
    own = (begin + length if begin < 0 else begin, end + length if end < 0 else end)
    return tuple(own if i == axis else (0, n) for i, n in enumerate(shape))


def _slice_like(node: Node, features: Sequence[Shape]) -> Bounds:
    if len(features) != 2:
        raise UnsupportedOperator(f"{node.name}: slice_like reads a parameter")
    shape, like = features
    if len(shape) != len(like):
        raise InvalidSymbol(f"{node.name}: slice_like of {shape} by {like}")
    axes = {axis % len(shape) for axis in node.integers("axes", tuple(range(len(shape))))}
    return tuple((0, like[i] if i in axes else n) for i, n in enumerate(shape))
