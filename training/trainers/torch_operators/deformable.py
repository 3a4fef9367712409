"""Deformable convolution with MXNet's borders, and its gradients for data, offsets and weights.

Outside of the map MXNet reads 0; from the last row's centre to the border it repeats that row, and
the offset's gradient is 0 there. At a whole position the gradient is that of the cell behind it.
``grid_sample`` has other borders and rounds positions, which shows most where training starts: all
offsets 0, all positions whole. Hence four gathers a tap.

Source: MXNet ``contrib/nn/deformable_im2col.h``; Dai et al., "Deformable Convolutional Networks",
arXiv 1703.06211.
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.symbols.conv_arithmetic import Shape, convolution_arithmetic
from training.trainers.torch_operators.call import Call

HALVES = (torch.float16, torch.bfloat16)


def convolve_deformably(call: Call) -> Tensor:
    """Data ``[N,C,H,W]`` and offsets ``[N,groups*taps*2,h,w]`` (y and x of each tap in turn) ->
    ``[N,num_filter,h,w]``."""
    image, offsets, weight, *bias = call.inputs
    groups, parts = call.node.integer("num_deformable_group", 1), call.node.integer("num_group", 1)
    kernel, stride, dilate, pad = convolution_arithmetic(call.node)
    taps = kernel[0] * kernel[1]
    batch, channels, *lengths = image.shape
    outputs = offsets.shape[2:]
    if offsets.shape[1] != 2 * groups * taps:
        raise call.refuse(f"{offsets.shape[1]} offset channels for {groups} groups of {taps} taps")
    # Half precision has no positions: beyond 256 pixels float16 counts by quarters.
    moved = offsets.float() if offsets.dtype in HALVES else offsets
    moved = moved.reshape(batch, groups, taps, 2, *outputs)
    rows, columns = (
        moved[:, :, :, axis]
        + _positions(axis, kernel, stride, dilate, pad, outputs, offsets.device)
        for axis in range(2)
    )
    sampled = _sample(image.reshape(batch, groups, -1, *lengths), rows, columns)
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
    """``[taps,h,w]``: the row (axis 0) or column that each tap reads without offset."""
    taps = torch.arange(kernel[axis], device=device) * dilate[axis]
    starts = torch.arange(outputs[axis], device=device) * stride[axis] - pad[axis]
    grid = taps[:, None] + starts
    grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
    return grid.expand(*kernel, *outputs).flatten(0, 1)


def _sample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of ``[N,groups,C,H,W]`` at ``[N,groups,taps,h,w]`` ->
    ``[N,groups,C,taps*h*w]``."""
    height, width = image.shape[3:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    tops, down = _cell(rows, height)
    lefts, right = _cell(columns, width)
    features = image.flatten(3)
    result = torch.zeros((), dtype=rows.dtype, device=rows.device)
    for lower, row_share in ((0, 1 - down), (1, down)):
        for later, column_share in ((0, 1 - right), (1, right)):
            index = (tops + lower).clamp(max=height - 1) * width
            index = (index + (lefts + later).clamp(max=width - 1)).flatten(2)
            values = features.gather(3, index[:, :, None].expand(-1, -1, features.shape[2], -1))
            share = torch.where(inside, row_share * column_share, 0).flatten(2)
            result = result + values * share[:, :, None]
    return result


def _cell(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The index before each position, and how far behind it the position lies, 0 to 1."""
    # Clamped as integers: a position that is not a number must not become an index.
    before = positions.detach().floor().long().clamp(0, length - 1)
    return before, positions - before
