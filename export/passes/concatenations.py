"""Convolutions of concatenations: where pyramid and image-pooling heads join their branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from onnx import ModelProto, NodeProto, shape_inference

from export.onnx_graph import OnnxGraph

Shapes: TypeAlias = dict[str, tuple[int, ...]]
# Rewrites one convolution and its concatenation; False where they are not of its kind.
Rewrite: TypeAlias = Callable[[OnnxGraph, NodeProto, NodeProto, Shapes], bool]


def rewrite_concatenations(model: ModelProto, rewrite: Rewrite) -> int:
    """Offers every convolution that reads a concatenation to ``rewrite``; returns how many took.

    ``rewrite`` gets static shapes by tensor, 0 where symbolic.
    """
    graph = OnnxGraph(model)
    candidates = []
    for conv in graph.graph.node:
        concat = graph.producer(conv.input[0]) if conv.op_type == "Conv" else None
        if concat is not None and concat.op_type == "Concat":
            candidates.append((conv, concat))
    if not candidates:
        return 0
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    return sum(rewrite(graph, conv, concat, shapes) for conv, concat in candidates)
