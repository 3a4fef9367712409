"""Which layers int8 hurts: each is quantised alone, and the network's answer compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.quantise import Recipe, convolutions, quantise
from export.served_graph import ServedGraph, serve_graph

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
    """The errors of all convolutions, worst first, over a few uint8 [H, W, 3] images.

    Runs the network once an image and layer: a few images tell enough.
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
    planes = np.arange(256, dtype=np.uint8)[:, None, None] == prediction.mask
    return np.asarray(planes, np.float32)
