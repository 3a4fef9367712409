"""``_contrib_BilinearResize2D``; its positions are float32 whatever the data are."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.shape_rules import RULES
from training.trainers.torch_operators.call import Call


def resize(call: Call) -> Tensor:
    """``[N,C,H,W]`` -> ``[N,C,h,w]``, aligned corners unless told otherwise."""
    size = RULES[call.node.op](call.node, call.shapes)[2:]
    aligned = call.node.flag("align_corners", True)
    x = call.data
    if x.dtype == torch.float64:
        rows, columns = (
            _interpolation(before, after, aligned).to(x.device)
            for before, after in zip(x.shape[2:], size, strict=True)
        )
        return rows @ x @ columns.T
    if x.shape[2:] == (1, 1):
        # The layout of a single position is ambiguous; what follows wants the channels last.
        return x.expand(-1, -1, *size).contiguous(memory_format=torch.channels_last)
    return functional.interpolate(x, size, mode="bilinear", align_corners=aligned)


@functools.lru_cache(maxsize=64)
def _interpolation(before: int, after: int, aligned: bool) -> Tensor:
    """The float64 matrix ``[after,before]`` of a resize, its positions in float32."""
    steps = np.arange(after, dtype=np.float32)
    if aligned:
        scale = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
        positions = steps * scale
    else:
        scale = np.float32(before) / np.float32(after)
        # One rounding: MXNet's build multiplies and subtracts in one instruction.
        exact = np.float64(scale) * (steps + 0.5) - 0.5
        positions = np.maximum(exact, 0).astype(np.float32)
    lower = np.minimum(positions.astype(np.int64), before - 1)
    upper = np.minimum(lower + 1, before - 1)
    fraction = (positions - lower.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after), lower), 1.0 - fraction)
    np.add.at(matrix, (np.arange(after), upper), fraction)
    return torch.from_numpy(matrix)
