"""The ranges of a network's tensors on real images, for int8.

Ranges depend on the float graph, the images and the method alone, so they are measured once and
shared by every recipe that is tried.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.passes.contract import IMAGE
from export.passes.onnx_graph import infer_shapes

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import TensorsData

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

# ONNX Runtime's own default; Relu makes most values 0, so less cuts off what matters.
PERCENTILE = 99.999


def usable_methods(model: ModelProto) -> tuple[Method, ...]:
    """Returns the methods for which memory suffices: histograms need all tensors of one image at
    once, and may take half of the machine's memory; ``minmax`` always fits."""
    shapes = infer_shapes(model)
    made = {name for node in model.graph.node for name in node.output}
    numbers = sum(math.prod(max(1, n) for n in shapes[name]) for name in made & shapes.keys())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return METHODS if 4 * numbers < memory / 2 else ("minmax",)


class ImageReader:
    """Feeds uint8 [H, W, 3] images to ONNX Runtime's calibrators, one a run.

    Source of the interface: ``onnxruntime.quantization.CalibrationDataReader``.
    """

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Returns the next run's inputs, ``image`` uint8 [1, H, W, 3]; None at the end."""
        image = next(self._images, None)
        return None if image is None else {IMAGE: image[None]}


def calibrate(
    model: ModelProto,
    images: Sequence[NDArray[np.uint8]],
    method: Method,
    on_image: Callable[[], None] = lambda: None,
) -> TensorsData:
    """Returns the range of every float tensor over the images.

    Args:
        model: a float32 graph of the contract; it stays as it is.
        images: uint8 [H, W, 3] each, of the model's size.
        method: ``minmax`` keeps the extremes, ``percentile`` cuts off the rarest values,
            ``entropy`` chooses the cut that changes the histogram least.
        on_image: called after each image.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    options: dict[str, float] = {"percentile": PERCENTILE} if method == "percentile" else {}
    # The calibrators print as they go.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            source,
            None,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[method],
            extra_options={**options, "symmetric": False},
        )
        for image in images:  # one by one: a calibrator holds all tensors of what it is given
            calibrator.collect_data(ImageReader([image]))
            on_image()
        ranges: TensorsData = calibrator.compute_data()
        return ranges
