"""Folds batch norms into the convolutions before them. Exact up to float32 rounding.

``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``,
computed in float64.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from export.passes.onnx_graph import OnnxGraph, attribute, rewrite_at

# Where an operator's bias stands among its inputs; its weight is the second, filters first.
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
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    shifted = (bias.astype(np.float64) - mean) * scale + beta
    bias_name = own[1] if len(own) > 1 else f"{conv.name}_bias"
    graph.set_constant(conv.input[1], (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
    graph.set_constant(bias_name, shifted.astype(np.float32))
    graph.set_input(conv, position, bias_name)
    graph.take_over(conv, norm)
    return None
