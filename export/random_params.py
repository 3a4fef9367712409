"""Random parameters for a symbol: He-normal convolutions, neutral batch norms.

Speed does not depend on the values, so benchmarks and trials need no trained weights.
"""

from __future__ import annotations

import math

import numpy as np

from export.params import Array, Parameters
from export.shapes import infer_shapes
from export.symbol import BATCH_NORMS, Graph


def random_params(graph: Graph, height: int, width: int, seed: int = 0) -> Parameters:
    """float32 parameters for every variable of the graph, the same for the same seed.

    Convolution weights are N(0, 2 / fan_in), biases 0, gamma and variance 1, beta and mean 0.
    Raises what ``infer_shapes`` raises.
    """
    shapes = infer_shapes(graph, height, width).parameters
    generator = np.random.default_rng(seed)
    arguments: dict[str, Array] = {}
    auxiliary: dict[str, Array] = {}
    for _, node in graph.operators():
        names = [graph.nodes[e.node].name for e in node.inputs]
        for position, name in enumerate(names):
            if name not in shapes or name in arguments:
                continue
            shape = shapes[name]
            if node.op == "Convolution" and position == 1:
                deviation = np.float32(math.sqrt(2 / math.prod(shape[1:])))
                normal = generator.standard_normal(shape, dtype=np.float32)
                arguments[name] = normal * deviation
            elif node.op in BATCH_NORMS:
                kind = arguments if position < 3 else auxiliary
                kind[name] = (np.ones if position in (1, 4) else np.zeros)(shape, np.float32)
            else:
                arguments[name] = np.zeros(shape, np.float32)
    return Parameters(arguments, auxiliary)
