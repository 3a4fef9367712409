"""Open Inference Protocol v2, shared by both transports: what ``infer`` and metadata mean.

As an extension ``image`` may be BYTES ``[n]`` of encoded images, and ``png`` BYTES ``[n]`` may be
asked for: each mask as an indexed PNG in its own image's size.

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

from serving import mask, restore
from serving.batcher import Inferred
from serving.errors import InvalidRequest, SegserveError, UnsupportedOption
from serving.geometry import Size
from serving.metrics import Timings
from serving.protocol import parse_version
from serving.registry import Model
from serving.repository import ModelConfig
from serving.service import Segmenter, restore_labels
from serving.tensors import Tensor

INPUT = "image"
LOGITS = "logits"
CONFIDENCE = "confidence"
PNG = "png"
TensorConfig: TypeAlias = model_config_pb2.ModelInput | model_config_pb2.ModelOutput
OIP_DATATYPES = {"TYPE_UINT8": "UINT8", "TYPE_FP32": "FP32"}


@dataclass(frozen=True)
class TensorMetadata:
    """Name, datatype and shape, -1 where it varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What ``GET /v2/models/{model}`` says."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class InferRequest:
    """One inference; no ``outputs`` means all of the model's own."""

    model: str
    version: int | None
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    timeout_s: float | None


@dataclass(frozen=True)
class InferResponse:
    """Its answer, outputs in the order asked for."""

    model: str
    version: int
    id: str
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Answer:
    """One image of a request: its prediction, its own size, its timings."""

    inferred: Inferred
    original: Size
    timings: Timings


class Dataplane:
    """The protocol's operations on loaded models."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.registry = segmenter.registry

    def metadata(self, name: str, version: int | None) -> ModelMetadata:
        """Inputs and outputs of a model."""
        model = self.registry.get(name, version)
        config = model.folder.config
        batch = (-1,) if config.max_batch_size > 0 else ()
        return ModelMetadata(
            name=model.name,
            versions=tuple(str(v) for v in model.folder.versions),
            platform=config.platform,
            inputs=tuple(_describe(tensor, batch) for tensor in config.input),
            outputs=tuple(_describe(tensor, batch) for tensor in config.output),
        )

    def is_loaded(self, name: str, version: str) -> bool:
        """Whether requests for that model can be answered."""
        try:
            self.registry.get(name, parse_version(version))
        except SegserveError:
            return False
        return True

    def config(self, name: str, version: int | None) -> ModelConfig:
        """The model's whole configuration."""
        return self.registry.get(name, version).folder.config

    async def infer(self, request: InferRequest, transport: str) -> InferResponse:
        """Infers every image of the request; each is an item of the batcher of its own.

        Raises:
            InvalidRequest: tensors that are not the model's; the message names what is.
            SegserveError: as ``Segmenter.segment``.
        """
        size = sum(_size(tensor) for tensor in request.inputs)
        with self.segmenter.observe(request.model, transport, size) as observed:
            model = self.registry.get(request.model, request.version)
            wanted = request.outputs or tuple(output.name for output in model.folder.config.output)
            check_outputs(wanted, model)
            images = read_images(request.inputs, model)
            answers = await self._infer_all(images, model, request.timeout_s)
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(
                self.segmenter.pool, build_outputs, wanted, answers, model
            )
            for answer in answers:
                self.segmenter.metrics.observe_stages(model.name, answer.timings)
            observed.response_bytes = sum(_size(tensor) for tensor in outputs)
            return InferResponse(model.name, model.version, request.id, outputs)

    async def _infer_all(
        self,
        images: tuple[bytes | npt.NDArray[np.uint8], ...],
        model: Model,
        timeout_s: float | None,
    ) -> list[Answer]:
        tasks = [asyncio.ensure_future(self._infer_one(i, model, timeout_s)) for i in images]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # One bad image fails the request: the others need not run.
            for task in tasks:
                task.cancel()

    async def _infer_one(
        self, image: bytes | npt.NDArray[np.uint8], model: Model, timeout_s: float | None
    ) -> Answer:
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        timings, original = Timings(), model.spec.size
        if isinstance(image, bytes):
            prepared = await loop.run_in_executor(
                self.segmenter.pool, self.segmenter.prepare, image, model, timings
            )
            pixels, original = prepared.pixels, prepared.plan.original
        else:
            pixels = image
        inferred = await model.batcher.submit(
            pixels, timeout_s=None if deadline is None else deadline - loop.time()
        )
        timings.add("queue", inferred.queue_seconds)
        timings.add("infer", inferred.infer_seconds)
        return Answer(inferred, original, timings)


def check_outputs(wanted: tuple[str, ...], model: Model) -> None:
    """Raises InvalidRequest or UnsupportedOption for an output that cannot be given."""
    known = (*(output.name for output in model.folder.config.output), PNG)
    for name in wanted:
        if name not in known:
            raise InvalidRequest(
                f"unexpected inference output {name!r} for model {model.name!r}; "
                f"known: {', '.join(known)}"
            )
        if name in (LOGITS, CONFIDENCE) and model.spec.logits_size is None:
            raise UnsupportedOption(
                f"{name} needs the model's logits, which {model.name!r} does not give; "
                f"export it with `segserve export --head mask,logits`"
            )


def read_images(
    inputs: tuple[Tensor, ...], model: Model
) -> tuple[bytes | npt.NDArray[np.uint8], ...]:
    """The images of a request, encoded or as pixels ``[H,W,3]``.

    Raises:
        InvalidRequest: not exactly one input ``image`` of the model's shape.
    """
    if len(inputs) != 1 or inputs[0].name != INPUT:
        names = ", ".join(repr(tensor.name) for tensor in inputs) or "none"
        raise InvalidRequest(f"expected one input {INPUT!r}, got {names}")
    tensor, size = inputs[0], model.spec.size
    n = tensor.shape[0] if tensor.shape else 0
    # perf_analyzer sends BYTES as [n,1].
    listed = tensor.datatype == "BYTES" and tensor.shape in ((n,), (n, 1))
    pixels = tensor.datatype == "UINT8" and tensor.shape[1:] == (size.height, size.width, 3)
    if not listed and not pixels:
        raise InvalidRequest(
            f"{INPUT}: {tensor.datatype} {list(tensor.shape)} does not fit model {model.name!r}; "
            f"expected UINT8 [n,{size.height},{size.width},3] (RGB) "
            f"or BYTES [n] of encoded images"
        )
    if n > model.spec.max_batch_size:
        raise InvalidRequest(
            f"inference request batch-size must be <= {model.spec.max_batch_size} "
            f"for {model.name!r}, got {n}"
        )
    return tuple(tensor.data)


def build_outputs(
    wanted: tuple[str, ...], answers: list[Answer], model: Model
) -> tuple[Tensor, ...]:
    """The asked-for tensors, batched. Runs on a pool thread."""
    return tuple(_build_output(name, answers, model) for name in wanted)


def _build_output(name: str, answers: list[Answer], model: Model) -> Tensor:
    if name == PNG:
        files = tuple(_encode_png(answer, model) for answer in answers)
        return Tensor(PNG, "BYTES", (len(files),), files)
    size = model.spec.size
    # check_outputs has made sure that they are there where they are asked for.
    logits = [m for a in answers if (m := a.inferred.prediction.logits) is not None]
    if name == LOGITS:
        stacked = np.stack(logits)
        return Tensor(name, "FP32", stacked.shape, stacked)
    if name == CONFIDENCE:
        certain = np.stack([restore.confidence_from_logits(m, size, size) for m in logits])
        return Tensor(name, "UINT8", certain.shape, certain)
    masks = np.stack([_restore(answer, model, size) for answer in answers])
    return Tensor(name, "UINT8", masks.shape, masks)


def _restore(answer: Answer, model: Model, target: Size) -> npt.NDArray[np.uint8]:
    with answer.timings.measure("restore"):
        return restore_labels(answer.inferred.prediction, model.spec.size, target, None)


def _encode_png(answer: Answer, model: Model) -> bytes:
    labels = _restore(answer, model, answer.original)
    with answer.timings.measure("encode"):
        known = model.labels
        view = mask.MaskView(labels, known.names, known.colors, known.ignore_label)
        return mask.encode(view, PNG).body


def _describe(tensor: TensorConfig, batch: tuple[int, ...]) -> TensorMetadata:
    datatype = OIP_DATATYPES[model_config_pb2.DataType.Name(tensor.data_type)]
    return TensorMetadata(tensor.name, datatype, (*batch, *tensor.dims))


def _size(tensor: Tensor) -> int:
    if isinstance(tensor.data, tuple):
        return sum(len(item) for item in tensor.data)
    return tensor.data.nbytes
