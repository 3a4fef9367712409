"""Opens, checks and warms one version of a model, and reopens its engine where it breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from serving.batching.batcher import Batcher
from serving.batching.engine_runner import warm as warm_checks
from serving.batching.queue import BatchLimits
from serving.engine import Engine, EngineSpec
from serving.errors import InvalidModel, SegserveError
from serving.models.model import InferenceStatistics, Model, ModelObserver
from serving.models.repository import CONFIG_FILE, ModelConfig, ModelFolder
from serving.models.response_cache import ModelCache, ResponseCache
from serving.models.warmup import warm_up
from serving.observability.metrics import Metrics
from serving.palette import label_type
from serving.settings import Settings

log = logging.getLogger("segserve")

OpenEngine = Callable[[ModelFolder, int, Settings], Engine]
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


class ModelLoader:
    """A loader of models from their folders. ``close()`` ends its attempts to reopen engines."""

    def __init__(self, settings: Settings, metrics: Metrics, open_engine: OpenEngine) -> None:
        self.settings = settings
        self.metrics = metrics
        self.open_engine = open_engine
        self._recoveries: set[asyncio.Task[None]] = set()
        self._cache = ResponseCache(settings.response_cache_bytes, metrics)

    def open_cache(self, folder: ModelFolder) -> ModelCache | None:
        """Opens the cache of a version whose model enables ``response_cache``; None for others.

        Triton keeps results itself, and may replace a version without a word.
        """
        if not folder.config.response_cache.enable or self.settings.engine == "triton":
            return None
        return ModelCache(self._cache, folder.name, self.metrics)

    async def load(
        self, folder: ModelFolder, version: int, pool: Executor, old: Model | None
    ) -> Model:
        """Loads a version: warm, and ready for requests.

        Args:
            old: a version that is served; the new one must be of the same contract.

        Raises:
            InvalidModel: it cannot be served, or is of another contract.
            SegserveError: its engine failed.
        """
        loop = asyncio.get_running_loop()
        served = None if old is None else (old.folder, old.spec)
        engine, folder = await loop.run_in_executor(pool, self._open, folder, version, served)
        limits = BatchLimits(
            max_queue_size=self.settings.max_queue_size,
            max_queue_bytes=self.settings.max_queue_bytes,
            queue_timeout_ms=self.settings.queue_timeout_ms,
            scheduling=folder.scheduling,
            shed_late=self.settings.shed_late_requests,
            max_failures=self.settings.max_engine_failures,
            run_timeout_s=self.settings.engine_timeout_s,
        )

        def recover(reason: str) -> None:
            log.error("model %s version %d is not ready: %s", folder.name, version, reason)
            task = asyncio.create_task(self._recover(folder, version, batcher, pool))
            self._recoveries.add(task)
            task.add_done_callback(self._recoveries.discard)

        statistics = InferenceStatistics()
        observer = ModelObserver(self.metrics, folder.name, statistics)
        batcher = Batcher(engine, limits, observer, time.monotonic, recover)
        batcher.start()
        return Model(folder, version, batcher, statistics, cache=self.open_cache(folder))

    def _open(
        self, folder: ModelFolder, version: int, served: tuple[ModelFolder, EngineSpec] | None
    ) -> tuple[Engine, ModelFolder]:
        try:
            engine = self.open_engine(folder, version, self.settings)
        except SegserveError:
            raise
        except Exception as error:
            raise _unexpected(folder, version, error) from error
        try:
            spec = engine.spec
            folder = keep_available_outputs(folder, version, spec)
            if served is not None:
                check_contract(folder, version, spec, *served)
            check_graph(folder, version, spec)
            warm_checks()
            warm_up(engine, folder)
        except BaseException as error:
            engine.close()
            if isinstance(error, Exception) and not isinstance(error, SegserveError):
                raise _unexpected(folder, version, error) from error
            raise
        return engine, folder

    async def _recover(
        self, folder: ModelFolder, version: int, batcher: Batcher, pool: Executor
    ) -> None:
        """Reopens the engine until it works, waiting longer after each failure."""
        wait_s = FIRST_RETRY_S
        loop = asyncio.get_running_loop()
        while not batcher.is_closing():
            served = (folder, batcher.engine.spec)
            try:
                engine, _ = await loop.run_in_executor(pool, self._open, folder, version, served)
            except Exception as error:
                log.error("model %s: its engine does not open: %s", folder.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_RETRY_S)
                continue
            if batcher.is_closing():
                engine.close()
                return
            await batcher.replace(engine)
            self.metrics.engine_restarts.labels(folder.name).inc()
            log.warning("model %s version %d is ready again", folder.name, version)
            return

    async def close(self) -> None:
        """Ends what is running in the background."""
        for task in tuple(self._recoveries):
            task.cancel()
        await asyncio.gather(*self._recoveries, return_exceptions=True)


def _unexpected(folder: ModelFolder, version: int, error: Exception) -> InvalidModel:
    """Returns an unforeseen error as that of one model: it must not stop the others."""
    return InvalidModel(f"{folder.graph(version)}: {type(error).__name__}: {error}")


# What clients rely on: metadata is true, and versions of a model do not change it.


LOGITS = "logits"
CONFIDENCE = "confidence"


def check_contract(
    folder: ModelFolder, version: int, spec: EngineSpec, old: ModelFolder, old_spec: EngineSpec
) -> None:
    """Compares a version that is to be served with one that is.

    Raises:
        InvalidModel: inputs, outputs, classes or palette differ; the message names them.
    """
    facts = (
        ("image", spec.size, old_spec.size),
        ("logits", _logits(spec), _logits(old_spec)),
        ("inputs", _tensors(folder, "input"), _tensors(old, "input")),
        ("outputs", _tensors(folder, "output"), _tensors(old, "output")),
        ("classes", folder.labels.names, old.labels.names),
        ("palette", folder.labels.colors, old.labels.colors),
        ("ignore_label", folder.labels.ignore_label, old.labels.ignore_label),
    )
    for name, new, known in facts:
        if new != known:
            raise InvalidModel(
                f"{folder.path}: version {version} has other {name} than what is served: "
                f"{new} instead of {known}; unload the model first, or give it another name"
            )


def keep_available_outputs(folder: ModelFolder, version: int, spec: EngineSpec) -> ModelFolder:
    """Returns the folder with the outputs that the graph has, which clients are shown.

    A graph without logits has neither these nor a confidence.

    Raises:
        InvalidModel: none is left.
    """
    outputs = folder.config.output
    missing = [tensor.name for tensor in outputs if tensor.name in (LOGITS, CONFIDENCE)]
    if spec.logits_size is not None or not missing:
        return folder
    log.warning(
        "%s: the graph of version %d has no logits, so clients are not shown: %s",
        folder.path / CONFIG_FILE, version, ", ".join(missing),
    )  # fmt: skip
    kept = [tensor for tensor in outputs if tensor.name not in missing]
    if not kept:
        raise InvalidModel(
            f"{folder.path / CONFIG_FILE}: the graph of version {version} gives mask, not "
            f"{', '.join(missing)}; write the output that it gives"
        )
    config = ModelConfig()
    config.CopyFrom(folder.config)
    del config.output[:]
    config.output.extend(kept)
    return replace(folder, config=config)


def check_graph(folder: ModelFolder, version: int, spec: EngineSpec) -> None:
    """Compares the configuration, which clients are shown, with the graph that is served.

    Raises:
        InvalidModel: they contradict each other; the message names the tensor.
    """
    size, logits = spec.size, spec.logits_size
    pixels = (size.height, size.width)
    served = {"image": (*pixels, 3), "mask": pixels, CONFIDENCE: pixels}
    if logits is not None:
        served[LOGITS] = (spec.num_classes, logits.height, logits.width)
    for tensor in (*folder.config.input, *folder.config.output):
        shape = served[tensor.name]
        # Without max_batch_size dims are whole shapes.
        dims = tuple(tensor.dims)[0 if folder.config.max_batch_size > 0 else 1 :]
        if dims != shape:
            raise InvalidModel(
                f"{folder.path / CONFIG_FILE}: {tensor.name} has dims {list(dims)}, the graph of "
                f"version {version} {list(shape)}; write what the graph has"
            )
    wanted = label_type(len(folder.labels.names))
    if spec.label_type != wanted:
        raise InvalidModel(
            f"{folder.graph(version)}: its label map is {spec.label_type}; expected {wanted} for "
            f"the {len(folder.labels.names)} names in labels.txt"
        )
    if spec.num_classes not in (0, len(folder.labels.names)):
        raise InvalidModel(
            f"{folder.graph(version)}: {spec.num_classes} channels of logits, "
            f"{len(folder.labels.names)} names in labels.txt"
        )


def _logits(spec: EngineSpec) -> str:
    return f"{spec.num_classes} x {spec.logits_size}" if spec.logits_size else "none"


def _tensors(folder: ModelFolder, side: str) -> tuple[tuple[str, int, tuple[int, ...]], ...]:
    tensors = folder.config.input if side == "input" else folder.config.output
    return tuple((tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors)
