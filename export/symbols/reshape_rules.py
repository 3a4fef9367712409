"""Shapes of operators that move values without computing: reshapes, slices, splits, repetitions.

What a runtime needs beside the shape (bounds, order of axes, repetitions) is reckoned here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import Shape, pair
from export.symbols.graph import Node

_COPY, _INFER, _REST, _MERGE, _SPLIT = 0, -1, -2, -3, -4
# MXNet's own limit.
MAX_AXES = 32


def axis_of(node: Node, rank: int, key: str = "axis", default: int = 0) -> int:
    """Returns an attribute that names one of ``rank`` axes, from 0. Raises InvalidSymbol."""
    axis = node.integer(key, default)
    if not -rank <= axis < rank:
        raise InvalidSymbol(
            f"{node.name} ({node.op}): {key}={axis} is not an axis of a tensor of {rank}"
        )
    return axis % rank


def axes_of(node: Node, rank: int, key: str = "axis") -> tuple[int, ...]:
    """Returns the axes that an attribute names, sorted; all where it is absent or empty.

    ``exclude`` names those that are left. Raises InvalidSymbol.
    """
    axes = node.integers(key)
    if any(not -rank <= axis < rank for axis in axes):
        raise InvalidSymbol(
            f"{node.name} ({node.op}): {key}={axes} are not axes of a tensor of {rank}"
        )
    named = {axis % rank for axis in axes} if axes else set(range(rank))
    if axes and node.flag("exclude", False):
        named = set(range(rank)) - named
    return tuple(sorted(named))


def flattened_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns (batch, everything else)."""
    batch, *rest = features[0]
    return (batch, math.prod(rest))


def reshaped_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Follows MXNet's codes: 0 copies, -1 infers, -2 copies the rest, -3 merges two, -4 splits
    one. ``reverse`` applies them from the end."""
    shape, codes = features[0], list(node.integers("shape"))
    if not codes:
        return _legacy_target(node, shape)
    if node.flag("reverse", False):
        return _apply_codes(node, shape[::-1], codes[::-1])[::-1]
    return _apply_codes(node, shape, codes)


def _apply_codes(node: Node, shape: Shape, codes: list[int]) -> Shape:
    found: list[int] = []
    position = index = 0
    misfit = f"{node.name}: {tuple(codes)} does not fit {shape}"
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
    except (IndexError, ZeroDivisionError) as error:
        raise InvalidSymbol(misfit) from error
    known = math.prod(n for n in found if n != _INFER)
    if found.count(_INFER) > 1 or not known or math.prod(shape) % known:
        raise InvalidSymbol(misfit)
    found = [math.prod(shape) // known if n == _INFER else n for n in found]
    if math.prod(found) != math.prod(shape) or len(found) > MAX_AXES:
        raise InvalidSymbol(misfit)
    return tuple(found)


def _legacy_target(node: Node, shape: Shape) -> Shape:
    """Returns the shape of MXNet 0.8's ``target_shape``, in which one 0 is inferred."""
    target = list(node.integers("target_shape"))
    if not target:
        raise UnsupportedOperator(f"{node.name}: Reshape without a shape")
    kept = node.flag("keep_highest", False)
    if kept:
        target[0] = shape[0]
    known = math.prod(n for n in target if n)
    if target.count(0) > 1 or min(target) < 0 or math.prod(shape) % known:
        raise InvalidSymbol(f"{node.name}: target_shape={tuple(target)} does not fit {shape}")
    found = tuple(n or math.prod(shape) // known for n in target)
    if math.prod(found) != math.prod(shape):
        raise InvalidSymbol(f"{node.name}: target_shape={tuple(target)} does not fit {shape}")
    return found


def _split(length: int, first: int, second: int) -> tuple[int, int]:
    if first == _INFER:
        return length // second, second
    return first, length // first if second == _INFER else second


def like_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``reshape_like``: the second input's, or with a part of its axes."""
    own, other = features
    bounds = []
    for side, shape in (("lhs", own), ("rhs", other)):
        start = axis_of(node, len(shape), f"{side}_begin") if node.text(f"{side}_begin", "") else 0
        end = node.integer(f"{side}_end", len(shape))
        bounds.append((start, end + len(shape) if end < 0 else end))
    (begin, end), (other_begin, other_end) = bounds
    found = (*own[:begin], *other[other_begin:other_end], *own[end:])
    if math.prod(found) != math.prod(own):
        raise InvalidSymbol(f"{node.name}: {own} cannot have the shape {found}")
    return found


def expanded_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape with one more axis, of length 1."""
    shape = features[0]
    axis = axis_of(node, len(shape) + 1)
    return (*shape[:axis], 1, *shape[axis:])


def squeezed_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape without axes of length 1: those named, or all."""
    shape = features[0]
    named = node.integers("axis")
    axes = axes_of(node, len(shape)) if named else [i for i, n in enumerate(shape) if n == 1]
    if any(shape[axis] != 1 for axis in axes):
        raise InvalidSymbol(f"{node.name}: axis={tuple(axes)} of {shape} are not all of length 1")
    return tuple(n for i, n in enumerate(shape) if i not in axes) or (1,)


def permutation(node: Node, rank: int) -> tuple[int, ...]:
    """Returns the order of axes of ``transpose`` and ``SwapAxis``. Raises InvalidSymbol."""
    if node.op == "SwapAxis":
        first, second = axis_of(node, rank, "dim1"), axis_of(node, rank, "dim2")
        order = list(range(rank))
        order[first], order[second] = second, first
        return tuple(order)
    axes = tuple(axis % rank for axis in node.integers("axes", tuple(reversed(range(rank)))))
    if sorted(axes) != list(range(rank)):
        raise InvalidSymbol(f"{node.name}: transpose by {axes} of a tensor of {rank} axes")
    return axes


def transposed_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the lengths in their new order."""
    return tuple(features[0][axis] for axis in permutation(node, len(features[0])))


# Begin, end and step along one axis; the end of a backward slice may be -1, before the first.
Bounds = tuple[tuple[int, int, int], ...]


def slice_bounds(node: Node, features: Sequence[Shape]) -> Bounds:
    """Returns begin, end and step along every axis. Raises InvalidSymbol where they leave the
    input."""
    shape = features[0]
    bounds = {
        "Crop": _crop, "slice_axis": _slice_axis, "slice": _slice, "reverse": _reverse,
    }.get(node.op, _slice_like)(node, features)  # fmt: skip
    for axis, ((begin, end, step), length) in enumerate(zip(bounds, shape, strict=True)):
        inside = 0 <= begin < end <= length if step > 0 else -1 <= end < begin < length
        if not inside:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) takes {begin} to {end} of axis {axis}, which has {length}"
            )
    return bounds


def sliced_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of what is left."""
    return tuple(len(range(*bound)) for bound in slice_bounds(node, features))


def _crop(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} (Crop) needs a feature map, not {shape}")
    size = features[1][2:] if len(features) > 1 else pair(node, "h_w", (0, 0))
    offset = pair(node, "offset", (0, 0))
    if node.flag("center_crop", False):
        offset = tuple((shape[2 + i] - size[i]) // 2 for i in range(2))
    rows, columns = ((offset[i], offset[i] + size[i], 1) for i in range(2))
    return ((0, shape[0], 1), (0, shape[1], 1), rows, columns)


def _slice_axis(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    axis = axis_of(node, len(shape))
    length = shape[axis]
    begin, end = node.integer("begin", 0), node.integer("end", length)
    own = (begin + length if begin < 0 else begin, end + length if end < 0 else end, 1)
    return tuple(own if i == axis else (0, n, 1) for i, n in enumerate(shape))


def _slice(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    begins, ends, steps = (node.bounds(key) for key in ("begin", "end", "step"))
    if max(len(begins), len(ends), len(steps)) > len(shape):
        raise InvalidSymbol(f"{node.name}: a slice of more axes than {shape} has")
    found = []
    for axis, length in enumerate(shape):
        given = [part[axis] if axis < len(part) else None for part in (begins, ends, steps)]
        if given[2] == 0:
            raise InvalidSymbol(f"{node.name}: a slice in steps of 0")
        found.append(slice(*given).indices(length))
    return tuple(found)


def _reverse(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    axes = axes_of(node, len(shape))
    return tuple((n - 1, -1, -1) if i in axes else (0, n, 1) for i, n in enumerate(shape))


def _slice_like(node: Node, features: Sequence[Shape]) -> Bounds:
    if len(features) != 2:
        raise InvalidSymbol(f"{node.name}: slice_like needs two inputs")
    shape, like = features
    axes = axes_of(node, len(shape), "axes") if node.integers("axes") else range(len(shape))
    if max(axes) >= len(like):
        raise InvalidSymbol(f"{node.name}: slice_like of {shape} by {like}")
    return tuple((0, like[i] if i in axes else n, 1) for i, n in enumerate(shape))


def split_axis(node: Node, shape: Shape) -> tuple[int, list[tuple[int, int]]]:
    """Returns the axis that ``SliceChannel`` or ``_split_v2`` cuts, and begin and end of each
    part. Raises InvalidSymbol."""
    axis = axis_of(node, len(shape), default=1)
    length = shape[axis]
    count = node.integer("num_outputs" if node.op == "SliceChannel" else "sections", 0)
    if count > 0:
        if length % count:
            raise InvalidSymbol(f"{node.name}: {length} cannot be split into {count} equal parts")
        starts = list(range(0, length, length // count))
    else:
        starts = list(node.integers("indices", (0,)))
    parts = list(zip(starts, [*starts[1:], length], strict=True))
    if any(not 0 <= begin < end <= length for begin, end in parts):
        raise InvalidSymbol(f"{node.name}: {length} cannot be split at {starts}")
    return axis, parts


def split_shapes(node: Node, features: Sequence[Shape]) -> list[Shape]:
    """Returns the shapes of all parts, without the axis where ``squeeze_axis`` is set."""
    shape = features[0]
    axis, parts = split_axis(node, shape)
    squeezed = node.flag("squeeze_axis", False)
    if squeezed and any(end - begin != 1 for begin, end in parts):
        raise InvalidSymbol(f"{node.name}: squeeze_axis, but its parts are longer than 1")
    return [
        (*shape[:axis], *([] if squeezed else [end - begin]), *shape[axis + 1 :])
        for begin, end in parts
    ]


def padded_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape with its frame. Raises UnsupportedOperator where the batch or channels get
    one."""
    widths = node.integers("pad_width")
    if len(widths) != 8 or len(features[0]) != 4 or any(widths[:4]) or min(widths) < 0:
        raise UnsupportedOperator(f"{node.name}: only rows and columns can be padded, not {widths}")
    mode, shape = node.text("mode", "constant"), features[0]
    if mode not in ("constant", "edge", "reflect"):
        raise UnsupportedOperator(
            f"{node.name} (Pad): padding of mode {mode!r} is not known: expected constant, edge or"
            " reflect"
        )
    return (*shape[:2], *(shape[i] + widths[2 * i] + widths[2 * i + 1] for i in (2, 3)))


def concatenated_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``Concat`` along ``dim``."""
    first = features[0]
    axis = axis_of(node, len(first), "dim", 1)
    for shape in features[1:]:
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise InvalidSymbol(f"{node.name}: cannot concatenate {features} along axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in features), *first[axis + 1 :])


def stacked_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``stack``: a new axis, as long as there are inputs."""
    first = features[0]
    if any(shape != first for shape in features):
        raise InvalidSymbol(f"{node.name}: cannot stack the shapes {features}")
    axis = axis_of(node, len(first) + 1)
    return (*first[:axis], len(features), *first[axis:])


def broadcast_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``broadcast_to``, ``broadcast_axis`` or ``broadcast_like``."""
    shape = features[0]
    rank, target = len(shape), list(shape)
    if node.op == "broadcast_axis":
        axes, sizes = node.integers("axis"), node.integers("size")
        if len(axes) != len(sizes) or any(not -rank <= axis < rank for axis in axes):
            raise InvalidSymbol(f"{node.name}: axis={axes} and size={sizes} do not fit {shape}")
        for axis, size in zip(axes, sizes, strict=True):
            target[axis] = size
    elif node.op == "broadcast_like":
        other = features[1]
        axes = node.integers("lhs_axes", tuple(range(rank)))
        others = node.integers("rhs_axes", tuple(range(len(other))))
        fit = len(axes) == len(others) and max(axes) < rank and max(others) < len(other)
        if not fit or min(axes) < -rank or min(others) < -len(other):
            raise InvalidSymbol(f"{node.name}: {shape} cannot be broadcast like {other}")
        for axis, source in zip(axes, others, strict=True):
            target[axis] = other[source]
    else:
        codes = node.integers("shape")
        if len(codes) != rank:
            raise InvalidSymbol(f"{node.name}: {shape} cannot be broadcast to {codes}")
        target = [code or n for code, n in zip(codes, shape, strict=True)]
    if any(n not in (1, t) for n, t in zip(shape, target, strict=True)):
        raise InvalidSymbol(f"{node.name}: {shape} cannot be broadcast to {tuple(target)}")
    return tuple(target)


def tile_repetitions(node: Node, rank: int) -> tuple[Shape, Shape]:
    """Returns how many axes of length 1 ``tile`` puts in front, as a shape, and the repetitions of
    every axis then."""
    repetitions = node.integers("reps")
    if not repetitions or min(repetitions) < 1:
        raise InvalidSymbol(f"{node.name}: reps={repetitions} is not valid: expected positive ones")
    missing = len(repetitions) - rank
    return (1,) * max(missing, 0), (*(1,) * max(-missing, 0), *repetitions)


def tiled_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``tile``."""
    front, repetitions = tile_repetitions(node, len(features[0]))
    return tuple(n * r for n, r in zip((*front, *features[0]), repetitions, strict=True))


def repeated_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``repeat`` along its axis. Raises UnsupportedOperator without one."""
    shape, count = features[0], node.integer("repeats", 1)
    if not node.text("axis", ""):
        raise UnsupportedOperator(f"{node.name}: repeat without an axis flattens the batch")
    axis = axis_of(node, len(shape))
    if count < 1:
        raise InvalidSymbol(f"{node.name}: repeats={count} is not valid: expected at least 1")
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])


def blocks_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of ``depth_to_space`` or ``space_to_depth``."""
    shape, block = features[0], node.integer("block_size", 0)
    if len(shape) != 4 or block < 1:
        raise InvalidSymbol(f"{node.name} ({node.op}): blocks of {block} in {shape}")
    batch, channels, height, width = shape
    divisors = (block * block,) if node.op == "depth_to_space" else (block, block)
    lengths = (channels,) if node.op == "depth_to_space" else (height, width)
    if any(n % divisor for n, divisor in zip(lengths, divisors, strict=True)):
        raise InvalidSymbol(f"{node.name} ({node.op}): {shape} has no whole blocks of {block}")
    if node.op == "depth_to_space":
        return (batch, channels // block**2, height * block, width * block)
    return (batch, channels * block**2, height // block, width // block)
