"""A graph run as the server runs it (prepared, inferred by the embedded engine, restored), timed.

Times are relative to one another, on a machine that may be doing other things. All graphs are open
at once and take turns, in another order each round; a graph's time is divided by that of the
reference in the same round, so slow drifts cancel. The median of the ratios is reported with an
interval that holds the true median with 95 % confidence, whatever the noise is distributed like
(order statistics: David and Nagaraja, "Order Statistics", section 7.1).
"""

from __future__ import annotations

import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from export.errors import PrecisionFailed
from export.progress import OnPart
from serving.engines.onnxruntime import OnnxEngine
from serving.errors import SegserveError
from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import Prediction, labels_from_logits, labels_nearest
from serving.palette import LabelMap


class ServedGraph:
    """One opened graph; not for several threads."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine

    @property
    def size(self) -> Size:
        """Returns the height and width that the network takes."""
        return self._engine.spec.size

    def labels(self, image: NDArray[np.uint8]) -> LabelMap:
        """Returns class ids, [H0, W0], of an RGB image uint8 [H0, W0, 3] of any size.

        Raises PrecisionFailed where a logit is not finite.
        """
        original = Size(image.shape[0], image.shape[1])
        prediction = self.predict(prepare(image, plan(original, self.size)))
        if prediction.mask is not None:
            return labels_nearest(prediction.mask, original)
        assert prediction.logits is not None, "a prediction has logits or a mask"
        return labels_from_logits(prediction.logits, self.size, original)

    def predict(self, prepared: NDArray[np.uint8]) -> Prediction:
        """Returns the prediction for one image uint8 [H, W, 3] of the network's size.

        Raises PrecisionFailed where it does not run or a logit is not finite.
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


# With fewer rounds than 6 not even the extremes are a 95 % interval.
MIN_ROUNDS, MAX_ROUNDS = 7, 31
SECONDS = 20.0
_MISS = 0.05


@dataclass(frozen=True)
class TimeRatio:
    """A graph's time over the reference's: the median over all rounds and its 95 % interval."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def compare_times(
    models: Sequence[ModelProto],
    reference: ModelProto,
    image: NDArray[np.uint8],
    begin: Callable[[int], OnPart] = lambda rounds: lambda: None,
) -> list[TimeRatio]:
    """Returns the time of each model over that of ``reference`` for one image uint8 [H, W, 3].

    7 to 31 rounds, about 20 seconds where there is the choice. ``begin`` gets their number and
    returns a function that is called after each. Raises PrecisionFailed where a graph does not run.
    """
    with ExitStack() as stack:
        served = [stack.enter_context(serve_graph(model)) for model in (reference, *models)]
        order = random.Random(0)
        _run_round(served, image, order)  # warms up
        first = _run_round(served, image, order)
        rounds = round(min(max(SECONDS / sum(first), MIN_ROUNDS), MAX_ROUNDS))
        on_round = begin(rounds)
        seconds = [first]
        on_round()
        while len(seconds) < rounds:
            seconds.append(_run_round(served, image, order))
            on_round()
    return [
        median_ratio([times[index] / times[0] for times in seconds])
        for index in range(1, len(models) + 1)
    ]


def median_ratio(ratios: Sequence[float]) -> TimeRatio:
    """Returns the median and its interval; of fewer than 6 ratios the interval is all that was
    seen."""
    count = len(ratios)
    skipped, miss = 0, 2 * 0.5**count
    while skipped + 1 < count / 2:
        miss += 2 * math.comb(count, skipped + 1) * 0.5**count
        if miss > _MISS:
            break
        skipped += 1
    ordered = sorted(ratios)
    return TimeRatio(
        statistics.median(ordered), ordered[skipped], ordered[count - 1 - skipped], count
    )


def _run_round(
    served: Sequence[ServedGraph], image: NDArray[np.uint8], order: random.Random
) -> list[float]:
    """Returns the seconds of one run of each, in an order by chance: none always follows the same
    one."""
    seconds = [0.0] * len(served)
    for index in order.sample(range(len(served)), len(served)):
        seconds[index] = served[index].seconds(image)
    return seconds
