"""Cuts a segmentation network before its final upsampling, at its own resolution. Exact.

``prune_heads`` keeps the first output alone: ICNet's symbol has four heads and PSPNet's two;
training uses them all, inference the first. A softmax at the end is dropped (it does not change
which class wins), then one aligned-corners resize: ``mask_head`` puts the same resize in front of
the argmax again. An upsampling of another kind (a deconvolution, other corners) stays, and the
logits are then as large as the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import InvalidSymbol
from export.symbols.graph import Graph
from export.symbols.shape_rules import IDENTITIES, SOFTMAXES
from export.symbols.shapes import infer_shapes

_TRANSPARENT = frozenset((*SOFTMAXES, *IDENTITIES))


@dataclass(frozen=True)
class LogitsCut:
    """The cut graph, whose one head is the logits [1, classes, height, width]."""

    graph: Graph
    classes: int
    height: int
    width: int


def cut_at_logits(graph: Graph, height: int, width: int) -> LogitsCut:
    """Cuts a graph with one head, built for images of height x width.

    Raises InvalidSymbol where the head is no map of classes.
    """
    graph = without_softmax(graph)
    head = graph.heads[0]
    shapes = infer_shapes(graph, height, width)
    node = graph.nodes[head.node]
    if (
        node.op == "_contrib_BilinearResize2D"
        and node.flag("align_corners", True)
        and shapes.of(head)[2:] == (height, width)
    ):
        head = node.inputs[0]
    shape = shapes.of(head)
    if len(shape) != 4 or shape[0] != 1 or graph.nodes[head.node].is_variable:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} gives {shape}, not a map of classes; is this a"
            " segmentation network?"
        )
    return LogitsCut(graph.pruned([head]), *shape[1:])


def without_softmax(graph: Graph) -> Graph:
    """Returns the graph of its first head without a softmax, or what else changes no winner, behind
    it."""
    head = graph.heads[0]
    while graph.nodes[head.node].op in _TRANSPARENT:
        head = graph.nodes[head.node].inputs[0]
    return graph.pruned([head])


def prune_heads(graph: Graph) -> Graph:
    """Returns the graph of head 0 alone, without the nodes and variables of the auxiliary heads."""
    return graph.pruned(graph.heads[:1])
