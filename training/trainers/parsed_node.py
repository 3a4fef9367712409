"""A symbol's nodes with their tuples parsed once: the parser is Python that ``torch.compile``
cannot trace, and it takes time in every pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from export.errors import InvalidSymbol
from export.symbols.graph import Graph, Node


@dataclass(frozen=True)
class ParsedNode(Node):
    """A node with its attributes that are tuples of integers (or of ``None``) in ``tuples``."""

    tuples: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    def bounds(self, key: str) -> tuple[int | None, ...]:
        if key in self.tuples:
            return self.tuples[key]
        # Absent, or the parser's own error.
        return super().bounds(key) if key in self.attrs else ()


def parse_nodes(graph: Graph) -> Graph:
    """The same graph, of parsed nodes."""
    return replace(graph, nodes=tuple(_parse(node) for node in graph.nodes))


def _parse(node: Node) -> ParsedNode:
    tuples: dict[str, tuple[int | None, ...]] = {}
    for key in node.attrs:
        try:
            tuples[key] = node.bounds(key)
        except InvalidSymbol:
            continue  # not a tuple
    return ParsedNode(node.op, node.name, node.inputs, dict(node.attrs), node.user_attrs, tuples)
