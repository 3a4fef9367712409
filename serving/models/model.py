"""A loaded model: its versions, each with its batcher, its statistics, and who uses it.

The statistics are those of the protocol's extension. A request's ``compute_input`` is decoding and
resizing, ``compute_infer`` the engine's run that it was part of, ``compute_output`` restoring and
encoding; a batch's are assembling it, the run, and handing its rows out. Where a request holds
several images, its slowest one counts.

Source: Triton's extension_statistics.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.batching.batcher import Batcher
from serving.batching.queue import Execution
from serving.engine import Engine, EngineSpec
from serving.models.repository import ModelFolder
from serving.models.response_cache import ModelCache
from serving.observability.metrics import Metrics
from serving.palette import LabelSet

COMPUTE = ("compute_input", "compute_infer", "compute_output")
# Stages of Timings.seconds that each duration of the extension holds.
STAGES = {
    "queue": ("queue",),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("infer",),
    "compute_output": ("restore", "encode"),
}


@dataclass
class Duration:
    """A count, and the total time."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass
class InferenceStatistics:
    """The statistics of one version, from the batcher's runs and from finished requests.

    Attributes:
        last_inference_ms: since 1970 in UTC; 0 before the first.
        inference_count: images inferred.
        execution_count: runs of the engine.
        requests: by the extension's name; ``fail`` holds valid requests that got no answer.
        batches: by batch size, then by name.
    """

    wall_clock: Callable[[], float] = time.time
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    requests: dict[str, Duration] = field(
        default_factory=lambda: {name: Duration() for name in ("success", "fail", *STAGES)}
    )
    batches: dict[int, dict[str, Duration]] = field(default_factory=dict)

    def add_execution(self, execution: Execution) -> None:
        """Adds one run of the engine."""
        self.last_inference_ms = round(self.wall_clock() * 1000)
        self.inference_count += execution.size
        self.execution_count += 1
        batch = self.batches.setdefault(execution.size, {name: Duration() for name in COMPUTE})
        batch["compute_input"].add(execution.input_seconds)
        batch["compute_infer"].add(execution.infer_seconds)
        batch["compute_output"].add(execution.output_seconds)

    def add_success(self, seconds: float, images: Sequence[Mapping[str, float]]) -> None:
        """Adds an answered request: its whole time, and the seconds a stage of its images."""
        self.requests["success"].add(seconds)
        for name, stages in STAGES.items():
            spent = (sum(image.get(stage, 0.0) for stage in stages) for image in images)
            self.requests[name].add(max(spent, default=0.0))

    def add_failure(self, seconds: float) -> None:
        """Adds a valid request that got no answer."""
        self.requests["fail"].add(seconds)


@dataclass(frozen=True)
class ModelObserver:
    """An observer of a batcher: it counts by the model's name, and in its version's statistics."""

    metrics: Metrics
    model: str
    statistics: InferenceStatistics

    def queue_changed(self, length: int) -> None:
        self.metrics.queue_length.labels(self.model).set(length)

    def batch_done(self, execution: Execution) -> None:
        self.metrics.batch_size.labels(self.model).observe(execution.size)
        self.statistics.add_execution(execution)

    def engine_failed(self, kind: str) -> None:
        self.metrics.engine_failures.labels(self.model, kind).inc()

    def rejected(self, reason: str) -> None:
        self.metrics.reject(reason, self.model)


class Users:
    """The requests that use a model, which must not be unloaded before they are done."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def enter(self) -> None:
        self._count += 1
        self._none.clear()

    def leave(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def wait_for_none(self) -> None:
        """Waits until the last one has left."""
        await self._none.wait()


@dataclass(frozen=True)
class Model:
    """One version of a model, loaded and warm."""

    folder: ModelFolder
    version: int
    batcher: Batcher
    statistics: InferenceStatistics = field(default_factory=InferenceStatistics)
    users: Users = field(default_factory=Users)
    cache: ModelCache | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def engine(self) -> Engine:
        """Returns the batcher's engine, which is replaced where it breaks."""
        return self.batcher.engine

    @property
    def is_ready(self) -> bool:
        """Returns whether its engine works."""
        return self.batcher.broken is None

    @property
    def spec(self) -> EngineSpec:
        return self.engine.spec

    @property
    def input_bytes(self) -> int:
        """Returns the bytes of one image of the network's size."""
        return self.spec.size.height * self.spec.size.width * 3

    @property
    def labels(self) -> LabelSet:
        return self.folder.labels


@dataclass
class ModelEntry:
    """Everything that is known of one model of the repository.

    Attributes:
        versions: those that answer; replaced as a whole, never changed.
        failure: why it could not be loaded.
        refused: versions that could not replace one, and why; "" is the folder itself.
        unloaded: versions that a client had unloaded.
        changing: ``LOADING`` or ``UNLOADING`` while that lasts.
    """

    versions: Mapping[int, Model] = field(default_factory=dict)
    failure: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    unloaded: tuple[int, ...] = ()
    changing: str = ""

    @property
    def newest(self) -> Model | None:
        """Returns its highest version; None where none answers."""
        return self.versions[max(self.versions)] if self.versions else None
