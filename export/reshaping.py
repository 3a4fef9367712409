"""``Reshape``, ``Flatten``, ``transpose``: the same values in another shape, the batch in front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import helper

from export.errors import InvalidSymbol, UnsupportedOperator
from export.geometry import Shape
from export.lowering import Lowering, Site, indices, single
from export.symbol import Node

_COPY, _INFER, _REST, _MERGE, _SPLIT = 0, -1, -2, -3, -4


def flattened_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """(batch, everything else)."""
    batch, *rest = features[0]
    return (batch, math.prod(rest))


def reshaped_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """MXNet's codes: 0 copies, -1 infers, -2 copies the rest, -3 merges two, -4 splits one."""
    shape, codes = features[0], list(node.integers("shape"))
    if not codes or node.flag("reverse", False):
        raise UnsupportedOperator(f"{node.name}: Reshape without shape, or reversed")
    found: list[int] = []
    position = index = 0
    try:
        while index < len(codes):
            code = codes[index]
            if code > 0 or code == _INFER:
                found.append(code)
                position += 1
            elif code == _COPY:
                found.append(shape[position])
                position += 1
            elif code == _REST:
                found.extend(shape[position:])
                position = len(shape)
            elif code == _MERGE:
                found.append(shape[position] * shape[position + 1])
                position += 2
            elif code == _SPLIT:
                found.extend(_split(shape[position], codes[index + 1], codes[index + 2]))
                position, index = position + 1, index + 2
            else:
                raise UnsupportedOperator(f"{node.name}: {code} in the shape {tuple(codes)}")
            index += 1
    except IndexError as error:
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}") from error
    known = math.prod(n for n in found if n != _INFER)
    if found.count(_INFER) > 1 or not known or math.prod(shape) % known:
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}")
    found = [math.prod(shape) // known if n == _INFER else n for n in found]
    if math.prod(found) != math.prod(shape):
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}")
    return tuple(found)


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


def transposed_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """The lengths in the order of ``axes``. Raises UnsupportedOperator where the batch moves."""
    axes = node.integers("axes")
    if sorted(axes) != list(range(len(features[0]))) or axes[0] != 0:
        raise UnsupportedOperator(f"{node.name}: transpose by {axes}")
    return tuple(features[0][axis] for axis in axes)


def transposition(site: Site) -> Lowering:
    """An ONNX Transpose."""
    axes = site.node.integers("axes")
    node = helper.make_node("Transpose", [site.inputs[0]], [site.name], name=site.name, perm=axes)
    return Lowering((node,), site.name)


def _split(length: int, first: int, second: int) -> tuple[int, int]:
    if first == _INFER:
        return length // second, second
    return first, length // first if second == _INFER else second
