"""Takes image pooling out of the convolution that follows it. Exact up to rounding.

A branch that is resized from one position is the same everywhere. A convolution without padding
turns it into one value a filter: a bias of the image, computed on one position and added to the
convolution of the other branches. DeepLab's pyramid ends so: a fifth of its projection's
multiplications and of the concatenation goes.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper

from export.passes.concatenations import JoinedConvolution, Shapes, rewrite_concatenations
from export.passes.onnx_graph import OnnxGraph, integers


def image_pooling_bias(model: ModelProto) -> int:
    """Rewrites in place each unpadded convolution of a concatenation with such branches; returns
    how many."""
    return rewrite_concatenations(model, _rewrite)


def _rewrite(graph: OnnxGraph, joined: JoinedConvolution, shapes: Shapes) -> bool:
    conv = joined.conv
    if any(integers(conv, "pads", (0,))):
        return False
    rest: list[str] = []
    sources: list[str] = []
    kept: list[int] = []
    taken: list[int] = []
    start = 0
    for name in joined.concat.input:
        end = start + shapes[name][1]
        resize = graph.producer(name)
        constant = resize is not None and resize.op_type == "Resize"
        if resize is not None and constant and shapes[resize.input[0]][2:] == (1, 1):
            sources.append(resize.input[0])
            taken.extend(range(start, end))
        else:
            rest.append(name)
            kept.extend(range(start, end))
        start = end
    if not sources or not rest:
        return False
    name, result = conv.name, conv.output[0]
    nodes = []
    pooled = sources[0]
    if len(sources) > 1:
        pooled = f"{name}_pooled"
        nodes.append(helper.make_node("Concat", sources, [pooled], name=pooled, axis=1))
    # All taps of a window see the same value.
    summed = np.take(joined.weight, taken, axis=1).sum(axis=(2, 3), keepdims=True)
    graph.set_constant(f"{name}_pooled_weight", summed)
    bias = f"{name}_image_bias"
    nodes.append(helper.make_node("Conv", [pooled, f"{name}_pooled_weight"], [bias], name=bias))
    joined.keep(graph, rest, kept)
    conv.output[0] = f"{name}_without_pooling"
    nodes.append(
        helper.make_node("Add", [conv.output[0], bias], [result], name=f"{name}_with_pooling")
    )
    graph.insert_after(conv, nodes)
    graph.drop_dead()
    return True
