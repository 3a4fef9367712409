"""A symbol's nodes with their tuples parsed once: the parser is Python that ``torch.compile``
cannot trace, and it takes time in every pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from export.errors import InvalidSymbol
from export.symbols.graph import Graph, Node


@dataclass(frozen=True)
class ParsedNode(Node):
    """A node; ``tuples`` are those of its attributes that are tuples of integers."""

    tuples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def integers(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        if key in self.tuples:
            return self.tuples[key] or default
        # Absent, or the parser's own error.
        return super().integers(key, default) if key in self.attrs else default


def parse_nodes(graph: Graph) -> Graph:
    """The same graph, of parsed nodes."""
    return replace(graph, nodes=tuple(_parse(node) for node in graph.nodes))


def _parse(node: Node) -> ParsedNode:
    tuples: dict[str, tuple[int, ...]] = {}
    for key in node.attrs:
        try:
            tuples[key] = node.integers(key)
        except InvalidSymbol:
            continue  # not a tuple
    return ParsedNode(node.op, node.name, node.inputs, dict(node.attrs), node.user_attrs, tuples)
