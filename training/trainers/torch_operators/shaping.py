"""Operators that move values: other shapes, parts, repetitions, frames.

Shapes and bounds are those of ``export.symbols.reshape_rules``, for the true batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.elementwise import constant_values
from export.symbols.reshape_rules import (
    axis_of,
    padded_shape,
    permutation,
    slice_bounds,
    split_axis,
    tile_repetitions,
)
from export.symbols.shape_rules import RULES
from training.trainers.torch_operators.call import Call

_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


def concatenate(call: Call) -> Tensor:
    """Joins tensors along ``dim``, the channels unless told otherwise."""
    return torch.cat(call.inputs, call.node.integer("dim", 1))


def stack(call: Call) -> Tensor:
    """Joins tensors along a new axis, the first unless told otherwise."""
    return torch.stack(call.inputs, call.node.integer("axis", 0))


def reshape(call: Call) -> Tensor:
    """Returns the same values in the shape that the operator's rule gives."""
    return call.data.reshape(RULES[call.node.op](call.node, call.shapes))


def transpose(call: Call) -> Tensor:
    """Reorders the axes (``transpose``, ``SwapAxis``)."""
    return call.data.permute(permutation(call.node, call.data.dim()))


def cut(call: Call) -> Tensor:
    """Returns one part, also in steps or backwards; a second input only sets its size."""
    x = call.data
    bounds = slice_bounds(call.node, call.shapes)
    backwards = [axis for axis, (_, _, step) in enumerate(bounds) if step < 0]
    # Backwards is forwards from the other end.
    forwards = [
        slice(len_of - 1 - begin, len_of - 1 - end, -step) if step < 0 else slice(begin, end, step)
        for (begin, end, step), len_of in zip(bounds, x.shape, strict=True)
    ]
    return (x.flip(backwards) if backwards else x)[tuple(forwards)]


def split(call: Call) -> tuple[Tensor, ...]:
    """Returns the parts along an axis, without it where ``squeeze_axis`` is set."""
    axis, parts = split_axis(call.node, call.shapes[0])
    found = [call.data.narrow(axis, begin, end - begin) for begin, end in parts]
    squeezed = call.node.flag("squeeze_axis", False)
    return tuple(part.squeeze(axis) if squeezed else part for part in found)


def broadcast(call: Call) -> Tensor:
    """Repeats lengths of 1."""
    return call.data.expand(RULES[call.node.op](call.node, call.shapes))


def tile(call: Call) -> Tensor:
    """Repeats the whole several times along each axis."""
    front, repetitions = tile_repetitions(call.node, call.data.dim())
    return call.data.reshape(*front, *call.data.shape).repeat(repetitions)


def repeat(call: Call) -> Tensor:
    """Repeats each value several times along an axis."""
    axis = axis_of(call.node, call.data.dim())
    RULES[call.node.op](call.node, call.shapes)
    return call.data.repeat_interleave(call.node.integer("repeats", 1), axis)


def pad(call: Call) -> Tensor:
    """Pads rows and columns: constant, edge or reflect."""
    padded_shape(call.node, call.shapes)
    mode = call.node.text("mode", "constant")
    top, bottom, left, right = call.node.integers("pad_width")[4:]
    value = call.node.number("constant_value", 0) if mode == "constant" else None
    return functional.pad(call.data, (left, right, top, bottom), _PAD_MODES[mode], value)


def move_blocks(call: Call) -> Tensor:
    """Moves blocks between positions and channels, of which they are the first part."""
    size, shape = call.node.integer("block_size", 1), RULES[call.node.op](call.node, call.shapes)
    batch, channels, height, width = call.shapes[0]
    if call.node.op == "depth_to_space":
        parts = call.data.reshape(batch, size, size, -1, height, width)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(shape)
    parts = call.data.reshape(batch, channels, height // size, size, width // size, size)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(shape)


def make_constant(call: Call) -> Tensor:
    """Returns what ``_zeros``, ``_arange`` and their like make."""
    values = constant_values(call.node, RULES[call.node.op](call.node, call.shapes))
    return torch.from_numpy(values).to(call.like)
