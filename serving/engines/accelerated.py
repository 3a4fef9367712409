"""The embedded engine on a GPU: nothing but bytes of pixels and of answers crosses the bus.

Pre-processing is in the graph, so pixels go up as uint8, 3 bytes each. What comes back is chosen by
what the images of a batch need:

- ``mask``, a byte a pixel, where all of them are content with labels at the model's size (a photo
  of that size, ``size=model``, ``smooth=false``): the argmax runs on the device.
- ``logits`` at the network's resolution else: a photo of another size, confidence and blends are
  restored from them exactly, which labels alone cannot be. As float16 where the network computes in
  float16: 5 MB instead of 10 for 19 classes at 256x512.

Each instance has a stream, page-locked buffers, and a session an output on it, so the copies of one
batch overlap with the kernels of another; two instances a GPU unless the configuration says so.
Runs are CUDA graphs, one a batch size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from serving.engine import EngineSpec
from serving.engines.acceleration import Acceleration
from serving.engines.bound_session import BoundSession, image_tensor, result_tensor
from serving.engines.devices import Device
from serving.engines.graph import (
    CHANNELS,
    LOGITS,
    MASK,
    cut_to,
    find_precision,
    outputs_of,
    read_graph,
    read_spec,
)
from serving.engines.onnxruntime import CPU, CUDA, TENSORRT, Provider, open_session, session_options
from serving.engines.providers import has_cuda_graphs, without_cuda_graphs
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.restore import Prediction

log = logging.getLogger("segserve")

INSTANCES = 2
# A run that captures must have run plainly before, and is replayed once to see that it works.
_WARM_RUNS = 3
# While a graph is captured nobody else may allocate on the device.
_CAPTURE = threading.Lock()

ChooseProviders = Callable[[EngineSpec, Device], list[Provider]]
_NAMES = {CUDA: "cuda", TENSORRT: "tensorrt", CPU: "cpu"}


@dataclass(frozen=True)
class _Lane:
    """One instance: a device's stream, and a session an output."""

    device: Device
    sessions: dict[str, BoundSession]


class AcceleratedEngine:
    """Serves a graph of the contract on devices; see the module.

    Args:
        path: the ``model.onnx``.
        devices: one an instance.
        choose_providers: what to open a device's sessions with.

    Raises:
        InvalidModel: no readable graph, not of the contract, or the provider does not start.
        EngineFailed: the device does not answer.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_batch_size: int,
        devices: Sequence[Device],
        choose_providers: ChooseProviders,
        acceleration: Acceleration,
    ) -> None:
        model = read_graph(path)
        self._outputs = outputs_of(model)
        cuts = {name: cut_to(path, model, name) for name in self._outputs}
        self._spec = read_spec(path, cuts[self._outputs[0]], len(devices), max_batch_size)
        self._acceleration = acceleration
        self._path = path
        self._provider = ""
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        graphs = {name: narrow_half_logits(cut) for name, cut in cuts.items()}
        for device in devices:
            providers = choose_providers(self._spec, device)
            self._lanes.put(_Lane(device, self._open(graphs, device, providers)))

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return f"onnxruntime-{_NAMES.get(self._provider, self._provider)}"

    @property
    def gives_labels(self) -> bool:
        """Returns whether ``run_labels`` can be called: the graph has both outputs."""
        return self._outputs == (LOGITS, MASK)

    def warm(self) -> None:
        size = self._spec.size
        lanes = [self._lanes.get() for _ in range(self._spec.instances)]
        try:
            with _CAPTURE:
                for n in range(1, self._spec.max_batch_size + 1):
                    batch = np.zeros((n, size.height, size.width, CHANNELS), np.uint8)
                    for lane in lanes:
                        for output in self._outputs * _WARM_RUNS:
                            _run(lane, batch, output, self._dtype(output))
        finally:
            for lane in lanes:
                self._lanes.put(lane)

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        return self._predict(batch, self._outputs[0])

    def run_labels(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        """Runs a batch like ``run`` and returns ``mask``, labels at the model's size.

        Raises:
            EngineFailed: the run failed; the engine can still be used.
        """
        return self._predict(batch, MASK)

    def close(self) -> None:
        while not self._lanes.empty():
            lane = self._lanes.get()
            lane.sessions.clear()
            lane.device.close()

    def _predict(self, batch: npt.NDArray[np.uint8], output: str) -> Prediction:
        lane = self._lanes.get()
        try:
            result = _run(lane, batch, output, self._dtype(output))
        finally:
            self._lanes.put(lane)
        if output == LOGITS:
            return Prediction(np.asarray(result, np.float32), None)
        return Prediction(None, np.asarray(result, self._dtype(output)))

    def _dtype(self, output: str) -> np.dtype[Any]:
        """Returns the type of a prediction, whatever crosses the bus."""
        return np.dtype(np.float32) if output == LOGITS else self._spec.label_type

    def _open(
        self, graphs: Mapping[str, onnx.ModelProto], device: Device, providers: list[Provider]
    ) -> dict[str, BoundSession]:
        """Sessions with CUDA graphs; without, where ONNX Runtime cannot capture one."""
        self._provider = providers[0][0]
        try:
            return {name: self._bind(graph, device, providers) for name, graph in graphs.items()}
        except InvalidModel as error:
            if not has_cuda_graphs(providers):
                raise
            log.warning("%s: opened without CUDA graphs, which it refuses: %s", self._path, error)
            plain = without_cuda_graphs(providers)
            return {name: self._bind(graph, device, plain) for name, graph in graphs.items()}

    def _bind(
        self, graph: onnx.ModelProto, device: Device, providers: list[Provider]
    ) -> BoundSession:
        options = session_options(self._acceleration, self._spec.instances, 1)
        session = open_session(self._path, graph.SerializeToString(), options, providers)
        size = self._spec.size
        return BoundSession(
            session,
            device,
            image_tensor(size.height, size.width),
            result_tensor(graph, self._spec),
            self._spec.max_batch_size,
            graphs=has_cuda_graphs(providers),
        )


def _run(
    lane: _Lane, batch: npt.NDArray[np.uint8], output: str, dtype: np.dtype[Any]
) -> npt.NDArray[np.generic]:
    try:
        lane.device.enter()
        return lane.sessions[output].run(batch, dtype)
    except EngineFailed:
        raise
    except Exception as error:
        raise EngineFailed(f"ONNX Runtime: {error}") from error


def narrow_half_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns an fp16 graph whose float32 logits are float16: half the bytes leave the GPU.

    Args:
        model: with one output; returned as it is where that is not ``logits`` or the graph is
            not fp16.

    Of a graph that computes in float16 the values have no more than its 11 bits, but for what
    the last resize interpolates: the rounding is within half a unit of the eleventh bit.
    """
    (output,) = model.graph.output
    if output.name != LOGITS or find_precision(model) != "fp16":
        return model
    narrow = onnx.ModelProto()
    narrow.CopyFrom(model)
    (output,) = narrow.graph.output
    wide = f"{output.name}_float32"
    for node in narrow.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == output.name:
                    names[position] = wide
    cast = onnx.helper.make_node(
        "Cast", [wide], [output.name], name=f"{output.name}_float16", to=onnx.TensorProto.FLOAT16
    )
    narrow.graph.node.append(cast)
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return narrow
