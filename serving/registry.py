"""The loaded models, by name and version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from serving.batcher import Batcher, BatchLimits
from serving.engine import Engine, EngineSpec
from serving.errors import InvalidModel, ModelNotFound, NotReady, SegserveError
from serving.metrics import UNKNOWN_MODEL, Metrics
from serving.palette import LabelSet
from serving.repository import ModelFolder, list_models, read_model
from serving.settings import Settings

log = logging.getLogger("segserve")

OpenEngine = Callable[[ModelFolder, int, Settings], Engine]


@dataclass(frozen=True)
class Model:
    """One version of a model, loaded and warm."""

    folder: ModelFolder
    version: int
    engine: Engine
    batcher: Batcher

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def spec(self) -> EngineSpec:
        return self.engine.spec

    @property
    def labels(self) -> LabelSet:
        return self.folder.labels


class Registry:
    """Loads every model of the repository; one that fails does not stop the others."""

    def __init__(self, settings: Settings, metrics: Metrics, open_engine: OpenEngine) -> None:
        self.settings = settings
        self.metrics = metrics
        self.open_engine = open_engine
        self.failures: dict[str, str] = {}
        self.ready = False
        self._models: dict[str, dict[int, Model]] = {}

    async def load_all(self, pool: Executor) -> None:
        """Loads and warms all models; ``failures`` names those that cannot be.

        Raises:
            InvalidModel: no repository, or with ``strict`` the first model that fails.
        """
        for path in list_models(self.settings.repository):
            try:
                await self._load(path, pool)
            except SegserveError as error:
                if self.settings.strict:
                    raise
                self.failures[path.name] = str(error)
                log.error("model %s is not served: %s", path.name, error)
        if not self._models:
            raise InvalidModel(
                f"no model of {self.settings.repository} can be served"
                + "".join(f"; {name}: {why}" for name, why in self.failures.items())
            )
        self.ready = True

    async def _load(self, path: Path, pool: Executor) -> None:
        start = time.perf_counter()
        folder = read_model(path)
        loop = asyncio.get_running_loop()
        versions: dict[int, Model] = {}
        for version in folder.versions:
            engine = await loop.run_in_executor(pool, self._open_warm, folder, version)
            spec = engine.spec
            if spec.num_classes not in (0, len(folder.labels.names)):
                raise InvalidModel(
                    f"{folder.graph(version)}: {spec.num_classes} channels of logits, "
                    f"{len(folder.labels.names)} names in labels.txt"
                )
            limits = BatchLimits(
                max_queue_size=self.settings.max_queue_size,
                max_queue_bytes=self.settings.max_queue_bytes,
                queue_timeout_ms=self.settings.queue_timeout_ms,
                delay_ms=folder.delay_ms,
            )
            observer = self.metrics.for_model(folder.name)
            batcher = Batcher(engine, limits, observer, time.monotonic)
            batcher.start()
            versions[version] = Model(folder, version, engine, batcher)
            self.metrics.model_info.labels(
                folder.name, str(version), engine.name, spec.precision
            ).set(1)
        self._models[folder.name] = versions
        seconds = time.perf_counter() - start
        self.metrics.model_load_seconds.labels(folder.name).set(seconds)
        log.info("model %s: versions %s warm after %.1f s", folder.name, list(versions), seconds)

    def _open_warm(self, folder: ModelFolder, version: int) -> Engine:
        engine = self.open_engine(folder, version, self.settings)
        engine.warm()
        return engine

    def get(self, name: str, version: int | None = None) -> Model:
        """The model, of its highest served version unless one is named.

        Raises:
            ModelNotFound: the message lists what is loaded, or says why the model is not.
            NotReady: models are still being loaded.
        """
        versions = self._models.get(name)
        if versions is None:
            if name in self.failures:
                raise ModelNotFound(f"model {name!r} could not be loaded: {self.failures[name]}")
            if not self.ready:
                raise NotReady("models are still being loaded; ask /v2/health/ready")
            known = ", ".join(sorted(self._models))
            raise ModelNotFound(f"unknown model {name!r}; loaded: {known}")
        if version is None:
            return versions[max(versions)]
        if version not in versions:
            raise ModelNotFound(
                f"model {name!r} has no version {version}; served: {sorted(versions)}"
            )
        return versions[version]

    def models(self) -> list[Model]:
        """All loaded versions, by name."""
        return [
            self._models[name][version]
            for name in sorted(self._models)
            for version in sorted(self._models[name])
        ]

    def label(self, name: str) -> str:
        """``name`` as a metric label; names of no model would be unbounded."""
        return name if name in self._models else UNKNOWN_MODEL

    async def drain(self) -> None:
        """Answers what is queued, then frees all engines."""
        self.ready = False
        await asyncio.gather(*(model.batcher.drain() for model in self.models()))
        self._models = {}
