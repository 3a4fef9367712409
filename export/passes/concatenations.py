"""Convolutions of concatenations: where pyramid and image-pooling heads join their branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, shape_inference

from export.passes.onnx_graph import OnnxGraph, integers

Shapes: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class JoinedConvolution:
    """A convolution that alone reads a concatenation of channels, and alone has its weights.

    ``weight`` is float32 [filters, channels, ky, kx]; the convolution has one group.
    """

    conv: NodeProto
    concat: NodeProto
    weight: NDArray[np.float32]

    def keep(self, graph: OnnxGraph, inputs: Sequence[str], channels: Sequence[int]) -> None:
        """Lets the convolution read these of its inputs alone, whose channels are given."""
        graph.set_constant(self.conv.input[1], np.take(self.weight, channels, axis=1))
        self.conv.input[0] = inputs[0]
        if len(inputs) > 1:
            del self.concat.input[:]
            self.concat.input.extend(inputs)
            self.conv.input[0] = self.concat.output[0]


# Rewrites one of them; False where its branches are not of the rewrite's kind.
Rewrite: TypeAlias = Callable[[OnnxGraph, JoinedConvolution, Shapes], bool]


def rewrite_concatenations(model: ModelProto, rewrite: Rewrite) -> int:
    """Offers every such convolution to ``rewrite``; returns how many took.

    ``rewrite`` gets shapes by tensor: the channels, heights and widths of the convolution, of what
    it joins and of what was resized for it are known; a convolution where one is not, stays.
    """
    graph = OnnxGraph(model)
    candidates = [conv for conv in graph.graph.node if _joined(graph, conv) is not None]
    if not candidates:
        return 0
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    taken = 0
    for conv in candidates:
        joined = _joined(graph, conv)  # a rewrite may have changed others
        if joined is not None and _are_known(graph, joined, shapes):
            taken += rewrite(graph, joined, shapes)
    return taken


def _are_known(graph: OnnxGraph, joined: JoinedConvolution, shapes: Shapes) -> bool:
    names = [*joined.concat.input, joined.concat.output[0], joined.conv.output[0]]
    resizes = [graph.producer(name) for name in joined.concat.input]
    names += [node.input[0] for node in resizes if node is not None and node.op_type == "Resize"]
    return all(len(shapes.get(name, ())) == 4 and min(shapes[name][1:]) > 0 for name in names)


def _joined(graph: OnnxGraph, conv: NodeProto) -> JoinedConvolution | None:
    concat = graph.producer(conv.input[0]) if conv.op_type == "Conv" else None
    if concat is None or concat.op_type != "Concat" or integers(concat, "axis", (0,)) != (1,):
        return None
    weight = graph.constant(conv.input[1])
    joined = concat.output[0]
    shared = len(graph.consumers(joined)) > 1 or graph.is_output(joined)
    if weight is None or shared or len(graph.consumers(conv.input[1])) > 1:
        return None
    # Padding that is not written out as numbers would be taken for none.
    automatic = any(a.name == "auto_pad" and a.s != b"NOTSET" for a in conv.attribute)
    if automatic or integers(conv, "group", (1,)) != (1,):
        return None
    return JoinedConvolution(conv, concat, weight)
