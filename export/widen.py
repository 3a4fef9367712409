"""float16 back to float32: what ``export.precision_half`` did, undone.

Every float16 number is a float32 one, so the weights stay what they are; the arithmetic in between
is float32's.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker

from export.errors import UnsupportedPrecision
from export.onnx_graph import OnnxGraph, integers
from export.precision_half import element_types


def is_half(model: ModelProto) -> bool:
    """True where a constant is float16."""
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def widen(model: ModelProto) -> ModelProto:
    """A copy that computes in float32 throughout; its inputs and outputs keep their types.

    Raises UnsupportedPrecision where something stays in float16: an input, an output, or a tensor
    that a node makes by itself.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    types = element_types(copy)
    graph = OnnxGraph(copy)
    for tensor in list(copy.graph.initializer):
        constant = graph.constant(tensor.name)
        if tensor.data_type == TensorProto.FLOAT16 and constant is not None:
            graph.set_constant(tensor.name, constant.astype(np.float32))
    for node in [n for n in copy.graph.node if _is_between_floats(n, types)]:
        _take_out(graph, node)
    del copy.graph.value_info[:]
    left = [name for name, kind in element_types(copy).items() if kind == TensorProto.FLOAT16]
    if left:
        raise UnsupportedPrecision(
            f"{', '.join(sorted(left)[:3])} cannot be made float32; export the network itself"
        )
    checker.check_model(copy, full_check=True)
    return copy


def _is_between_floats(node: NodeProto, types: dict[str, int]) -> bool:
    if node.op_type != "Cast":
        return False
    kinds = {types.get(node.input[0]), *integers(node, "to", ())}
    return kinds <= {TensorProto.FLOAT, TensorProto.FLOAT16}


def _take_out(graph: OnnxGraph, cast: NodeProto) -> None:
    """Joins what a cast kept apart; the graph's own outputs keep their names."""
    source, target = cast.input[0], cast.output[0]
    kept = target if graph.is_output(target) else source
    graph.remove(cast)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in (source, target):
                    names[position] = kept
