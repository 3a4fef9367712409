"""Convolutions: plain, transposed, deformable, and the upsampling that is one.

Of a deformable convolution MXNet reads 0 outside of the map; from the last row's centre to the
border it repeats that row, and the offset's gradient is 0 there. A modulated one fades to 0 over
one pixel on all sides. At a whole position the gradient is that of the cell behind it.
``grid_sample`` rounds positions, which shows most where training starts: all offsets 0, all
positions whole. Hence four gathers a tap.

Source: MXNet ``contrib/nn/deformable_im2col.h`` and ``modulated_deformable_im2col.h``; Dai et al.,
"Deformable Convolutional Networks", arXiv 1703.06211; Zhu et al., "Deformable ConvNets v2", arXiv
1811.11168.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import (
    Shape,
    bilinear_upsampling_arithmetic,
    convolution_arithmetic,
    deconvolution_arithmetic,
)
from export.symbols.shape_rules import MODULATED, RULES
from training.trainers.torch_operators.call import Call

HALVES = (torch.float16, torch.bfloat16)


def convolve(call: Call) -> Tensor:
    """Convolves ``[N,C,H,W]`` to ``[N,num_filter,h,w]``, or ``[N,C,L]`` along its length."""
    kernel, stride, dilate, pad = convolution_arithmetic(call.node)
    weight, *bias = call.inputs[1:]
    groups = call.node.integer("num_group", 1)
    function = functional.conv1d if len(kernel) == 1 else functional.conv2d
    return function(call.data, weight, bias[0] if bias else None, stride, pad, dilate, groups)


def deconvolve(call: Call) -> Tensor:
    """Computes the transposed convolution; MXNet's ``adj`` is PyTorch's output padding."""
    geometry = deconvolution_arithmetic(call.node, call.shapes[0][2:])
    weight, *bias = call.inputs[1:]
    return functional.conv_transpose2d(
        call.data,
        weight,
        bias[0] if bias else None,
        geometry.stride,
        geometry.pad,
        geometry.adjust,
        call.node.integer("num_group", 1),
        geometry.dilate,
    )


def upsample(call: Call) -> Tensor:
    """Enlarges maps: the nearest position of one or several, which are concatenated or added, or
    bilinear, a deconvolution a channel with the symbol's own weights."""
    node = call.node
    if node.text("sample_type", "nearest") == "bilinear":
        scale = node.integer("scale", 0)
        _, pad = bilinear_upsampling_arithmetic(scale)
        data, weight = call.inputs
        return functional.conv_transpose2d(
            data, weight, stride=scale, padding=pad, groups=data.shape[1]
        )
    size = RULES[node.op](node, call.shapes)[2:]
    large = [functional.interpolate(x, size, mode="nearest") for x in call.inputs]
    if node.text("multi_input_mode", "concat") == "sum":
        return functools.reduce(torch.add, large)
    return torch.cat(large, 1)


def convolve_deformably(call: Call) -> Tensor:
    """Convolves data ``[N,C,H,W]`` at offsets ``[N,groups*taps*2,h,w]`` (y and x of each tap in
    turn) to ``[N,num_filter,h,w]``; a modulated one weighs its taps by ``[N,groups*taps,h,w]``."""
    image, offsets, *rest = call.inputs
    mask = rest.pop(0) if call.node.op == MODULATED else None
    weight, *bias = rest
    groups, parts = call.node.integer("num_deformable_group", 1), call.node.integer("num_group", 1)
    kernel, stride, dilate, pad = convolution_arithmetic(call.node)
    taps = kernel[0] * kernel[1]
    batch, channels, *lengths = image.shape
    outputs = offsets.shape[2:]
    counts = [offsets.shape[1], *([] if mask is None else [2 * mask.shape[1]])]
    if any(count != 2 * groups * taps for count in counts):
        raise call.refuse(f"{offsets.shape[1]} offset channels for {groups} groups of {taps} taps")
    # Half precision has no positions: beyond 256 pixels float16 counts by quarters.
    moved = offsets.float() if offsets.dtype in HALVES else offsets
    moved = moved.reshape(batch, groups, taps, 2, *outputs)
    rows, columns = (
        moved[:, :, :, axis]
        + _positions(axis, kernel, stride, dilate, pad, outputs, offsets.device)
        for axis in range(2)
    )
    sampled = _sample(
        image.reshape(batch, groups, -1, *lengths), rows, columns, fading=mask is not None
    )
    if mask is not None:
        sampled = sampled * mask.reshape(batch, groups, 1, -1)
    sampled = sampled.to(image.dtype).reshape(batch, parts, channels // parts * taps, -1)
    result = (weight.reshape(parts, -1, sampled.shape[2]) @ sampled).reshape(batch, -1, *outputs)
    return result + bias[0].view(-1, 1, 1) if bias else result


def _positions(
    axis: int,
    kernel: Shape,
    stride: Shape,
    dilate: Shape,
    pad: Shape,
    outputs: Shape,
    device: torch.device,
) -> Tensor:
    """Returns ``[taps,h,w]``: the row (axis 0) or column that each tap reads without offset."""
    taps = torch.arange(kernel[axis], device=device) * dilate[axis]
    starts = torch.arange(outputs[axis], device=device) * stride[axis] - pad[axis]
    grid = taps[:, None] + starts
    grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
    return grid.expand(*kernel, *outputs).flatten(0, 1)


def _sample(image: Tensor, rows: Tensor, columns: Tensor, fading: bool) -> Tensor:
    """Returns bilinear values of ``[N,groups,C,H,W]`` at ``[N,groups,taps,h,w]`` as
    ``[N,groups,C,taps*h*w]``; ``fading`` to 0 over one pixel outside of the map."""
    height, width = image.shape[3:]
    first = -1 if fading else 0
    inside = (rows > -1) & (columns > -1) & (rows < height) & (columns < width)
    if not fading:
        inside = inside & (rows >= 0) & (columns >= 0)
    tops, down = _cell(rows, first, height)
    lefts, right = _cell(columns, first, width)
    features = image.flatten(3)
    result = torch.zeros((), dtype=rows.dtype, device=rows.device)
    for lower, row_share in ((0, 1 - down), (1, down)):
        for later, column_share in ((0, 1 - right), (1, right)):
            row, column = tops + lower, lefts + later
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = index.flatten(2)
            values = features.gather(3, index[:, :, None].expand(-1, -1, features.shape[2], -1))
            read = inside
            if fading:
                read = read & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = torch.where(read, row_share * column_share, 0).flatten(2)
            result = result + values * share[:, :, None]
    return result


def _cell(positions: Tensor, first: int, length: int) -> tuple[Tensor, Tensor]:
    """Returns the index before each position, and how far behind it the position is, 0 to 1."""
    # Clamped as integers: a position that is not a number must not become an index.
    before = positions.detach().floor().long().clamp(first, length - 1)
    return before, positions - before
