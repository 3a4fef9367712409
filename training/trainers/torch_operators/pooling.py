"""Poolings with MXNet's windows, and reductions over rows and columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import pooled_length
from training.trainers.torch_operators.call import Call


def pool(call: Call) -> Tensor:
    """``Pooling``, max or average, valid or full (ceiling)."""
    node, x = call.node, call.data
    kind, convention = node.text("pool_type", "max"), node.text("pooling_convention", "valid")
    if kind not in ("max", "avg") or convention not in ("valid", "full"):
        raise call.refuse(f"{convention} pooling of type {kind!r}")
    if node.flag("global_pool", False):
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
    if max(*pad, *ends) >= min(kernel):
        raise call.refuse("a pooling window lies in the padding alone")
    frame = (pad[1], ends[1], pad[0], ends[0])
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
    """``[outputs]``: how much of each window counts, up to ``counted`` pixels of padding and none
    of what the ceiling adds."""
    starts = torch.arange(outputs) * stride - pad
    return (starts + kernel).clamp(max=length + counted) - starts.clamp(min=-counted)


def pool_adaptively(call: Call) -> Tensor:
    """``[N,C,H,W]`` -> averages ``[N,C,*output_size]``."""
    size = call.node.integers("output_size", (1,))
    return functional.adaptive_avg_pool2d(call.data, (size[0], size[-1]))


def reduce(call: Call) -> Tensor:
    """``mean`` or ``max`` over ``axis``, or over all others where ``exclude``."""
    node, x = call.node, call.data
    axes = {axis % x.dim() for axis in node.integers("axis", tuple(range(x.dim())))}
    if node.flag("exclude", False):
        axes = set(range(x.dim())) - axes
    order, kept = tuple(sorted(axes)), node.flag("keepdims", False)
    if node.op == "mean":
        return x.mean(order, keepdim=kept)
    largest = x.detach().amax(order, keepdim=True)
    # Each of several equal values has the whole gradient; amax would divide it among them.
    passed = torch.where(x == largest, x - x.detach(), 0).sum(order, keepdim=True)
    result = largest + passed
    return result if kept else result.reshape([n for i, n in enumerate(x.shape) if i not in axes])
