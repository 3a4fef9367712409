"""Open Inference Protocol v2, shared by both transports: what its operations mean.

Source: Open Inference Protocol v2 (kserve/open-inference-protocol); differences from Triton are
listed in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2

from serving.admission.admission import Place
from serving.admission.observation import Observation
from serving.batching.batch import Inferred
from serving.engines.graph import MASK
from serving.errors import InvalidModel, InvalidRequest, SegserveError, Unsupported
from serving.imaging.geometry import plan
from serving.models.index import ModelState
from serving.models.model import Model
from serving.models.repository import ModelConfig
from serving.observability.metrics import Timings
from serving.oip.image_tensors import Answer, build_outputs, choose_outputs, read_images
from serving.oip.messages import InferRequest, InferResponse
from serving.oip.model_config import complete_config
from serving.oip.shared_memory import SharedMemory
from serving.service import Segmenter

TensorConfig: TypeAlias = model_config_pb2.ModelInput | model_config_pb2.ModelOutput
OIP_DATATYPES = {"TYPE_UINT8": "UINT8", "TYPE_UINT16": "UINT16", "TYPE_FP32": "FP32"}


@dataclass(frozen=True)
class TensorMetadata:
    """Name, datatype and shape, -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """The answer to ``GET /v2/models/{model}``."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class Dataplane:
    """The protocol's operations on loaded models."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.registry = segmenter.registry
        self.settings = segmenter.settings
        self.memory = SharedMemory(segmenter.settings)

    def find(self, name: str, version: int | None, transport: str) -> Model:
        """Returns the model of an inference whose tensors are not read yet.

        Raises:
            ModelNotFound, NotReady: counted as the request that they end.
        """
        try:
            return self.registry.get(name, version)
        except SegserveError as error:
            with self.segmenter.observe(name, transport, 0):
                raise error

    def metadata(self, name: str, version: int | None) -> ModelMetadata:
        """Inputs and outputs of a model."""
        model = self.registry.get(name, version)
        config = model.folder.config
        batch = (-1,) if config.max_batch_size > 0 else ()
        return ModelMetadata(
            name=model.name,
            versions=tuple(str(v) for v in model.folder.versions),
            platform=config.platform or "onnxruntime_onnx",
            inputs=tuple(_describe(tensor, batch) for tensor in config.input),
            outputs=tuple(_describe(tensor, batch) for tensor in config.output),
        )

    def is_loaded(self, name: str, version: int | None) -> bool:
        """Returns whether requests for that model can be answered."""
        try:
            return self.registry.get(name, version).is_ready
        except SegserveError:
            return False

    def config(self, name: str, version: int | None) -> ModelConfig:
        """Returns the model's whole configuration, defaults filled in."""
        return complete_config(self.registry.get(name, version).folder)

    def statistics(self, name: str, version: int | None) -> list[Model]:
        """Models whose statistics are asked for: all where ``name`` is empty, and all versions
        where ``version`` is None.

        Raises:
            ModelNotFound: there is none.
        """
        if name:
            self.registry.get(name, version)
        return [
            model
            for model in self.registry.models()
            if name in ("", model.name) and version in (None, model.version)
        ]

    async def index(self, *, ready: bool) -> list[ModelState]:
        """Returns the models of the repository; with ``ready`` only those that are loaded."""
        states = await self.registry.index()
        return [state for state in states if state.state == "READY" or not ready]

    async def load(self, name: str, overrides: tuple[str, ...]) -> None:
        """Loads a model of the repository, or loads it anew.

        Args:
            overrides: names of load parameters, which Triton takes configuration and files from.

        Raises:
            Unsupported: the setting is off, or any overrides.
            InvalidRequest: the model cannot be served.
            ModelNotFound: the repository does not hold it.
        """
        self._check_model_control()
        if overrides:
            raise Unsupported(
                f"load parameter {', '.join(map(repr, overrides))} is not supported; "
                f"write the configuration into the repository"
            )
        try:
            # A client who leaves must not leave half a change behind.
            await asyncio.shield(self.registry.load(name, self.segmenter.pool))
        except InvalidModel as error:
            raise InvalidRequest(f"load failed for model {name!r}: {error}") from None

    async def unload(self, name: str) -> None:
        """Unloads a model once its requests are answered; unknown names are unloaded already.

        Raises:
            Unsupported: the setting is off.
        """
        self._check_model_control()
        await asyncio.shield(self.registry.unload(name))

    def _check_model_control(self) -> None:
        if not self.settings.enable_model_control:
            raise Unsupported(
                "loading and unloading models is switched off (setting enable_model_control)"
            )

    async def infer(self, request: InferRequest, transport: str) -> InferResponse:
        """Infers every image of the request; each is an item of the batcher of its own.

        Raises:
            InvalidRequest: tensors that are not the model's; the message names what is.
            SegserveError: as ``Segmenter.segment``.
        """
        size = sum(tensor.size for tensor in request.inputs)
        with self.segmenter.observe(request.model, transport, size) as observed:
            model = self.registry.get(request.model, request.version)
            observed.hold(model)
            wanted = choose_outputs(request, model)
            for output in wanted:
                if output.place is not None:
                    self.memory.check(output.place)
            images = read_images(request.inputs, model)
            labels = all(output.name == MASK for output in wanted)
            answers = await self._infer_all(images, model, request, observed, labels)
            observed.timings = tuple(answer.timings for answer in answers)
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(
                self.segmenter.pool, build_outputs, wanted, answers, model, self.memory
            )
            for answer in answers:
                self.segmenter.metrics.observe_stages(model.name, answer.timings)
            observed.response_bytes = sum(output.tensor.size for output in outputs)
            return InferResponse(model.name, model.version, request.id, outputs)

    async def _infer_all(
        self,
        images: tuple[bytes | npt.NDArray[np.uint8], ...],
        model: Model,
        request: InferRequest,
        observed: Observation,
        labels_suffice: bool,
    ) -> list[Answer]:
        tasks = [
            asyncio.ensure_future(self._infer_one(i, model, request, observed, labels_suffice))
            for i in images
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # One bad image fails the request: the others need not run.
            for task in tasks:
                task.cancel()

    async def _infer_one(
        self,
        image: bytes | npt.NDArray[np.uint8],
        model: Model,
        request: InferRequest,
        observed: Observation,
        labels_suffice: bool,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
        timings, layout = Timings(), plan(model.spec.size, model.spec.size)

        async def submit(pixels: npt.NDArray[np.uint8], place: Place | None = None) -> Inferred:
            return await model.batcher.submit(
                pixels,
                timeout_s=None if deadline is None else deadline - loop.time(),
                policy_timeout_s=request.policy_timeout_s,
                priority=request.priority,
                place=place,
                labels_suffice=labels_suffice,
            )

        if isinstance(image, bytes):
            with model.batcher.reserve(
                model.input_bytes, timeout_s=request.timeout_s, priority=request.priority
            ) as place:
                prepared = await self.segmenter.prepare(
                    image, model, timings, observed, deadline=deadline
                )
                layout = prepared.plan
                inferred = await submit(prepared.pixels, place)
        else:
            inferred = await submit(image)
        timings.add("queue", inferred.queue_seconds, ended_s_ago=inferred.infer_seconds)
        timings.add("infer", inferred.infer_seconds)
        return Answer(inferred, layout, timings)


def _describe(tensor: TensorConfig, batch: tuple[int, ...]) -> TensorMetadata:
    datatype = OIP_DATATYPES[model_config_pb2.DataType.Name(tensor.data_type)]
    return TensorMetadata(tensor.name, datatype, (*batch, *tensor.dims))
