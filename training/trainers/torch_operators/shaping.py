"""Operators that move values: other shapes, parts, repetitions, frames.

Shapes and bounds are those of ``export.symbols.reshape_rules``, for the true batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import convolution_arithmetic, pair
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
    """Joins tensors along ``dim``, the channels by default."""
    return torch.cat(call.inputs, call.node.integer("dim", 1))


def stack(call: Call) -> Tensor:
    """Joins tensors along a new axis, the first by default."""
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


def make_grid(call: Call) -> Tensor:
    """Returns the positions that an affine transformation ``[N,6]`` or a flow in pixels leads
    to."""
    height, width = RULES[call.node.op](call.node, call.shapes)[2:]
    if call.node.text("transform_type", "") == "affine":
        return _affine(call.data, height, width)
    halves = call.data.new_tensor([(width - 1) / 2, (height - 1) / 2]).reshape(1, 2, 1, 1)
    return (call.data + _pixels(call.data, height, width)) / halves - 1


def sample(call: Call) -> Tensor:
    """Reads a map at a grid; ``SpatialTransformer`` makes its grid of a transformation."""
    image, places = call.inputs
    if call.node.op == "SpatialTransformer":
        places = _affine(places, *pair(call.node, "target_shape", (0, 0), 1))
    return functional.grid_sample(image, places.permute(0, 2, 3, 1), align_corners=True)


def _affine(transformation: Tensor, height: int, width: int) -> Tensor:
    pixels = _pixels(transformation, height, width).reshape(2, -1)
    longest = transformation.new_tensor([[width - 1], [height - 1]]).clamp_min(1)
    positions = torch.cat([2 * pixels / longest - 1, torch.ones_like(pixels[:1])])
    return (transformation.reshape(-1, 2, 3) @ positions).reshape(-1, 2, height, width)


def _pixels(like: Tensor, height: int, width: int) -> Tensor:
    """Returns ``[1,2,height,width]``: column and row of every pixel."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device)
                     for n in (height, width))  # fmt: skip
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]


def make_columns(call: Call) -> Tensor:
    """Returns each tap of a window as a channel (``im2col``)."""
    kernel, stride, dilate, pad = convolution_arithmetic(call.node)
    return functional.unfold(call.data, kernel, dilate, pad, stride)


def make_image(call: Call) -> Tensor:
    """Returns the taps at their places, added where windows overlap (``col2im``)."""
    kernel, stride, dilate, pad = convolution_arithmetic(call.node)
    size = pair(call.node, "output_size", (), 1)
    return functional.fold(call.data, size, kernel, dilate, pad, stride)
