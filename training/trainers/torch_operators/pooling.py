"""Poolings with MXNet's windows, and resizes.

A resize's positions are float32 whatever the data are.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import pooled_length
from export.symbols.shape_rules import RULES
from training.trainers.torch_operators.call import Call


def pool(call: Call) -> Tensor:
    """Pools windows: max, average, sum or lp, valid or full (ceiling)."""
    node, x = call.node, call.data
    kind, convention = node.text("pool_type", "max"), node.text("pooling_convention", "valid")
    if kind not in ("max", "avg", "sum", "lp") or convention not in ("valid", "full"):
        raise call.refuse(f"{convention} pooling of type {kind!r}")
    power = node.integer("p_value", 1) if kind == "lp" else 1
    if power != 1:
        x = x.abs() ** power
    if node.flag("global_pool", False):
        if kind in ("sum", "lp"):
            return x.sum((2, 3), keepdim=True) ** (1 / power)
        # Of several equal values the first has the gradient; amax would divide it among them.
        whole = tuple(x.shape[2:])
        return functional.max_pool2d(x, whole) if kind == "max" else x.mean((2, 3), keepdim=True)
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    lengths = tuple(x.shape[2:])
    outputs = tuple(
        pooled_length(lengths[i], kernel[i], stride[i], pad[i], convention == "full")
        for i in range(2)
    )
    # What the last windows reach; less than ``pad`` where they end before it.
    ends = tuple((outputs[i] - 1) * stride[i] + kernel[i] - lengths[i] - pad[i] for i in range(2))
    frame = (pad[1], ends[1], pad[0], ends[0])
    if kind in ("sum", "lp"):
        sums = functional.avg_pool2d(functional.pad(x, frame), kernel, stride, divisor_override=1)
        return sums ** (1 / power)
    if max(*pad, *ends) >= min(kernel):
        raise call.refuse("a pooling window lies in the padding alone")
    if kind == "max" and convention == "valid" and all(2 * pad[i] <= kernel[i] for i in range(2)):
        return functional.max_pool2d(x, kernel, stride, pad)
    if kind == "max":
        framed = functional.pad(x, frame, value=-math.inf)
        return functional.max_pool2d(framed, kernel, stride)
    counted = pad if node.flag("count_include_pad", True) else (0, 0)
    sums = functional.avg_pool2d(functional.pad(x, frame), kernel, stride, divisor_override=1)
    counts = [_counts(lengths[i], outputs[i], kernel[i], stride[i], pad[i], counted[i])
              for i in range(2)]  # fmt: skip
    return sums / torch.outer(*counts).to(x)


def _counts(length: int, outputs: int, kernel: int, stride: int, pad: int, counted: int) -> Tensor:
    """Returns ``[outputs]``: how much of each window counts, up to ``counted`` pixels of padding
    and none of what the ceiling adds."""
    starts = torch.arange(outputs) * stride - pad
    return (starts + kernel).clamp(max=length + counted) - starts.clamp(min=-counted)


def pool_adaptively(call: Call) -> Tensor:
    """Averages ``[N,C,H,W]`` in bins, to ``[N,C,*output_size]``."""
    size = call.node.integers("output_size", (1,))
    return functional.adaptive_avg_pool2d(call.data, (size[0], size[-1]))


def resize(call: Call) -> Tensor:
    """Resizes ``[N,C,H,W]`` to ``[N,C,h,w]``, with aligned corners by default."""
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
    """Returns the float64 matrix ``[after,before]`` of a resize, its positions in float32."""
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
