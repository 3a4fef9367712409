"""Keeps the first output of a network and drops what only the others need. Exact.

ICNet's symbol has four heads and PSPNet's two; training uses them all, inference the first.
"""

from __future__ import annotations

from export.symbol import Graph


def prune_heads(graph: Graph) -> Graph:
    """The graph of head 0 alone, without the nodes and variables of the auxiliary heads."""
    return graph.pruned(graph.heads[:1])
