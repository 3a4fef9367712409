"""Parameters that nobody trained: random ones, and those that training from scratch starts from.

Convolutions are He-normal, batch norms neutral or not. Speed does not depend on the values, so
benchmarks and trials need no trained weights. Comparisons need batch norms that do something.
"""

from __future__ import annotations

import math

import numpy as np

from export.symbols.elementwise import ADDITIONS
from export.symbols.graph import BATCH_NORMS, Graph
from export.symbols.params import Array, Parameters
from export.symbols.shape_rules import DEFORMABLE, NORMS, data_inputs
from export.symbols.shapes import infer_shapes

# Gamma where a sum reads the batch norm (residual sums must stay bounded), and elsewhere.
_GAMMA_BEFORE_SUM, _GAMMA = (0.2, 0.5), (0.7, 1.3)
_VARIANCE = (0.5, 1.5)
# Of PReLU, as He et al. start it (arXiv 1502.01852).
_SLOPE = 0.25


def random_params(
    graph: Graph, height: int, width: int, seed: int = 0, *, neutral: bool = True
) -> Parameters:
    """Returns float32 parameters for every variable of the graph, the same for the same seed.

    Weights of layers are N(0, 2 / fan_in), a deconvolution a channel bilinear, biases 0, gamma
    and variance 1, beta and mean 0, slopes 1/4. Without ``neutral`` biases, beta and mean are
    N(0, 0.04), gamma is uniform around 1, around 0.35 in front of sums, variance in 0.5 to 1.5.
    Raises what ``infer_shapes`` raises.
    """
    shapes = infer_shapes(graph, height, width).parameters
    generator = np.random.default_rng(seed)
    arguments: dict[str, Array] = {}
    auxiliary: dict[str, Array] = {}
    summed = {e.node for _, n in graph.operators() if n.op in ADDITIONS for e in n.inputs}
    for index, node in graph.operators():
        gamma = _GAMMA_BEFORE_SUM if index in summed else _GAMMA
        names = [graph.nodes[e.node].name for e in node.inputs]
        for position, name in enumerate(names):
            if name not in shapes or name in arguments:
                continue
            shape = shapes[name]
            if len(shape) == 4 and shape[1] == 1 and node.op in ("Deconvolution", "UpSampling"):
                arguments[name] = np.broadcast_to(_bilinear(shape[2], shape[3]), shape).copy()
            elif len(shape) > 1 and data_inputs(node) is not None:
                deviation = np.float32(math.sqrt(2 / math.prod(shape[1:])))
                normal = generator.standard_normal(shape, dtype=np.float32)
                arguments[name] = normal * deviation
            elif node.op in BATCH_NORMS or node.op in NORMS:
                kind = arguments if position < 3 else auxiliary
                kind[name] = (np.ones if position in (1, 4) else np.zeros)(shape, np.float32)
                if not neutral:
                    kind[name] = _varied(generator, shape, {1: gamma, 4: _VARIANCE}.get(position))
            elif neutral:
                slope = _SLOPE if node.op == "LeakyReLU" else 0
                arguments[name] = np.full(shape, slope, np.float32)
            else:
                arguments[name] = _varied(generator, shape, None)
    return Parameters(arguments, auxiliary)


def _varied(
    generator: np.random.Generator, shape: tuple[int, ...], bounds: tuple[float, float] | None
) -> Array:
    values = generator.uniform(*bounds, shape) if bounds else generator.normal(0, 0.2, shape)
    varied: Array = values.astype(np.float32)
    return varied


def _bilinear(rows: int, columns: int) -> Array:
    """Returns float32 [rows, columns]: the kernel that interpolates by half its length."""
    sides = []
    for length in (rows, columns):
        factor = (length + 1) // 2
        centre = factor - 1 if length % 2 else factor - 0.5
        sides.append(1 - np.abs(np.arange(length) - centre) / factor)
    kernel: Array = np.outer(*sides).astype(np.float32)
    return kernel


def start_parameters(graph: Graph, height: int, width: int, seed: int) -> Parameters:
    """Returns ``random_params``, but the convolutions that give a deformable one its offsets start
    at zero, so that it begins as a plain one (Dai et al., arXiv 1703.06211)."""
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
