"""Runs a 1x1 convolution before the enlarging resize in front of it. Exact up to rounding.

Both are linear, one over channels, the other over space with weights that sum to one, so they
commute, the bias too. ICNet's classifier then works on a quarter of the pixels and the resize
carries 19 channels, not 128.
"""

from __future__ import annotations

import math

from onnx import ModelProto, NodeProto

from export.passes.onnx_graph import OnnxGraph, integers


def commute_resize(model: ModelProto) -> int:
    """Swaps in place every such pair that gets cheaper; returns how many."""
    graph = OnnxGraph(model)
    swapped = 0
    for conv in [node for node in graph.graph.node if node.op_type == "Conv"]:
        resize = graph.producer(conv.input[0])
        if resize is None or resize.op_type != "Resize" or not _is_pointwise(conv):
            continue
        weight = graph.constant(conv.input[1])
        scales = graph.constant(resize.input[2]) if len(resize.input) == 3 else None
        alone = len(graph.consumers(resize.output[0])) == 1
        if weight is None or scales is None or not alone or graph.is_output(resize.output[0]):
            continue
        enlarges = math.prod(float(s) for s in scales) > 1
        if not enlarges or weight.shape[0] > weight.shape[1]:
            continue
        conv.input[0] = resize.input[0]
        resize.output[0], conv.output[0] = conv.output[0], f"{conv.name}_before_resize"
        resize.input[0] = conv.output[0]
        graph.move_before(conv, resize)
        swapped += 1
    return swapped


def _is_pointwise(conv: NodeProto) -> bool:
    return (
        set(integers(conv, "kernel_shape", (0,))) == {1}
        and set(integers(conv, "strides", (1,))) == {1}
        and set(integers(conv, "pads", (0,))) == {0}
        and integers(conv, "group", (1,)) == (1,)
    )
