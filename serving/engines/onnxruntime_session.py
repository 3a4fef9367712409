"""Opens sessions of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnxruntime

from serving.engines.acceleration import Acceleration, Options
from serving.errors import InvalidModel

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
