"""A float32 graph that computes what float16 hardware would, to judge fp16 on a CPU.

ONNX Runtime's CPU provider has few float16 kernels: it runs such a graph in float32 between casts
and drops the casts, so neither rounding nor overflow of the activations shows. Here every result
is rounded to float16's 11 bits (Veltkamp's splitting: ``c = x (2^13 + 1)``, ``c - (c - x)``) and
what exceeds 65504 becomes infinite. Accumulation inside an operator stays float32, as on GPUs.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx_graph import OnnxGraph
from export.precision_half import element_types

_SPLIT, _UP, _DOWN = "half_split", "half_up", "half_down"
# float32 ends at 2^128, float16 just below 2^16.
_CONSTANTS = {_SPLIT: 2.0**13 + 1, _UP: 2.0**112, _DOWN: 2.0**-112}
# They pass on values that are rounded already.
_EXACT = frozenset(
    {"Relu", "MaxPool", "Concat", "Reshape", "Transpose", "Identity", "Slice", "Split", "Pad"}
)


def round_to_half(model: ModelProto) -> ModelProto:
    """The float32 twin of a graph made by ``to_half``; tensors keep their names."""
    copy = ModelProto()
    copy.CopyFrom(model)
    types = element_types(copy)
    graph = OnnxGraph(copy)
    for tensor in list(copy.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor).astype(np.float32), tensor.name
                )
            )
    for name, value in _CONSTANTS.items():
        graph.set_constant(name, np.array(value, np.float32))
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        if node.op_type == "Cast" and TensorProto.FLOAT16 in map(
            types.get, [*node.input, *node.output]
        ):
            node.op_type = "Identity"
            del node.attribute[:]
            exact = types.get(node.output[0]) != TensorProto.FLOAT16
        else:
            exact = node.op_type in _EXACT
        nodes.append(node)
        for position, name in enumerate(node.output):
            if not exact and types.get(name) == TensorProto.FLOAT16:
                node.output[position] = f"{name}_wide"
                nodes.extend(_rounding(f"{name}_wide", name))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _rounding(source: str, target: str) -> list[NodeProto]:
    steps = (
        ("Mul", source, _SPLIT, "scaled"),
        ("Sub", f"{target}_scaled", source, "rest"),
        ("Sub", f"{target}_scaled", f"{target}_rest", "rounded"),
        ("Mul", f"{target}_rounded", _UP, "raised"),
        ("Mul", f"{target}_raised", _DOWN, "lowered"),
    )
    nodes = []
    for op, left, right, suffix in steps:
        output = f"{target}_{suffix}"
        nodes.append(helper.make_node(op, [left, right], [output], name=output))
    # The largest of one: ONNX Runtime would merge the last factor into a matrix product behind it,
    # which then overflows.
    nodes.append(helper.make_node("Max", [f"{target}_lowered"], [target], name=f"{target}_rounds"))
    return nodes
