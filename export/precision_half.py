"""fp16: weights and arithmetic of the network proper in float16, its input and outputs unchanged.

The image stays uint8 and is normalised in float32 before it is cast; the logits are cast back
before their last resize, so interpolation, argmax and softmax see float32. A layer whose constants
exceed float16 stays in float32. Bound: float16 keeps 11 bits, so each layer adds a relative error
of about 5e-4; the logits of a trained network stay within 1 % of the largest one (docs/precision.md
has the measured figures).
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, shape_inference

from export.graph_ends import graph_ends
from export.onnx_graph import OnnxGraph

FLOAT16_MAX = float(np.finfo(np.float16).max)

# Operators whose every float input and output may be float16 in opset 17 (Resize: the first).
# fmt: off
_OPERATORS = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose",
    "DeformConv", "Div", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "PRelu", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze",
})
# fmt: on


def to_half(model: ModelProto) -> ModelProto:
    """A copy of a float32 graph of the contract that computes in float16. Nodes must have names."""
    copy = ModelProto()
    copy.CopyFrom(model)
    types = element_types(copy)
    graph = OnnxGraph(copy)
    outside = graph_ends(copy).outside
    half = {n.name for n in copy.graph.node if n.name not in outside and _fits(graph, n, types)}
    nodes: list[NodeProto] = []
    halves: dict[str, str] = {}  # float32 tensor -> its float16 twin
    for node in copy.graph.node:
        if node.name not in half:
            nodes.append(node)
            continue
        for position in _float_inputs(node, types):
            name = node.input[position]
            if name not in halves:
                halves[name] = f"{name}_half"
                constant = graph.constant(name)
                if constant is None:
                    nodes.append(_cast(name, halves[name], TensorProto.FLOAT16))
                else:
                    graph.set_constant(halves[name], constant.astype(np.float16))
            node.input[position] = halves[name]
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name:
                halves[name] = node.output[position] = f"{name}_half"
                nodes.append(_cast(halves[name], name, TensorProto.FLOAT))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    graph.drop_dead()  # casts back that no float32 node reads, constants that became float16
    checker.check_model(copy, full_check=True)
    return copy


def element_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor that shape inference finds (``TensorProto.FLOAT``, ...)."""
    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}


def _float_inputs(node: NodeProto, types: dict[str, int]) -> list[int]:
    """The positions that become float16; the scales of a Resize are float32 by definition."""
    return [
        position
        for position, name in enumerate(node.input)
        if types.get(name) == TensorProto.FLOAT and (node.op_type != "Resize" or position == 0)
    ]


def _fits(graph: OnnxGraph, node: NodeProto, types: dict[str, int]) -> bool:
    """True where a node has a float16 form and its constants do not overflow in it."""
    if node.op_type not in _OPERATORS or not _float_inputs(node, types):
        return False
    if any(name and types.get(name) != TensorProto.FLOAT for name in node.output):
        return False
    constants = [graph.constant(node.input[position]) for position in _float_inputs(node, types)]
    return all(np.abs(c).max(initial=0) <= FLOAT16_MAX for c in constants if c is not None)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)
