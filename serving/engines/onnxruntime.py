"""The embedded engine on CPUs: ONNX Runtime, one session an instance, opened with its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.engine import EngineSpec
from serving.engines.acceleration import Acceleration, Options
from serving.engines.graph import CHANNELS, INPUT, LOGITS, cut_to, outputs_of, read_graph, read_spec
from serving.engines.winograd import apply_winograd
from serving.errors import EngineFailed, InvalidModel
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


CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Provider: TypeAlias = tuple[str, Options]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


# How long a thread spins for the others of its session. Where each has its core they are that far
# apart; one that is later lost its core to what decodes or answers: this one's can be used, too.
SPIN_MICROSECONDS = 50


def session_options(
    acceleration: Acceleration, instances: int, threads: int
) -> onnxruntime.SessionOptions:
    """Options of one of ``instances`` sessions that share ``threads`` cores."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[acceleration.graph_level]
    options.intra_op_num_threads = acceleration.intra_op_threads or max(1, threads // instances)
    options.inter_op_num_threads = acceleration.inter_op_threads or 1
    if acceleration.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = acceleration.arena
    options.enable_mem_pattern = acceleration.pattern
    options.log_severity_level = 3
    # A session's threads spin between its nodes; not between runs, nor beside another's threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if instances > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    path: Path,
    content: bytes,
    options: onnxruntime.SessionOptions,
    providers: Sequence[Provider],
) -> onnxruntime.InferenceSession:
    """Returns a session of a graph, on the first of ``providers``.

    Raises:
        InvalidModel: ONNX Runtime refuses the graph, or the provider does not start.
    """
    try:
        session = onnxruntime.InferenceSession(
            content, options, [(name, dict(given)) for name, given in providers]
        )
    except Exception as error:
        raise InvalidModel(f"{path}: ONNX Runtime cannot load it: {error}") from None
    # It carries on with the CPU where a provider's libraries or its device are missing.
    if session.get_providers()[0] != providers[0][0]:
        raise InvalidModel(
            f"{path}: {providers[0][0]} does not start: no device, an old driver, or its "
            f"libraries are missing"
        )
    # Nor may a run that fails on the device be repeated elsewhere without a word.
    session.disable_fallback()
    return session
