"""Runs a graph on ONNX Runtime as the server's own engines do: on the CPU, CUDA or TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from benchmarks.engines.subject import Case, EngineMissing
from serving.engine import EngineSpec
from serving.engines.accelerated import narrow_half_logits
from serving.engines.acceleration import Acceleration
from serving.engines.bound_session import BoundSession, image_tensor, result_tensor
from serving.engines.devices import CudaDevice, Device, HostDevice, load_cuda_runtime
from serving.engines.graph import INPUT, LOGITS, cut_to, outputs_of, read_graph, read_spec
from serving.engines.onnxruntime import CPU, CUDA, TENSORRT, Provider, open_session, session_options
from serving.engines.providers import gpu_providers, has_cuda_graphs, without_cuda_graphs
from serving.engines.winograd import apply_winograd
from serving.errors import EngineFailed, InvalidModel

PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}


class OnnxSubject:
    """A graph on one device, bound as the server binds it on a GPU.

    Args:
        profile: ONNX Runtime profiles every run into a file whose name starts so.

    Raises EngineMissing where this ONNX Runtime lacks the provider, or it does not start.
    """

    def __init__(
        self,
        case: Case,
        engine: str,
        acceleration: Acceleration = Acceleration(),  # noqa: B008 (frozen)
        profile: Path | None = None,
    ) -> None:
        assert case.graph is not None
        check_provider(PROVIDERS[engine])
        whole = read_graph(case.graph)
        output = case.output or outputs_of(whole)[0]
        model = cut_to(case.graph, whole, output)
        spec = read_spec(case.graph, model, 1, case.batch)
        if engine != "cpu":
            model = narrow_half_logits(model)
        self._factors: Mapping[str, npt.NDArray[np.float32]] = {}
        if engine == "cpu" and acceleration.winograd:
            rewritten = apply_winograd(model)
            model, self._factors = rewritten.model, rewritten.factors
        self.on_gpu = engine != "cpu"
        self.engine = f"onnxruntime-{engine}"
        self._device = open_device(engine)
        self._batch = case.images()
        options = session_options(acceleration, 1, case.threads)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        providers = choose_providers(engine, acceleration, spec, self._device)
        if not case.graphs:
            providers = without_cuda_graphs(providers)
        try:
            session = open_session(case.graph, model.SerializeToString(), options, providers)
        except InvalidModel as error:
            self._device.close()
            raise EngineMissing(str(error)) from error
        graphs = has_cuda_graphs(providers)
        result = result_tensor(model, spec)
        size = f" at {result.shape[-2]}x{result.shape[-1]}" if output == LOGITS else ""
        self.fetched = f"{output}{size}, {result.dtype.name}"
        self.layout = "CUDA graphs" if graphs else ("kernel by kernel" if self.on_gpu else "")
        self.versions = f"ONNX Runtime {onnxruntime.__version__}"
        self._session, self._output = session, output
        self._bound: BoundSession | None = None
        if self.on_gpu:
            self._bound = BoundSession(
                session, self._device, image_tensor(case.height, case.width), result, case.batch,
                graphs=graphs,
            )  # fmt: skip
        self.run()  # the images are on the device from now on

    def compute(self) -> None:
        if self._bound is None:
            self.run()
            return
        self._device.enter()
        self._bound.launch(len(self._batch))
        self._device.synchronise()

    def run(self) -> None:
        self._device.enter()
        if self._bound is not None:
            self._bound.run(self._batch)
        else:  # as the server's engine does on a CPU
            self._session.run([self._output], {INPUT: self._batch, **self._factors})

    def end_profile(self) -> Path:
        """Returns the file of the profile."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        del self._bound, self._session
        self._device.close()


def open_on_cpu(
    model: ModelProto, threads: int, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Opens a graph on the CPU with ONNX Runtime's own defaults, or with ``options``."""
    if options is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def check_provider(provider: str) -> None:
    """Raises EngineMissing where this ONNX Runtime lacks the provider."""
    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise EngineMissing(
            f"ONNX Runtime {onnxruntime.__version__} has only {', '.join(present)}; "
            f"benchmarks/gpu.sh sets up one with CUDA"
        )


def open_device(engine: str) -> Device:
    """Returns the first GPU, or the host. Raises EngineMissing where CUDA does not respond."""
    if engine == "cpu":
        return HostDevice()
    try:
        return CudaDevice(load_cuda_runtime(), 0)
    except EngineFailed as error:
        raise EngineMissing(str(error)) from error


def choose_providers(
    engine: str, acceleration: Acceleration, spec: EngineSpec, device: Device
) -> list[Provider]:
    """Returns the providers that the server would open the graph with."""
    if engine == "cpu":
        return [(CPU, {})]
    if engine == "tensorrt" and acceleration.tensorrt is None:
        acceleration = Acceleration(cuda=acceleration.cuda, tensorrt={})
    return gpu_providers(acceleration, spec, device.number, device.stream)
