"""Batch norms that a network passes more than once, as where an image goes through one backbone at
two sizes: their running statistics move once a pass, and the order is MXNet's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from export.symbols.graph import BATCH_NORMS, Graph, Node

STATES = slice(3, 5)


def repeated_norms(graph: Graph) -> frozenset[int]:
    """Indices of the batch norms whose running statistics another one moves too."""
    norms = {
        index: node
        for index, node in graph.operators()
        if node.op in BATCH_NORMS and not node.flag("use_global_stats", False)
    }
    counts = Counter(entry.node for node in norms.values() for entry in node.inputs[STATES])
    return frozenset(
        index
        for index, node in norms.items()
        if any(counts[entry.node] > 1 for entry in node.inputs[STATES])
    )


@dataclass(frozen=True)
class Move:
    """What one pass does to running mean and variance, held back until ``finish``.

    Attributes:
        states: the network's own; nobody writes them before ``finish``.
        moved: copies, which the operator writes: ``momentum * state + change``.
    """

    momentum: float
    states: tuple[Tensor, ...]
    moved: tuple[Tensor, ...]
    start: tuple[Tensor, ...]

    @staticmethod
    def begin(node: Node, inputs: tuple[Tensor, ...]) -> Move:
        """Before the operator, whose ``inputs`` are data, gamma, beta, mean and variance."""
        states = inputs[STATES]
        copies = tuple(state.clone() for state in states)
        momentum = node.number("momentum", 0.9)
        return Move(momentum, states, copies, tuple(state.clone() for state in states))

    def finish(self) -> None:
        """Moves the network's own."""
        with torch.no_grad():
            for state, moved, start in zip(self.states, self.moved, self.start, strict=True):
                state.copy_(self.momentum * state + (moved - self.momentum * start))
