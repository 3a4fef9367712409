"""``--search``: tries the knobs of int8 and keeps the fastest recipe that passes the gate.

One knob is turned at a time: first the calibration method, then, with the method whose
labels are the closest to float32's, the type of the activations and the layers left in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from rich.table import Table

from export.calibration import Method, calibrate, usable_methods
from export.errors import PrecisionFailed
from export.gate import Comparison, Gate, Limits
from export.progress import Steps
from export.quantise import Recipe, convolutions, quantise
from export.quantise_sensitivity import layer_errors
from export.served_graph import time_ratio

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData

SENSITIVITY_IMAGES = 2
SENSITIVE_LAYERS = (2, 5)
# Two recipes whose times are this close are equally fast; the one closer to float32 is kept.
SAME_TIME = 1.05


@dataclass(frozen=True)
class Try:
    """A recipe that was tried.

    Attributes:
        time_ratio: median time of a run over that of float32, both measured alternately.
        megabytes: size of the file.
        passes: True where the limits allow the loss.
    """

    recipe: Recipe
    comparison: Comparison
    time_ratio: float
    megabytes: float
    passes: bool


@dataclass(frozen=True)
class SearchResult:
    """All tries in their order, the one to keep, and its graph."""

    tries: tuple[Try, ...]
    chosen: Try
    model: ModelProto


def search(
    model: ModelProto,
    images: Sequence[NDArray[np.uint8]],
    gate: Gate,
    limits: Limits,
    steps: Steps,
) -> SearchResult:
    """Tries the recipes; one that does not run is left out.

    Where none passes, the one that loses least is chosen, for the gate to refuse.

    Args:
        model: a float32 graph of the contract whose nodes have names.
        images: what to calibrate on, uint8 [H, W, 3] each.

    Raises PrecisionFailed where no recipe runs.
    """
    ranges: dict[Method, TensorsData] = {}
    for method in usable_methods(model):
        on_image = steps.part(f"calibrating: {method}", len(images))
        ranges[method] = calibrate(model, images, method, on_image)
    tries: list[Try] = []

    def attempt(recipe: Recipe) -> None:
        on_image = steps.part(str(recipe), len(gate))
        quantised = quantise(model, ranges[recipe.method], recipe)
        try:
            comparison = gate.compare(quantised, on_image)
            ratio = time_ratio(quantised, model, images[0])
        except PrecisionFailed:
            return
        passes = limits.excess(comparison) is None
        tries.append(Try(recipe, comparison, ratio, quantised.ByteSize() / 1e6, passes))

    for method in ranges:
        attempt(Recipe(method))
    if not tries:
        raise PrecisionFailed("ONNX Runtime runs no int8 form of this graph; use --precision fp16")
    best = max(tries, key=lambda t: t.comparison.agreement).recipe
    count = min(SENSITIVITY_IMAGES, len(images))
    on_layer = steps.part("looking for sensitive layers", len(convolutions(model)))
    errors = layer_errors(model, ranges[best.method], best, images[:count], on_layer)
    for recipe in variants(best, [layer.name for layer in errors]):
        attempt(recipe)
    chosen = choose(tries)
    quantised = quantise(model, ranges[chosen.recipe.method], chosen.recipe)
    return SearchResult(tuple(tries), chosen, quantised)


def variants(best: Recipe, worst: Sequence[str]) -> list[Recipe]:
    """Recipes that differ from ``best`` in one knob; ``worst`` names the layers that lose most."""
    return [
        replace(best, first_float=False),
        replace(best, last_float=False),
        replace(best, first_float=False, last_float=False),
        *(replace(best, float_layers=tuple(sorted(worst[:n]))) for n in SENSITIVE_LAYERS),
        replace(best, activation="int8"),
        replace(best, activation="int8", symmetric=True),
    ]


def choose(tries: Sequence[Try]) -> Try:
    """The fastest that passes, of equally fast ones the closest to float32; where none passes the
    one that loses least, for the gate to refuse."""
    passing = [t for t in tries if t.passes]
    if not passing:
        return min(tries, key=lambda t: t.comparison.loss)
    fastest = min(t.time_ratio for t in passing)
    equal = [t for t in passing if t.time_ratio <= fastest * SAME_TIME]
    # Not the best mIoU: a gain over float32 is chance.
    return max(equal, key=lambda t: t.comparison.agreement)


def tries_table(tries: Sequence[Try], chosen: Try) -> Table:
    """What was tried, for the terminal; an arrow marks the one that is kept."""
    table = Table("", "recipe", title="int8 recipes")
    for heading in ("mIoU", "lost points", "equal labels", "time / fp32", "MB", "gate"):
        table.add_column(heading, justify="right")
    for found in tries:
        drop, after = found.comparison.drop, found.comparison.after.mean_iou
        table.add_row(
            "→" if found is chosen else "",
            str(found.recipe),
            "-" if after is None else f"{100 * after:.2f} %",
            "-" if drop is None else f"{drop:+.2f}",
            f"{100 * found.comparison.agreement:.2f} %",
            f"{found.time_ratio:.2f}",
            f"{found.megabytes:.1f}",
            "passes" if found.passes else "fails",
        )
    return table
