"""An MXNet symbol as a PyTorch module, executed operator by operator, with gradients.

MXNet's newest wheels stop at CUDA 11.2; this lets today's GPUs train the same graph. The operators
are in ``torch_operators``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.errors import InvalidSymbol
from export.symbols.graph import BATCH_NORMS, Graph, Node
from export.symbols.params import Parameters
from export.symbols.shape_rules import LABELLED
from training.trainers.torch_operators import (
    Call,
    UnsupportedOperators,
    execute_all,
    unsupported,
)
from training.trainers.torch_replicas import ALONE, Replicas


class SymbolModule(nn.Module):
    """A module that executes ``graph``: ``module(images)`` returns one tensor for each head, as
    does ``module(images, labels)`` if a head is a ``SoftmaxOutput`` that is to be trained.

    Parameters keep the symbol's names; ``parameters_of_symbol`` gives them back. Batch norms take
    their statistics over all of ``replicas``.

    Raises:
        UnsupportedOperators: naming all of them.
        ValueError: a parameter is missing.
    """

    def __init__(self, graph: Graph, parameters: Parameters, replicas: Replicas = ALONE) -> None:
        super().__init__()
        unknown = unsupported(node.op for _, node in graph.operators())
        if unknown:
            raise UnsupportedOperators(
                f"the PyTorch trainer does not support the operators {', '.join(unknown)}; use "
                "--trainer gluon"
            )
        self.graph = parse_nodes(graph)
        self.replicas = replicas
        self.data_index = graph.data_input()
        self.label_indices = _labels(graph)
        self.last_uses = _last_uses(graph)
        self.repeated = repeated_norms(graph)
        # Called with every layer's name and output, if it is set.
        self.watch: Callable[[str, Tensor], None] | None = None
        self.weights = nn.ParameterDict()
        states = {
            graph.nodes[entry.node].name
            for _, node in graph.operators()
            if node.op in BATCH_NORMS
            for entry in node.inputs[3:5]
        }
        for index, node in enumerate(graph.nodes):
            if not node.is_variable or index in (self.data_index, *self.label_indices):
                continue
            array = parameters.find(node.name)
            if array is None:
                raise ValueError(f"the symbol's parameter {node.name!r} is missing")
            tensor = torch.tensor(array)
            if node.name in states:
                self.register_buffer(node.name, tensor)
            else:
                self.weights[node.name] = nn.Parameter(tensor)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        values: dict[int, tuple[Tensor, ...]] = {self.data_index: (images,)}
        moves: list[Move] = []
        for index, node in enumerate(self.graph.nodes):
            if index in self.label_indices:
                if labels is not None:
                    values[index] = (labels,)
            elif node.is_variable:
                if index != self.data_index:
                    values[index] = (self.variable(node.name),)
            else:
                inputs = tuple(values[e.node][e.output] for e in node.inputs if e.node in values)
                if self.training and index in self.repeated:
                    moves.append(Move.begin(node, inputs))
                    inputs = (*inputs[:3], *moves[-1].moved)
                call = Call(node, inputs, self.training, self.replicas, images)
                values[index] = execute_all(call)
                if self.watch is not None:
                    self.watch(node.name, values[index][0])
            for used in self.last_uses.get(index, ()):
                values.pop(used, None)
        # MXNet moves them in the backward pass, the last layer's first.
        for move in reversed(moves):
            move.finish()
        return tuple(values[head.node][head.output] for head in self.graph.heads)

    def variable(self, name: str) -> Tensor:
        """Returns a parameter or running statistic, by the symbol's name."""
        found: Tensor = self.weights[name] if name in self.weights else self.get_buffer(name)
        return found

    def parameters_of_symbol(self) -> Parameters:
        """Returns copies of all arrays, float32, as ``export.symbols.params`` writes them."""
        return Parameters(
            {name: _array(weight) for name, weight in self.weights.items()},
            {name: _array(state) for name, state in self.named_buffers()},
        )


def _labels(graph: Graph) -> frozenset[int]:
    """Returns the variables that output layers read beside the scores."""
    return frozenset(
        entry.node
        for _, node in graph.operators()
        if node.op in LABELLED
        for entry in node.inputs[1:]
        if graph.nodes[entry.node].is_variable
    )


def _last_uses(graph: Graph) -> dict[int, list[int]]:
    """Returns, by node, whose values are not read after it: without gradients they need no memory
    then.
    """
    last = {entry.node: index for index, node in graph.operators() for entry in node.inputs}
    heads = {head.node for head in graph.heads}
    uses: dict[int, list[int]] = {}
    for used, index in last.items():
        if used not in heads:
            uses.setdefault(index, []).append(used)
    return uses


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return array


@dataclass(frozen=True)
class ParsedNode(Node):
    """A node whose attributes that are tuples of integers (or of ``None``) are parsed once, as
    ``tuples``. The parser is Python that ``torch.compile`` cannot trace, and it takes time in
    every pass.
    """

    tuples: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    def bounds(self, key: str) -> tuple[int | None, ...]:
        if key in self.tuples:
            return self.tuples[key]
        # Absent, or the parser's own error.
        return super().bounds(key) if key in self.attrs else ()


def parse_nodes(graph: Graph) -> Graph:
    """Returns the same graph of parsed nodes."""
    return replace(graph, nodes=tuple(_parse(node) for node in graph.nodes))


def _parse(node: Node) -> ParsedNode:
    tuples: dict[str, tuple[int | None, ...]] = {}
    for key in node.attrs:
        try:
            tuples[key] = node.bounds(key)
        except InvalidSymbol:
            continue  # not a tuple
    return ParsedNode(node.op, node.name, node.inputs, dict(node.attrs), node.user_attrs, tuples)


STATES = slice(3, 5)


def repeated_norms(graph: Graph) -> frozenset[int]:
    """Returns the indices of the batch norms whose running statistics another one moves too, as
    when an image passes one backbone at two sizes.
    """
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
    """A move of running mean and variance by one pass, held back until ``finish``: the order of
    several is MXNet's.

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
        """Starts before the operator, whose ``inputs`` are data, gamma, beta, mean and variance."""
        states = inputs[STATES]
        copies = tuple(state.clone() for state in states)
        momentum = node.number("momentum", 0.9)
        return Move(momentum, states, copies, tuple(state.clone() for state in states))

    def finish(self) -> None:
        """Moves the network's own statistics."""
        with torch.no_grad():
            for state, moved, start in zip(self.states, self.moved, self.start, strict=True):
                state.copy_(self.momentum * state + (moved - self.momentum * start))
