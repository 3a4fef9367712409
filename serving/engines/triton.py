"""An engine that is a Triton server: the same interface, over gRPC or shared memory.

It asks for ``logits`` where the model has them, else for ``mask``, never for both: labels and
confidence come from ``serving.imaging.restore`` either way.

Source: Open Inference Protocol v2 over gRPC; Triton's extension_shared_memory.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2

from serving.engine import EngineSpec
from serving.engines.triton_connection import AWAY, SharedTensor, Stub, TritonConnection, is_local
from serving.errors import EngineFailed, InvalidModel
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction

log = logging.getLogger("segserve")

INPUT = "image"
LOGITS = "logits"
MASK = "mask"
CHANNELS = 3
# One call more than the server has instances: the next batch is there when one is done.
AHEAD = 1


@dataclass(frozen=True)
class _Slot:
    """Memory of one call at a time; None where tensors travel in the messages."""

    image: SharedTensor | None
    result: SharedTensor | None


class TritonEngine:
    """Serves one version of a Triton server's model of the contract.

    Args:
        connection: to one or several servers that hold the model.
        config: the model's configuration, as the server gave it.
        shared_memory: whether tensors may go through shared memory where the server is local.

    Raises:
        InvalidModel: the configuration is not of the contract; the message names the field.
    """

    def __init__(
        self,
        connection: TritonConnection,
        config: model_config_pb2.ModelConfig,
        version: int,
        *,
        shared_memory: bool,
    ) -> None:
        self.connection = connection
        self.model = config.name
        self.version = version
        self._batched = config.max_batch_size > 0
        outputs = {output.name: tuple(output.dims) for output in config.output}
        self._output = LOGITS if LOGITS in outputs else MASK
        self._spec = read_spec(config)
        self._result_shape = outputs[self._output][-3 if self._output == LOGITS else -2 :]
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        if self._output == MASK:
            self._dtype = self._spec.label_type
        # Servers that take no shared memory, found out once.
        self._refusing: set[str] = set()
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        local = shared_memory and any(is_local(url) for url in connection.urls)
        for _ in range(self._spec.instances):
            self._slots.put(self._make_slot() if local else _Slot(None, None))

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return "triton"

    def warm(self) -> None:
        size = self._spec.size
        for n in range(1, self._spec.max_batch_size + 1):
            self.run(np.zeros((n, size.height, size.width, CHANNELS), np.uint8))

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        slot = self._slots.get()
        try:
            result = self.connection.call(lambda stub, url: self._infer(stub, url, batch, slot))
        finally:
            self._slots.put(slot)
        if self._output == LOGITS:
            return Prediction(np.asarray(result, np.float32), None)
        return Prediction(None, np.asarray(result, self._dtype))

    def close(self) -> None:
        while not self._slots.empty():
            slot = self._slots.get()
            for memory in (slot.image, slot.result):
                if memory is not None:
                    memory.close(self.connection)

    def _make_slot(self) -> _Slot:
        n, size = self._spec.max_batch_size, self._spec.size
        item = np.dtype(self._dtype).itemsize
        return _Slot(
            SharedTensor(n * size.height * size.width * CHANNELS),
            SharedTensor(n * item * int(np.prod(self._result_shape))),
        )

    def _infer(
        self, stub: Stub, url: str, batch: npt.NDArray[np.uint8], slot: _Slot
    ) -> npt.NDArray[np.generic]:
        image, result = slot.image, slot.result
        if image is None or result is None or url in self._refusing or not is_local(url):
            return self._infer_by_message(stub, batch)
        try:
            image.register(stub, url)
            result.register(stub, url)
        except grpc.RpcError as error:
            if error.code() in AWAY:
                raise
            self._refusing.add(url)
            log.info("Triton at %s takes no shared memory (%s)", url, error.details())
            return self._infer_by_message(stub, batch)
        try:
            return self._infer_by_memory(stub, batch, image, result)
        except grpc.RpcError as error:
            if "shared memory" not in str(error.details()):
                raise
            # It was restarted since, and knows no region of ours; elsewhere it would refuse.
            for memory in (image, result):
                memory.forget(stub, url)
                memory.register(stub, url)
            return self._infer_by_memory(stub, batch, image, result)

    def _infer_by_memory(
        self,
        stub: Stub,
        batch: npt.NDArray[np.uint8],
        image: SharedTensor,
        result: SharedTensor,
    ) -> npt.NDArray[np.generic]:
        image.write(batch)
        request = self._request(batch)
        image.describe(request.inputs[0], batch.nbytes)
        result.describe(request.outputs[0], result.size)
        response = stub.ModelInfer(request, timeout=self.connection.timeout_s)
        shape = self._check(response, len(batch))
        if any(response.raw_output_contents):
            # The region then holds what an earlier run wrote, perhaps of another caller's picture.
            raise EngineFailed(
                f"Triton's {self.model!r} did not write {self._output} to the shared memory named",
                kind="wrong_answer",
            )
        return result.read(self._dtype, shape)

    def _infer_by_message(
        self, stub: Stub, batch: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.generic]:
        request = self._request(batch)
        request.raw_input_contents.append(np.ascontiguousarray(batch).tobytes())
        response = stub.ModelInfer(request, timeout=self.connection.timeout_s)
        shape = self._check(response, len(batch))
        contents = response.raw_output_contents
        raw = contents[0] if len(contents) == 1 else b""
        expected = int(np.prod(shape)) * np.dtype(self._dtype).itemsize
        if len(raw) != expected:
            raise EngineFailed(
                f"Triton's {self.model!r} gave {len(raw)} raw bytes of {self._output}, expected "
                f"{expected}",
                kind="wrong_answer",
            )
        return np.frombuffer(raw, self._dtype).reshape(shape)

    def _request(self, batch: npt.NDArray[np.uint8]) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(
            model_name=self.model, model_version=str(self.version)
        )
        request.inputs.add(name=INPUT, datatype="UINT8", shape=batch.shape)
        request.outputs.add(name=self._output)
        return request

    def _check(self, response: service_pb2.ModelInferResponse, n: int) -> tuple[int, ...]:
        """Returns the shape of the one output that was asked for.

        Raises:
            EngineFailed: the answer is of another model, version, name, datatype or shape.
        """
        shape = (n, *self._result_shape)
        datatype = "FP32" if self._output == LOGITS else self._dtype.name.upper()
        found = [(o.name, o.datatype, tuple(o.shape)) for o in response.outputs]
        # A server may leave its model's name and version out, but not answer of others.
        model, version = response.model_name or self.model, response.model_version
        if (model, version or str(self.version)) != (self.model, str(self.version)) or found != [
            (self._output, datatype, shape)
        ]:
            outputs = ", ".join(f"{name} {kind} {list(dims)}" for name, kind, dims in found)
            raise EngineFailed(
                f"Triton's {model!r} version {version} gave {outputs or 'no output'}; expected "
                f"{self._output} {datatype} {list(shape)} of {self.model!r} version {self.version}",
                kind="wrong_answer",
            )
        return shape


def read_spec(config: model_config_pb2.ModelConfig) -> EngineSpec:
    """Returns what a model of the contract takes and gives, from its configuration alone.

    Raises:
        InvalidModel: sizes that vary, or an output of another rank; the message names it.
    """
    batched = config.max_batch_size > 0
    shapes = {t.name: tuple(t.dims)[0 if batched else 1 :] for t in (*config.input, *config.output)}
    image = shapes[INPUT]
    if len(image) != 3 or image[2] != CHANNELS or min(image) < 1:
        raise InvalidModel(
            f"{config.name}: {INPUT} is {list(image)}; the contract is static [H, W, 3]"
        )
    logits = shapes.get(LOGITS)
    result, rank = (shapes.get(MASK, ()), 2) if logits is None else (logits, 3)
    if len(result) != rank or min(result) < 1:
        raise InvalidModel(
            f"{config.name}: {MASK if logits is None else LOGITS} is {list(result)}; the contract "
            f"is static logits [C, h, w], or mask [H, W]"
        )
    if logits is None and tuple(result) != tuple(image[:2]):
        raise InvalidModel(f"{config.name}: {MASK} is {list(result)}, {INPUT} is {list(image)}")
    return EngineSpec(
        size=Size(image[0], image[1]),
        num_classes=0 if logits is None else logits[0],
        logits_size=None if logits is None else Size(logits[1], logits[2]),
        max_batch_size=max(1, config.max_batch_size),
        instances=max(1, sum(max(1, group.count) for group in config.instance_group)) + AHEAD,
        precision=config.parameters["precision"].string_value
        if "precision" in config.parameters
        else "unknown",
        wide=any(
            o.name == MASK and o.data_type == model_config_pb2.TYPE_UINT16 for o in config.output
        ),
    )
