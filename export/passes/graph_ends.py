"""The two ends of a graph of the contract: pre-processing in front of the first layers, and
resizes, softmax and mask behind the last. Lower precisions leave both alone."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from export.passes.mask_head import LOGITS, MASK
from export.passes.onnx_graph import OnnxGraph

LAYERS = frozenset({"Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm"})


@dataclass(frozen=True)
class GraphEnds:
    """Names of nodes.

    Attributes:
        before: what the image passes before the first layers.
        first: the layers that read the image, plain or resized.
        last: the layers whose results become the logits (or the labels of a network that gives
            these alone) without another layer.
        after: what stands behind ``last``, the mask head too.
    """

    before: frozenset[str]
    first: frozenset[str]
    last: frozenset[str]
    after: frozenset[str]

    @property
    def outside(self) -> frozenset[str]:
        """The nodes that are no part of the network proper."""
        return self.before | self.after


def graph_ends(model: ModelProto) -> GraphEnds:
    """Returns the ends of a graph whose nodes have names (``name_nodes``)."""
    graph = OnnxGraph(model)
    before, first = _walk(graph, model.graph.input[0].name, forward=True)
    # A network that gives labels alone has no logits.
    scores = MASK if graph.producer(LOGITS) is None else LOGITS
    between, last = _walk(graph, scores, forward=False)
    heads, _ = _walk(graph, scores, forward=True)
    return GraphEnds(before, first, last, between | heads)


def name_nodes(model: ModelProto) -> None:
    """Gives every node of a model a name of its own, in place."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _walk(graph: OnnxGraph, start: str, *, forward: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Walks from a tensor to the nearest layers; returns the nodes passed, and those layers."""
    passed: set[str] = set()
    layers: set[str] = set()
    tensors = [start]
    while tensors:
        for node in _neighbours(graph, tensors.pop(), forward=forward):
            if node.op_type in LAYERS:
                layers.add(node.name)
            elif node.name not in passed:
                passed.add(node.name)
                tensors += list(node.output) if forward else list(node.input)
    return frozenset(passed), frozenset(layers)


def _neighbours(graph: OnnxGraph, tensor: str, *, forward: bool) -> list[NodeProto]:
    if forward:
        return graph.consumers(tensor)
    producer = graph.producer(tensor)
    return [] if producer is None else [producer]
