"""Merges a convolution with its neighbours: batch norms behind it, a resize in front of it.

``fold_batch_norm``: ``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma /
sqrt(var + eps) + beta``, computed in float64. Exact up to float32 rounding.

``commute_resize``: a 1x1 convolution and an enlarging resize are both linear, one over channels,
the other over space with weights that sum to one, so they commute, the bias too. ICNet's classifier
then works on a quarter of the pixels and the resize carries 19 channels, not 128.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from export.passes.onnx_graph import OnnxGraph, attribute, integers, rewrite_at

# The position of an operator's bias among its inputs; its weight is the second, filters first.
_BIAS = {"Conv": 2, "DeformConv": 3}


@rewrite_at("BatchNormalization")
def fold_batch_norm(graph: OnnxGraph, norm: NodeProto) -> str | None:
    """Folds a batch norm that alone reads a convolution into the latter's weight and bias."""
    conv = graph.producer(norm.input[0])
    if conv is None or conv.op_type not in _BIAS:
        return "no convolution is in front of it"
    position = _BIAS[conv.op_type]
    own = [conv.input[i] for i in (1, position) if i < len(conv.input)]
    if graph.reader(conv.output[0]) is None:
        return f"{conv.name} has other readers"
    if any(graph.reader(name) is None for name in own):
        return f"{conv.name} shares its weights"
    weight = graph.constant(conv.input[1])
    bias = graph.constant(own[1]) if len(own) > 1 else np.zeros(1)
    statistics = [graph.constant(name) for name in norm.input[1:5]]
    if weight is None or bias is None or any(s is None for s in statistics):
        return "its numbers or the weights are computed"
    gamma, beta, mean, variance = (np.asarray(s, np.float64) for s in statistics)
    spread = variance + attribute(norm, "epsilon", 1e-5)
    if not (spread > 0).all():
        return "its variance has no root"  # it gives NaN: find_not_finite names it where it stands
    scale = gamma / np.sqrt(spread)
    shifted = (bias.astype(np.float64) - mean) * scale + beta
    bias_name = own[1] if len(own) > 1 else f"{conv.name}_bias"
    graph.set_constant(conv.input[1], (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
    graph.set_constant(bias_name, shifted.astype(np.float32))
    graph.set_input(conv, position, bias_name)
    graph.take_over(conv, norm)
    return None


@rewrite_at("Conv")
def commute_resize(graph: OnnxGraph, conv: NodeProto) -> str | None:
    """Swaps a 1x1 convolution with the resize in front of it, where that gets cheaper."""
    resize = graph.producer(conv.input[0])
    if resize is None or resize.op_type != "Resize":
        return "no resize is in front of it"
    if not _is_pointwise(conv):
        return "it sees more than one position"
    weight = graph.constant(conv.input[1])
    scales = graph.constant(resize.input[2]) if len(resize.input) == 3 else None
    if weight is None or scales is None:
        return "its weights or the resize's scales are not constants"
    if graph.reader(resize.output[0]) is None:
        return f"{resize.name} has other readers"
    if math.prod(float(s) for s in scales) <= 1 or weight.shape[0] > weight.shape[1]:
        return "it would not be cheaper"
    result, small = conv.output[0], f"{conv.name}_before_resize"
    graph.remove(resize)
    graph.set_input(conv, 0, resize.input[0])
    graph.set_output(conv, 0, small)
    resize.input[0], resize.output[0] = small, result
    graph.insert_after(conv, [resize])
    return None


def _is_pointwise(conv: NodeProto) -> bool:
    return (
        set(integers(conv, "kernel_shape", (0,))) == {1}
        and set(integers(conv, "strides", (1,))) == {1}
        and set(integers(conv, "pads", (0,))) == {0}
        and integers(conv, "group", (1,)) == (1,)
    )
