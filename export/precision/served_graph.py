"""A graph run as the server runs it: prepared, inferred by the embedded engine, restored."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.errors import PrecisionFailed
from serving.engine import Prediction
from serving.engines.onnxruntime import OnnxEngine
from serving.errors import SegserveError
from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import labels_from_logits, labels_nearest
from serving.palette import LabelMap


class ServedGraph:
    """One opened graph; not for several threads."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    @property
    def size(self) -> Size:
        """Height and width that the network takes."""
        return self._engine.spec.size

    def labels(self, image: NDArray[np.uint8]) -> LabelMap:
        """Returns class ids, [H0, W0], of an RGB image uint8 [H0, W0, 3] of any size.

        Raises PrecisionFailed where a logit is no number.
        """
        original = Size(image.shape[0], image.shape[1])
        prediction = self.predict(prepare(image, plan(original, self.size)))
        if prediction.mask is not None:
            return labels_nearest(prediction.mask, original)
        assert prediction.logits is not None, "a prediction has logits or a mask"
        return labels_from_logits(prediction.logits, self.size, original)

    def predict(self, prepared: NDArray[np.uint8]) -> Prediction:
        """Returns the prediction for one image uint8 [H, W, 3] of the network's size.

        Raises PrecisionFailed where it does not run or a logit is no number.
        """
        try:
            prediction = self._engine.run(prepared[None])[0]
        except SegserveError as error:
            raise PrecisionFailed(f"the graph does not run: {error}") from error
        if prediction.logits is not None and not np.isfinite(prediction.logits).all():
            raise PrecisionFailed(
                "the logits overflow at this precision; use --precision fp32, or train with weight"
                " decay so that the activations stay small"
            )
        return prediction

    def seconds(self, prepared: NDArray[np.uint8]) -> float:
        """Returns the time of one run."""
        start = time.perf_counter()
        self._engine.run(prepared[None])
        return time.perf_counter() - start


@contextmanager
def serve_graph(model: ModelProto) -> Iterator[ServedGraph]:
    """Opens a graph in the embedded engine, with all cores.

    Raises PrecisionFailed where the engine refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            engine = OnnxEngine(path, instances=1, threads=os.cpu_count() or 1, max_batch_size=1)
        except SegserveError as error:
            raise PrecisionFailed(f"the embedded engine refuses the graph: {error}") from error
    try:
        yield ServedGraph(engine)
    finally:
        engine.close()
