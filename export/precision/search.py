"""``--search``: tries the knobs of int8 and keeps the fastest recipe that passes the gate.

One knob is turned at a time: first the calibration method, then, with the method whose labels are
the closest to float32's, the layers left in float, 8-bit weights and the type of the activations.
What passes is timed at the end, all in turn. Which layers int8 hurts most is found by quantising
each alone and comparing the network's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from rich.box import SIMPLE
from rich.table import Table

from export.errors import PrecisionFailed
from export.precision.gate import Comparison, Gate, Limits
from export.precision.quantise import (
    Method,
    Recipe,
    calibrate,
    convolutions,
    quantise,
    usable_methods,
)
from export.precision.served_graph import ServedGraph, TimeRatio, compare_times, serve_graph
from export.progress import Steps

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData


SENSITIVITY_IMAGES = 2
SENSITIVE_LAYERS = (2, 5)
# A smaller difference does not justify the less accurate one, even where it is certain.
SAME_TIME = 1.02


@dataclass(frozen=True)
class Try:
    """A recipe that was tried.

    Attributes:
        megabytes: size of the file.
        passes: True where the limits allow the loss.
        time: that of a run over float32's; None where it does not pass.
    """

    recipe: Recipe
    comparison: Comparison
    megabytes: float
    passes: bool
    time: TimeRatio | None = None


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
    graphs: dict[Recipe, ModelProto] = {}

    def attempt(recipe: Recipe) -> None:
        on_image = steps.part(str(recipe), len(gate))
        quantised = quantise(model, ranges[recipe.method], recipe)
        try:
            comparison = gate.compare(quantised, on_image)
        except PrecisionFailed:
            return
        passes = limits.excess(comparison) is None
        tries.append(Try(recipe, comparison, quantised.ByteSize() / 1e6, passes))
        graphs[recipe] = quantised

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
    passing = [t.recipe for t in tries if t.passes]
    if passing:
        begin = partial(steps.part, "timing what passes, in turn")
        times = compare_times([graphs[recipe] for recipe in passing], model, images[0], begin)
        timed = dict(zip(passing, times, strict=True))
        tries = [replace(t, time=timed.get(t.recipe)) for t in tries]
    chosen = choose(tries)
    return SearchResult(tuple(tries), chosen, graphs[chosen.recipe])


def variants(best: Recipe, worst: Sequence[str]) -> list[Recipe]:
    """Returns recipes that differ from ``best`` in one option; ``worst`` names the layers that
    lose most."""
    return [
        replace(best, first_float=True),
        replace(best, last_float=False),
        replace(best, first_float=True, last_float=False),
        *(replace(best, float_layers=tuple(sorted(worst[:n]))) for n in SENSITIVE_LAYERS),
        replace(best, reduce_range=False),
        replace(best, activation="int8"),
        replace(best, activation="int8", symmetric=True),
    ]


def choose(tries: Sequence[Try]) -> Try:
    """Returns the fastest that passes; of those whose times are within its spread,
    the closest to float32. Where none passes, the one that loses least, for the gate to refuse."""
    timed = [(t.time, t) for t in tries if t.time is not None]
    if not timed:
        return min(tries, key=lambda t: t.comparison.loss)
    fastest = min((time for time, _ in timed), key=lambda time: time.median)
    limit = max(fastest.high, fastest.median * SAME_TIME)
    equal = [t for time, t in timed if time.low <= limit]
    # Not the best mIoU: a gain over float32 is chance.
    return max(equal, key=lambda t: t.comparison.agreement)


def tries_table(tries: Sequence[Try], chosen: Try) -> Table:
    """Returns what was tried, for the terminal; an arrow marks the one that is kept.

    Columns: mIoU, points of it that are lost, labels equal to float32's, the time's median and 95 %
    interval.
    """
    table = Table("", "recipe", title="int8 recipes", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("mIoU", "lost", "equal", "time / fp32", "MB", "gate"):
        # Words may wrap in a narrow terminal, numbers are shown whole.
        table.add_column(heading, justify="right", no_wrap=True)
    for found in tries:
        drop, after = found.comparison.drop, found.comparison.after.mean_iou
        table.add_row(
            "→" if found is chosen else "",
            str(found.recipe),
            "-" if after is None else f"{100 * after:.2f} %",
            "-" if drop is None else f"{drop:+.2f}",
            f"{100 * found.comparison.agreement:.2f} %",
            "-" if found.time is None else str(found.time),
            f"{found.megabytes:.1f}",
            "passes" if found.passes else "fails",
        )
    return table


if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData


@dataclass(frozen=True)
class LayerError:
    """A layer and what quantising it alone costs: the mean change of the logits over their mean
    size (without logits: the share of changed labels)."""

    name: str
    error: float


def layer_errors(
    model: ModelProto,
    ranges: TensorsData,
    recipe: Recipe,
    images: Sequence[NDArray[np.uint8]],
    on_layer: Callable[[], None] = lambda: None,
) -> list[LayerError]:
    """Returns the errors of all convolutions, worst first, over a few uint8 [H, W, 3] images.

    Runs the network once an image and layer: a few images suffice.
    """
    layers = convolutions(model)
    with serve_graph(model) as served:
        expected = [_answer(served, image) for image in images]
    found = []
    for layer in layers:
        others = tuple(name for name in layers if name != layer)
        alone = replace(
            recipe,
            first_float=False,
            last_float=False,
            float_layers=others,
            operators=("Conv", "Relu"),
        )
        with serve_graph(quantise(model, ranges, alone)) as served:
            errors = [
                float(np.abs(_answer(served, image) - answer).mean() / np.abs(answer).mean())
                for image, answer in zip(images, expected, strict=True)
            ]
        found.append(LayerError(layer, float(np.mean(errors))))
        on_layer()
    return sorted(found, key=lambda layer: -layer.error)


def _answer(served: ServedGraph, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    prediction = served.predict(image)
    if prediction.logits is not None:
        return prediction.logits
    assert prediction.mask is not None, "a prediction has logits or a mask"
    # One plane a class: labels are names, their differences mean nothing.
    planes = np.arange(prediction.mask.max() + 1)[:, None, None] == prediction.mask
    return np.asarray(planes, np.float32)
