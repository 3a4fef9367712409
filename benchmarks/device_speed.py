"""Times one graph on one execution provider of ONNX Runtime, and reads where its nodes ran."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper

from benchmarks.node_profile import NodeProfile, read_profile
from benchmarks.timing import time_runs

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
IMAGE = "image"
_PROFILED_RUNS = 3


class ProviderMissing(Exception):
    """The provider cannot run here; the message says why."""


@dataclass(frozen=True)
class DeviceSpeed:
    """Milliseconds an image; input and output stay in the device's memory but for the last two.

    Attributes:
        options: of the provider, as ONNX Runtime takes them.
        per_image_ms: the mean of all runs; ``p50_ms`` and ``p95_ms`` are of one run.
        with_copies_ms: the mean with the image copied in and the result copied out.
    """

    provider: str
    options: dict[str, str]
    fetched: str
    runs: int
    per_image_ms: float
    p50_ms: float
    p95_ms: float
    with_copies_ms: float
    profile: NodeProfile


def provider_options(provider: str, channels_last: bool) -> dict[str, str]:
    """What a provider is opened with: the fastest convolutions it can find."""
    if provider != CUDA:
        return {}
    return {
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "prefer_nhwc": "1" if channels_last else "0",
    }


def check_provider(provider: str) -> None:
    """Raises ProviderMissing where ONNX Runtime lacks the provider, or cannot start it."""
    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise ProviderMissing(
            f"ONNX Runtime {onnxruntime.__version__} has only {', '.join(present)}"
        )
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    smallest = helper.make_model(graph, opset_imports=opset, ir_version=8)
    _open(smallest.SerializeToString(), provider, {})


def measure_device(
    model: ModelProto, provider: str, options: dict[str, str], seconds: float
) -> DeviceSpeed:
    """Runs noise through a graph with one output and a batch of one, for about ``seconds`` twice.

    Raises ProviderMissing where the provider does not start.
    """
    content = model.SerializeToString()
    (output,) = (value.name for value in model.graph.output)
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    session = _open(content, provider, options)
    device = "cuda" if provider == CUDA else "cpu"
    binding = session.io_binding()
    # The value must live as long as the binding.
    bound = onnxruntime.OrtValue.ortvalue_from_numpy(image, device, 0)
    binding.bind_ortvalue_input(IMAGE, bound)
    binding.bind_output(output, device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    timing = time_runs(run, seconds, warm_runs=5)
    copying = time_runs(lambda: session.run([output], {IMAGE: image}), seconds)
    return DeviceSpeed(
        provider=provider,
        options=options,
        fetched=output,
        runs=len(timing.walls),
        per_image_ms=timing.total / len(timing.walls) * 1000,
        p50_ms=timing.percentile_ms(50),
        p95_ms=timing.percentile_ms(95),
        with_copies_ms=copying.total / len(copying.walls) * 1000,
        profile=profile_nodes(content, provider, options, {IMAGE: image}),
    )


def profile_nodes(
    content: bytes, provider: str, options: dict[str, str], feed: dict[str, np.ndarray]
) -> NodeProfile:
    """Runs a graph in a profiled session of its own, as profiling costs time itself."""
    with tempfile.TemporaryDirectory() as folder:
        session = _open(content, provider, options, Path(folder) / "profile")
        for _ in range(_PROFILED_RUNS):
            session.run(None, feed)
        return read_profile(Path(session.end_profiling()))


def _open(
    content: bytes, provider: str, options: dict[str, str], profile: Path | None = None
) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    wanted = [(provider, options)] if provider == CPU else [(provider, options), (CPU, {})]
    session = onnxruntime.InferenceSession(content, settings, wanted)
    # It carries on with the CPU alone where a provider's libraries or its device are missing.
    if session.get_providers()[0] != provider:
        raise ProviderMissing(
            f"ONNX Runtime {onnxruntime.__version__} knows {provider}, but it does not start: no"
            " device, an old driver, or its libraries are missing"
        )
    return session
