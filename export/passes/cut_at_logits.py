"""Cuts a segmentation network before its final upsampling, at its own resolution. Exact.

``prune_heads`` keeps the first output alone: ICNet's symbol has four heads and PSPNet's two;
training uses them all, inference the first. A softmax or sigmoid at the end is dropped (it does not
change which class wins), then one aligned-corners resize: ``mask_head`` puts the same resize in
front of the argmax again. An upsampling of another kind (a deconvolution, other corners) stays, and
the logits are then as large as the image. One channel that ends in a sigmoid tells two classes
apart: the first one's logits are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from export.errors import InvalidSymbol
from export.symbols.graph import Entry, Graph, Node
from export.symbols.shape_rules import is_sigmoid, keeps_winner
from export.symbols.shapes import infer_shapes


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
    graph = with_logits(graph, height, width)
    head = graph.heads[0]
    shapes = infer_shapes(graph, height, width)
    if _is_final_resize(graph, height, width):
        head = graph.nodes[head.node].inputs[0]
    shape = shapes.of(head)
    if len(shape) != 4 or shape[0] != 1 or graph.nodes[head.node].is_variable:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} gives {shape}, not a map of classes; is this a"
            " segmentation network?"
        )
    if shape[1] == 1:
        raise InvalidSymbol(
            f"{graph.nodes[head.node].name} gives one channel, which tells no classes apart;"
            " expected one for each class, or one that ends in a sigmoid or a"
            " LogisticRegressionOutput"
        )
    return LogitsCut(graph.pruned([head]), *shape[1:])


def with_logits(graph: Graph, height: int, width: int) -> Graph:
    """Returns the graph of its first head without a softmax, or what else changes no winner, behind
    it; one channel behind a sigmoid becomes two."""
    head, sigmoid = graph.heads[0], False
    while keeps_winner(graph.nodes[head.node]):
        sigmoid = sigmoid or is_sigmoid(graph.nodes[head.node])
        head = graph.nodes[head.node].inputs[0]
    graph = graph.pruned([head])
    if not sigmoid or infer_shapes(graph, height, width).of(graph.heads[0])[1:2] != (1,):
        return graph
    return _with_two_channels(graph, height, width)


def _with_two_channels(graph: Graph, height: int, width: int) -> Graph:
    (head,), nodes = graph.heads, list(graph.nodes)
    resize = nodes[head.node] if _is_final_resize(graph, height, width) else None
    scores = resize.inputs[0] if resize else head
    nodes.append(Node("_mul_scalar", "logits_of_background", (scores,), {"scalar": "0"}))
    both = (Entry(len(nodes) - 1), scores)
    nodes.append(Node("Concat", "logits_of_both", both, {"num_args": "2", "dim": "1"}))
    if resize:
        entry = Entry(len(nodes) - 1)
        nodes.append(replace(resize, name=f"{resize.name}_of_both", inputs=(entry,)))
    made = Graph(tuple(nodes), (Entry(len(nodes) - 1),))
    return made.pruned(made.heads)


def _is_final_resize(graph: Graph, height: int, width: int) -> bool:
    head = graph.heads[0]
    node = graph.nodes[head.node]
    return (
        node.op == "_contrib_BilinearResize2D"
        and node.flag("align_corners", True)
        and infer_shapes(graph, height, width).of(head)[2:] == (height, width)
    )


def prune_heads(graph: Graph) -> Graph:
    """Returns the graph of head 0 alone, without the nodes and variables of the auxiliary heads."""
    return graph.pruned(graph.heads[:1])
