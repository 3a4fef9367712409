"""fp16: weights and arithmetic of the network proper in float16, its input and outputs unchanged.

``to_half`` makes such a graph. The image stays uint8 and is normalised in float32 before it is
cast; the logits are cast back before their last resize, so interpolation, argmax and softmax see
float32. A layer whose constants exceed float16 stays in float32. Bound: float16 keeps 11 bits, so
each layer adds a relative error of about 5e-4; the logits of a trained network stay within 1 % of
the largest one (docs/precision.md has the measured figures).

``round_to_half`` makes the float32 graph that computes what float16 hardware would, to judge fp16
on a CPU. ONNX Runtime's CPU provider has few float16 kernels: it runs such a graph in float32
between casts and drops the casts, so neither rounding nor overflow of the activations shows. Here
every result is rounded to float16's 11 bits (Veltkamp's splitting: ``c = x (2^13 + 1)``, ``c - (c -
x)``) and what exceeds 65504 becomes infinite. Accumulation inside an operator stays float32, as on
GPUs.

``widen`` undoes ``to_half``. Every float16 number is a float32 one, so the weights stay what they
are; the arithmetic in between is float32's.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper

from export.errors import UnsupportedPrecision
from export.passes.contract import graph_ends
from export.passes.onnx_graph import OnnxGraph, copy_model, element_types, integers, make_node

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
    """Returns a copy of a float32 graph of the contract that computes in float16. Nodes must have
    names."""
    copy = copy_model(model)
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
    graph.reindex()
    graph.drop_dead()  # casts back that no float32 node reads, constants that became float16
    checker.check_model(copy, full_check=True)
    return copy


def _float_inputs(node: NodeProto, types: dict[str, int]) -> list[int]:
    """Returns the positions that become float16; the scales of a Resize are float32 by
    definition."""
    return [
        position
        for position, name in enumerate(node.input)
        if types.get(name) == TensorProto.FLOAT and (node.op_type != "Resize" or position == 0)
    ]


def _fits(graph: OnnxGraph, node: NodeProto, types: dict[str, int]) -> bool:
    """Returns True where a node has a float16 form and its constants do not overflow in it."""
    if node.op_type not in _OPERATORS or not _float_inputs(node, types):
        return False
    if any(name and types.get(name) != TensorProto.FLOAT for name in node.output):
        return False
    constants = [graph.constant(node.input[position]) for position in _float_inputs(node, types)]
    return all(np.abs(c).max(initial=0) <= FLOAT16_MAX for c in constants if c is not None)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


_SPLIT, _UP, _DOWN = "half_split", "half_up", "half_down"
# float32 ends at 2^128, float16 just below 2^16.
_CONSTANTS = {_SPLIT: 2.0**13 + 1, _UP: 2.0**112, _DOWN: 2.0**-112}
# They pass on values that are rounded already.
_EXACT = frozenset(
    {"Relu", "MaxPool", "Concat", "Reshape", "Transpose", "Identity", "Slice", "Split", "Pad"}
)


def round_to_half(model: ModelProto) -> ModelProto:
    """Returns the float32 twin of a graph made by ``to_half``; tensors keep their names."""
    copy = copy_model(model)
    types = element_types(copy)
    graph = OnnxGraph(copy)
    _widen_constants(graph)
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
        nodes.append(make_node(op, [left, right], f"{target}_{suffix}"))
    # The largest of one: ONNX Runtime would merge the last factor into a matrix product behind it,
    # which then overflows.
    nodes.append(helper.make_node("Max", [f"{target}_lowered"], [target], name=f"{target}_rounds"))
    return nodes


def widen(model: ModelProto) -> ModelProto:
    """Returns a copy that computes in float32 throughout; its inputs and outputs keep their types.

    Raises UnsupportedPrecision where something stays in float16: an input, an output, or a tensor
    that a node makes by itself.
    """
    copy = copy_model(model)
    types = element_types(copy)
    graph = OnnxGraph(copy)
    _widen_constants(graph)
    for node in graph.nodes("Cast"):
        if _is_between_floats(node, types):
            _take_out(graph, node)
    del copy.graph.value_info[:]
    left = [name for name, kind in element_types(copy).items() if kind == TensorProto.FLOAT16]
    if left:
        raise UnsupportedPrecision(
            f"{', '.join(sorted(left)[:3])} cannot be made float32; export the network itself"
        )
    checker.check_model(copy, full_check=True)
    return copy


def _widen_constants(graph: OnnxGraph) -> None:
    for tensor in graph.graph.initializer:
        values = graph.constant(tensor.name)
        if tensor.data_type == TensorProto.FLOAT16 and values is not None:
            graph.set_constant(tensor.name, values.astype(np.float32))


def _is_between_floats(node: NodeProto, types: dict[str, int]) -> bool:
    kinds = {types.get(node.input[0]), *integers(node, "to", ())}
    return kinds <= {TensorProto.FLOAT, TensorProto.FLOAT16}


def _take_out(graph: OnnxGraph, cast: NodeProto) -> None:
    """Joins what a cast kept apart; the graph's own outputs keep their names."""
    source, target = cast.input[0], cast.output[0]
    graph.remove(cast)
    if graph.is_output(target):
        graph.rename(source, target)
    else:
        graph.rename(target, source)
