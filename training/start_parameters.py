"""The weights that training from scratch starts from, without MXNet."""

from __future__ import annotations

import numpy as np

from export.symbols.graph import Graph
from export.symbols.initial import random_params
from export.symbols.params import Parameters
from export.symbols.shape_rules import DEFORMABLE


def start_parameters(graph: Graph, height: int, width: int, seed: int) -> Parameters:
    """Of ``random_params``; the convolutions that give a deformable one its offsets start at zero,
    so that it begins as a plain one (Dai et al., arXiv 1703.06211)."""
    parameters = random_params(graph, height, width, seed)
    zero = {
        graph.nodes[entry.node].name
        for _, node in graph.operators()
        if node.op in DEFORMABLE
        for entry in graph.nodes[node.inputs[1].node].inputs[1:]
    }
    started = {
        name: np.zeros_like(array) if name in zero else array
        for name, array in parameters.arguments.items()
    }
    return Parameters(started, parameters.auxiliary)
