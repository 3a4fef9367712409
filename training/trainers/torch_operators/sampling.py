"""Maps read at computed positions: grids, samplers, and windows as columns.

A grid is ``[N,2,h,w]``, x before y, from -1 to 1 between the centres of the outermost pixels; what
lies outside of the map reads 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import convolution_arithmetic, pair
from export.symbols.shape_rules import RULES
from training.trainers.torch_operators.call import Call


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
