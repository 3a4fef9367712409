"""Folds batch norms into the convolutions before them. Exact up to float32 rounding.

``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``,
computed in float64.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from export.passes.onnx_graph import OnnxGraph, attribute

# Where an operator's bias stands among its inputs; its weight is the second, filters first.
_BIAS = {"Conv": 2, "DeformConv": 3}


def fold_batch_norm(model: ModelProto) -> int:
    """Folds in place every batch norm that alone reads a convolution; returns how many.

    A batch norm elsewhere, after a convolution that others read or share weights with, or of a
    variance that has no root, stays.
    """
    graph = OnnxGraph(model)
    folded = 0
    for norm in [n for n in graph.graph.node if n.op_type == "BatchNormalization"]:
        conv = graph.producer(norm.input[0])
        if conv is None or conv.op_type not in _BIAS or graph.is_output(conv.output[0]):
            continue
        position = _BIAS[conv.op_type]
        own = [1, *range(position, len(conv.input))]
        weight = graph.constant(conv.input[1])
        statistics = [graph.constant(name) for name in norm.input[1:5]]
        bias = graph.constant(conv.input[position]) if len(own) > 1 else np.zeros(1)
        shared = any(len(graph.consumers(conv.input[i])) > 1 for i in own)
        if len(graph.consumers(conv.output[0])) > 1 or shared:
            continue
        if weight is None or bias is None or any(s is None for s in statistics):
            continue
        gamma, beta, mean, variance = (np.asarray(s, np.float64) for s in statistics)
        spread = variance + attribute(norm, "epsilon", 1e-5)
        if not (spread > 0).all():
            continue  # it gives NaN: whoever looks for the cause finds it where it is
        scale = gamma / np.sqrt(spread)
        shifted = (bias.astype(np.float64) - mean) * scale + beta
        bias_name = conv.input[position] if len(own) > 1 else f"{conv.name}_bias"
        graph.set_constant(conv.input[1], (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float32))
        graph.set_constant(bias_name, shifted.astype(np.float32))
        if len(own) == 1:
            conv.input.append(bias_name)
        conv.output[0] = norm.output[0]
        graph.remove(norm)
        folded += 1
    graph.drop_dead()
    return folded
