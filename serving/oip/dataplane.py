"""The operations of the Open Inference Protocol v2, which both transports share.

Source: Open Inference Protocol v2 (kserve/open-inference-protocol); differences from Triton are
listed in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2

from serving.admission.admission import Admission, RequestInFlight
from serving.batching.admission import Reservation
from serving.batching.queue import Inferred
from serving.engines.graph import MASK
from serving.errors import InvalidModel, InvalidRequest, SegserveError, Unsupported
from serving.imaging.geometry import plan
from serving.models.index import ModelState
from serving.models.model import Model
from serving.models.registry import Registry
from serving.models.repository import ModelConfig
from serving.models.response_cache import submit_cached
from serving.observability.metrics import Metrics
from serving.observability.request_context import Timings
from serving.oip.image_tensors import Answer, build_outputs, choose_outputs, read_images
from serving.oip.messages import InferRequest, InferResponse, complete_config
from serving.oip.shared_memory import SharedMemory
from serving.preparation import ImagePreparer
from serving.settings import Settings

TensorConfig: TypeAlias = model_config_pb2.ModelInput | model_config_pb2.ModelOutput
OIP_DATATYPES = {"TYPE_UINT8": "UINT8", "TYPE_UINT16": "UINT16", "TYPE_FP32": "FP32"}


@dataclass(frozen=True)
class TensorMetadata:
    """The name, datatype and shape of a tensor; the shape is -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model, as ``GET /v2/models/{model}`` returns it."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class Dataplane:
    """The operations of the protocol on loaded models."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        preparer: ImagePreparer,
        metrics: Metrics,
        settings: Settings,
        pool: Executor,
    ) -> None:
        self.memory = SharedMemory(settings)
        self._registry = registry
        self._admission = admission
        self._preparer = preparer
        self._metrics = metrics
        self._settings = settings
        self._pool = pool

    def find(self, name: str, version: int | None, transport: str) -> Model:
        """Returns the model of an inference whose tensors are not read yet.

        Raises:
            ModelNotFound, NotReady: counted as the request that they end.
        """
        try:
            return self._registry.get(name, version)
        except SegserveError as error:
            with self._admission.enter(name, transport, 0):
                raise error

    def metadata(self, name: str, version: int | None) -> ModelMetadata:
        """Returns the inputs and outputs of a model."""
        model = self._registry.get(name, version)
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
            return self._registry.get(name, version).is_ready
        except SegserveError:
            return False

    def config(self, name: str, version: int | None) -> ModelConfig:
        """Returns the model's whole configuration, defaults filled in."""
        return complete_config(self._registry.get(name, version).folder)

    def statistics(self, name: str, version: int | None) -> list[Model]:
        """Returns the models whose statistics are asked for.

        An empty ``name`` stands for all models, a ``version`` of None for all versions.

        Raises:
            ModelNotFound: there is none.
        """
        if name:
            self._registry.get(name, version)
        return [
            model
            for model in self._registry.models()
            if name in ("", model.name) and version in (None, model.version)
        ]

    async def index(self, *, ready: bool) -> list[ModelState]:
        """Returns the models of the repository; with ``ready`` only those that are loaded."""
        states = await self._registry.index()
        return [state for state in states if state.state == "READY" or not ready]

    async def load(self, name: str, overrides: tuple[str, ...]) -> None:
        """Loads a model of the repository, or reloads it.

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
            # A client that disconnects must not leave half a change behind.
            await asyncio.shield(self._registry.load(name, self._pool))
        except InvalidModel as error:
            raise InvalidRequest(f"load failed for model {name!r}: {error}") from None

    async def unload(self, name: str) -> None:
        """Unloads a model once its requests are answered; unknown names are unloaded already.

        Raises:
            Unsupported: the setting is off.
        """
        self._check_model_control()
        await asyncio.shield(self._registry.unload(name))

    def _check_model_control(self) -> None:
        if not self._settings.enable_model_control:
            raise Unsupported(
                "loading and unloading models is switched off (setting enable_model_control)"
            )

    async def infer(self, request: InferRequest, transport: str) -> InferResponse:
        """Infers every image of the request; each is an item of the batcher.

        Raises:
            InvalidRequest: tensors that are not the model's; the message names what is.
            SegserveError: as ``Segmenter.segment``.
        """
        size = sum(tensor.size for tensor in request.inputs)
        with self._admission.enter(request.model, transport, size) as in_flight:
            model = self._registry.get(request.model, request.version)
            in_flight.hold(model)
            wanted = choose_outputs(request, model)
            for output in wanted:
                if output.place is not None:
                    self.memory.check(output.place)
            images = read_images(request.inputs, model)
            labels = all(output.name == MASK for output in wanted)
            answers = await self._infer_all(images, model, request, in_flight, labels)
            in_flight.timings = tuple(answer.timings for answer in answers)
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(
                self._pool, build_outputs, wanted, answers, model, self.memory
            )
            for answer in answers:
                self._metrics.observe_stages(model.name, answer.timings)
            in_flight.response_bytes = sum(output.tensor.size for output in outputs)
            return InferResponse(model.name, model.version, request.id, outputs)

    async def _infer_all(
        self,
        images: tuple[bytes | npt.NDArray[np.uint8], ...],
        model: Model,
        request: InferRequest,
        in_flight: RequestInFlight,
        labels_suffice: bool,
    ) -> list[Answer]:
        tasks = [
            asyncio.ensure_future(self._infer_one(i, model, request, in_flight, labels_suffice))
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
        in_flight: RequestInFlight,
        labels_suffice: bool,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        deadline = None if request.timeout_s is None else loop.time() + request.timeout_s
        timings, layout = Timings(), plan(model.spec.size, model.spec.size)

        async def submit(
            pixels: npt.NDArray[np.uint8], reservation: Reservation | None = None
        ) -> Inferred:
            return await submit_cached(
                model.batcher,
                model.cache,
                self._pool,
                pixels,
                timeout_s=None if deadline is None else deadline - loop.time(),
                policy_timeout_s=request.policy_timeout_s,
                priority=request.priority,
                reservation=reservation,
                labels_suffice=labels_suffice,
            )

        if isinstance(image, bytes):
            with model.batcher.reserve(
                model.input_bytes, timeout_s=request.timeout_s, priority=request.priority
            ) as reservation:
                prepared = await self._preparer.prepare(
                    image, model, timings, in_flight, deadline=deadline
                )
                layout = prepared.plan
                inferred = await submit(prepared.pixels, reservation)
        else:
            inferred = await submit(image)
        timings.add("queue", inferred.queue_seconds, ended_s_ago=inferred.infer_seconds)
        timings.add("infer", inferred.infer_seconds)
        return Answer(inferred, layout, timings)


def _describe(tensor: TensorConfig, batch: tuple[int, ...]) -> TensorMetadata:
    datatype = OIP_DATATYPES[model_config_pb2.DataType.Name(tensor.data_type)]
    return TensorMetadata(tensor.name, datatype, (*batch, *tensor.dims))
