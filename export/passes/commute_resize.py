"""Runs a 1x1 convolution before the enlarging resize in front of it. Exact up to rounding.

Both are linear, one over channels, the other over space with weights that sum to one, so they
commute, the bias too. ICNet's classifier then works on a quarter of the pixels and the resize
carries 19 channels, not 128.
"""

from __future__ import annotations

import math

from onnx import NodeProto

from export.passes.onnx_graph import OnnxGraph, integers, rewrite_at


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
