"""An MXNet symbol as a PyTorch module, executed operator by operator, with gradients.

MXNet's newest wheels stop at CUDA 11.2; this lets today's GPUs train the same graph. The operators
are in ``torch_operators``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.symbols.graph import BATCH_NORMS, Graph
from export.symbols.params import Parameters
from export.symbols.shape_rules import LABELLED
from training.trainers.parsed_node import parse_nodes
from training.trainers.repeated_norms import Move, repeated_norms
from training.trainers.torch_operators import (
    Call,
    UnsupportedOperators,
    execute_all,
    unsupported,
)
from training.trainers.torch_replicas import ALONE, Replicas


class SymbolModule(nn.Module):
    """``module(images)`` -> one tensor a head of ``graph``; ``module(images, labels)`` where a head
    is a ``SoftmaxOutput`` that is to be trained.

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
            raise UnsupportedOperators(f"PyTorch cannot execute {', '.join(unknown)} here yet")
        self.graph = parse_nodes(graph)
        self.replicas = replicas
        self.data_index = graph.data_input()
        self.label_indices = _labels(graph)
        self.last_uses = _last_uses(graph)
        self.repeated = repeated_norms(graph)
        # Is told every layer's name and output, where somebody wants to look.
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
                raise ValueError(f"no parameter {node.name!r}")
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
        """A parameter or running statistic, by the symbol's name."""
        found: Tensor = self.weights[name] if name in self.weights else self.get_buffer(name)
        return found

    def parameters_of_symbol(self) -> Parameters:
        """Copies of all arrays, float32, as ``export.symbols.params`` writes them."""
        return Parameters(
            {name: _array(weight) for name, weight in self.weights.items()},
            {name: _array(state) for name, state in self.named_buffers()},
        )


def _labels(graph: Graph) -> frozenset[int]:
    """The variables that output layers read beside the scores."""
    return frozenset(
        entry.node
        for _, node in graph.operators()
        if node.op in LABELLED
        for entry in node.inputs[1:]
        if graph.nodes[entry.node].is_variable
    )


def _last_uses(graph: Graph) -> dict[int, list[int]]:
    """By node, whose values nobody reads after it: without gradients they need no memory then."""
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
