"""The embedded engine on CPUs: ONNX Runtime, one session an instance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.engine import EngineSpec
from serving.engines.acceleration import Acceleration
from serving.engines.graph import CHANNELS, INPUT, LOGITS, cut_to, outputs_of, read_graph, read_spec
from serving.engines.onnxruntime_session import CPU, open_session, session_options
from serving.engines.winograd import apply_winograd
from serving.errors import EngineFailed
from serving.imaging.restore import Prediction


class OnnxEngine:
    """Serves a graph of the contract: ``image`` uint8 ``[N,H,W,3]`` -> ``logits`` or ``mask``.

    The graph is cut to ``logits`` where it has them, else to ``mask``.

    Args:
        path: the ``model.onnx``.
        threads: cores to share out among the instances.

    Raises:
        InvalidModel: no readable graph, or not of the contract; the message names what differs.
    """

    def __init__(
        self,
        path: Path,
        *,
        instances: int,
        threads: int,
        max_batch_size: int,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 (frozen)
    ) -> None:
        model = read_graph(path)
        self._output = outputs_of(model)[0]
        model = cut_to(path, model, self._output)
        self._spec = read_spec(path, model, instances, max_batch_size)
        self._factors: Mapping[str, npt.NDArray[np.float32]] = {}
        if acceleration.winograd:
            rewritten = apply_winograd(model)
            model, self._factors = rewritten.model, rewritten.factors
            del rewritten
        content = model.SerializeToString()
        del model  # Not beside the sessions: it is as large as their weights.
        options = session_options(acceleration, instances, threads)
        self._sessions: SimpleQueue[onnxruntime.InferenceSession] = SimpleQueue()
        for _ in range(instances):
            self._sessions.put(open_session(path, content, options, [(CPU, {})]))

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return "onnxruntime-cpu"

    def warm(self) -> None:
        size = self._spec.size
        for n in range(1, self._spec.max_batch_size + 1):
            for _ in range(self._spec.instances):
                self.run(np.zeros((n, size.height, size.width, CHANNELS), np.uint8))

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        session = self._sessions.get()
        try:
            (result,) = session.run([self._output], {INPUT: batch, **self._factors})
        except Exception as error:
            raise EngineFailed(f"ONNX Runtime: {error}") from error
        finally:
            self._sessions.put(session)
        if self._output == LOGITS:
            return Prediction(result, None)
        return Prediction(None, result)

    def close(self) -> None:
        while not self._sessions.empty():
            self._sessions.get()
