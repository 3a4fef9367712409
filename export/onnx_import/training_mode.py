"""Refuses networks that were exported in training mode: each run would give other labels.

PyTorch writes what ``net.train()`` computes where ``.eval()`` was forgotten: dropout that is
active, batch norms by the statistics of the batch, random numbers behind stochastic depth.
"""

from __future__ import annotations

from onnx import GraphProto, NodeProto, helper, numpy_helper

from export.errors import InvalidNetwork
from export.passes.onnx_graph import integers

_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
# Where dropout and batch norms say their mode otherwise: by is_test, by how many outputs they have.
_DROPOUT_INPUT, _NORM_ATTRIBUTE, _TEST_ATTRIBUTE = 12, 14, 7
_NAMED = 3


def refuse_training_mode(graph: GraphProto, opset: int) -> None:
    """Raises InvalidNetwork where an output depends on a node that acts as in training.

    ``opset`` is the graph's. Nodes that no output needs are not looked at.
    """
    found = [
        f"{node.op_type} {node.name or node.output[0]!r}"
        for node in _needed(graph)
        if _trains(graph, node, opset)
    ]
    if found:
        more = len(found) - _NAMED
        raise InvalidNetwork(
            f"the network was exported in training mode: {', '.join(found[:_NAMED])}"
            + (f" and {more} more" if more > 0 else "")
            + " would give other labels in each run, or for each batch; call .eval() on it before"
            " the export (of TensorFlow: training=False), and leave random numbers out"
        )


def _needed(graph: GraphProto) -> list[NodeProto]:
    """Returns the nodes that the outputs are computed by, in the graph's order."""
    wanted = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _trains(graph: GraphProto, node: NodeProto, opset: int) -> bool:
    if node.op_type in _RANDOM:
        return True
    if node.op_type not in ("Dropout", "BatchNormalization"):
        return False
    if opset < _TEST_ATTRIBUTE:
        return integers(node, "is_test", (0,)) == (0,)
    if node.op_type == "Dropout":
        said = node.input[2] if opset >= _DROPOUT_INPUT and len(node.input) > 2 else ""
        return bool(said) and _truth(graph, said)
    if opset >= _NORM_ATTRIBUTE:
        return integers(node, "training_mode", (0,)) != (0,)
    return len([name for name in node.output if name]) > 1


def _truth(graph: GraphProto, name: str) -> bool:
    """Returns a constant's value; what is computed, and may be true, is true."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return bool(numpy_helper.to_array(tensor).any())
    for node in graph.node:
        if name not in node.output:
            continue
        if node.op_type in ("Identity", "Cast"):
            return _truth(graph, node.input[0])
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return bool(numpy_helper.to_array(helper.get_attribute_value(node.attribute[0])).any())
    return True
