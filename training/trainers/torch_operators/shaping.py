"""The same values in another shape, parts of them, or a frame around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.shape_rules import padded_shape, reshaped_shape, slice_bounds, transposed_shape
from training.trainers.torch_operators.call import Call

_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}


def concatenate(call: Call) -> Tensor:
    """Along ``dim``, the channels unless told otherwise."""
    return torch.cat(call.inputs, call.node.integer("dim", 1))


def flatten(call: Call) -> Tensor:
    """(batch, everything else)."""
    return call.data.flatten(1)


def reshape(call: Call) -> Tensor:
    """By MXNet's codes (``export.symbols.shape_rules``)."""
    return call.data.reshape(reshaped_shape(call.node, call.shapes))


def transpose(call: Call) -> Tensor:
    """By ``axes``; the batch stays in front."""
    transposed_shape(call.node, call.shapes)
    return call.data.permute(call.node.integers("axes"))


def cut(call: Call) -> Tensor:
    """``Crop``, ``slice_axis`` and ``slice_like``: one part; a second input only tells its size."""
    bounds = slice_bounds(call.node, call.shapes)
    return call.data[tuple(slice(begin, end) for begin, end in bounds)]


def pad(call: Call) -> Tensor:
    """``Pad`` of rows and columns: constant, edge or reflect."""
    padded_shape(call.node, call.shapes)
    mode = call.node.text("mode", "constant")
    if mode not in _PAD_MODES:
        raise call.refuse(f"padding of mode {mode!r}")
    top, bottom, left, right = call.node.integers("pad_width")[4:]
    value = call.node.number("constant_value", 0) if mode == "constant" else None
    return functional.pad(call.data, (left, right, top, bottom), _PAD_MODES[mode], value)
