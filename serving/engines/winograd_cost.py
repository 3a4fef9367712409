"""Estimates whether a convolution gains from Winograd's form, and in which pieces to compute it.

Costs are counted in multiplications of a direct convolution. The weights below were estimated with
ONNX Runtime 1.31 on two cores with AVX-512, on layers of 128 to 2048 channels; ``python -m
benchmarks.studies.winograd`` sets what they expect beside what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from serving.engines.winograd_tiles import OUTPUTS, PRODUCTS, TAPS

# A product with a small matrix of tiles, against one of the convolution.
TRANSFORM = 2.0
# A float32 factor that is read; a sum or a product that is moved; an activation that is transposed.
FACTOR, MOVED, ACTIVATION = 35.0, 25.0, 60.0
# Below this the measured gain vanishes, and other machines might lose.
LEAST_GAIN = 1.4
# Bytes of the sums of one strip, so that memory does not grow with the map.
MAX_STRIP_BYTES = 160 * 2**20
STRIPS = (16, 32, 64)
PATCHES = (32, 64, 128)


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with stride 1 that keeps the size of its map."""

    inputs: int
    outputs: int
    height: int
    width: int
    dilation: int

    @property
    def products(self) -> int:
        """Multiplications of the direct convolution, an image."""
        return TAPS**2 * self.inputs * self.outputs * self.height * self.width

    @property
    def factor_bytes(self) -> int:
        return 4 * PRODUCTS**2 * self.inputs * self.outputs


@dataclass(frozen=True)
class Plan:
    """Strips of ``rows`` one after another, each in patches of ``columns`` side by side."""

    rows: int
    columns: int


def choose_plan(layer: Layer) -> Plan | None:
    """Returns the cheapest pieces; None where a direct convolution is about as fast."""
    plans = [
        Plan(rows, columns)
        for rows, columns in product(
            [layer.height, *(rows for rows in STRIPS if rows < layer.height)],
            [layer.width, *(c for c in PATCHES if c < layer.width and layer.width % c == 0)],
        )
        if _strip_bytes(layer, rows, columns) <= MAX_STRIP_BYTES
    ]
    costs = {plan: estimate(layer, plan) for plan in plans}
    best = min(costs, key=costs.__getitem__, default=None)
    if best is None or LEAST_GAIN * costs[best] > layer.products:
        return None
    return best


def estimate(layer: Layer, plan: Plan) -> float:
    """Returns what an image costs by Winograd's form, in multiplications of the direct one."""
    total = 0.0
    for top in range(0, layer.height, plan.rows):
        total += _estimate_strip(layer, min(plan.rows, layer.height - top), plan.columns)
    return total


def _estimate_strip(layer: Layer, rows: int, columns: int) -> float:
    patches = layer.width // columns
    halo = 2 * layer.dilation if rows < layer.height else 0
    given_rows = rows + halo
    given_columns = columns + (2 * layer.dilation if patches > 1 else 0)
    tall = PRODUCTS * count_tiles(rows, layer.dilation)
    wide = PRODUCTS * count_tiles(columns, layer.dilation)
    entering = patches * layer.inputs * wide * given_rows * (given_columns + tall)
    leaving = patches * layer.outputs * rows * wide * (tall + columns)
    sums = patches * tall * wide
    factors = PRODUCTS**2 * layer.inputs * layer.outputs
    return (
        sums * layer.inputs * layer.outputs
        + TRANSFORM * (entering + leaving)
        + FACTOR * factors
        + MOVED * sums * (layer.inputs + layer.outputs)
        + ACTIVATION * (given_rows * layer.inputs + rows * layer.outputs) * layer.width
    )


def count_tiles(outputs: int, dilation: int) -> int:
    """Returns how many tiles cover a stretch of an axis."""
    return sum(
        -(-len(range(residue, outputs, dilation)) // OUTPUTS)
        for residue in range(min(dilation, outputs))
    )


def _strip_bytes(layer: Layer, rows: int, columns: int) -> int:
    tall, wide = (PRODUCTS * count_tiles(n, layer.dilation) for n in (rows, columns))
    return 4 * tall * wide * (layer.width // columns) * max(layer.inputs, layer.outputs)
