"""What of a symbol is trained: the maps that carry a loss, and the parameters that learn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from export.symbols.graph import BATCH_NORMS, Entry, Graph, Node
from export.symbols.shape_rules import LABELLED


def trained_heads(graph: Graph) -> tuple[Entry, ...]:
    """The maps of logits behind the symbol's outputs, the prediction's first, each once.

    A resize to the first output's size is left out: the loss is taken at the resolution of what it
    enlarges, which may be another output (ICNet's full-size map enlarges the next one). So is an
    output layer (``SoftmaxOutput``): its gradient knows no class weights.
    """
    full = _resized(graph, graph.heads[0])
    heads: list[Entry] = []
    for head in graph.heads:
        while graph.nodes[head.node].op in LABELLED or (full and _resized(graph, head) == full):
            head = graph.nodes[head.node].inputs[0]
        if head not in heads:
            heads.append(head)
    return tuple(heads)


def _resized(graph: Graph, head: Entry) -> tuple[int, int] | None:
    """Height and width that a resize has, where the entry is one."""
    node = graph.nodes[head.node]
    if node.op != "_contrib_BilinearResize2D":
        return None
    return node.integer("height", 1), node.integer("width", 1)


def frozen_parameters(graph: Graph) -> frozenset[str]:
    """Those that never learn: scale and shift of a batch norm that keeps its statistics, a fixed
    scale, and a deconvolution that enlarges each channel by itself (bilinear)."""
    frozen: set[str] = set()
    for _, node in graph.operators():
        names = [graph.nodes[entry.node].name for entry in node.inputs]
        if node.op in BATCH_NORMS:
            frozen.update(names[1:2] if node.flag("fix_gamma", True) else ())
            frozen.update(names[1:3] if node.flag("use_global_stats", False) else ())
        elif node.op == "Deconvolution" and _is_by_channel(node):
            frozen.add(names[1])
    return frozenset(frozen)


def freeze_batch_norms(graph: Graph, of: Collection[str] | None = None) -> Graph:
    """The graph with batch norms that keep their statistics: all (``--freeze-bn``), or those whose
    scale is one ``of`` these parameters."""

    def freeze(node: Node) -> Node:
        if node.op not in BATCH_NORMS:
            return node
        if of is not None and graph.nodes[node.inputs[1].node].name not in of:
            return node
        return replace(node, attrs={**node.attrs, "use_global_stats": "True"})

    return replace(graph, nodes=tuple(freeze(node) for node in graph.nodes))


def _is_by_channel(deconvolution: Node) -> bool:
    return deconvolution.integer("num_group", 1) == deconvolution.integer("num_filter", 0)
