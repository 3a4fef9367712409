"""Opens, checks and warms one version of a model; and opens its engine anew where it breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor

from serving.batcher import Batcher
from serving.batching.assembly import warm as warm_checks
from serving.batching.batch import BatchLimits
from serving.engine import Engine
from serving.errors import InvalidModel, SegserveError
from serving.metrics import Metrics
from serving.models.contract import check_contract, check_graph, keep_given_outputs
from serving.models.model import Model
from serving.models.warmup import warm_up
from serving.oip.statistics import InferenceStatistics
from serving.repository import ModelFolder
from serving.settings import Settings

log = logging.getLogger("segserve")

OpenEngine = Callable[[ModelFolder, int, Settings], Engine]
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


class ModelLoader:
    """Makes models of folders. ``close()`` ends the attempts to open broken engines anew."""

    def __init__(self, settings: Settings, metrics: Metrics, open_engine: OpenEngine) -> None:
        self.settings = settings
        self.metrics = metrics
        self.open_engine = open_engine
        self._recoveries: set[asyncio.Task[None]] = set()

    async def load(
        self, folder: ModelFolder, version: int, pool: Executor, old: Model | None
    ) -> Model:
        """A version, warm and ready for requests.

        Args:
            old: a version that is served; the new one must be of the same contract.

        Raises:
            InvalidModel: it cannot be served, or is of another contract.
            SegserveError: its engine failed.
        """
        loop = asyncio.get_running_loop()
        engine, folder = await loop.run_in_executor(pool, self._open, folder, version, old)
        limits = BatchLimits(
            max_queue_size=self.settings.max_queue_size,
            max_queue_bytes=self.settings.max_queue_bytes,
            queue_timeout_ms=self.settings.queue_timeout_ms,
            scheduling=folder.scheduling,
            shed_late=self.settings.shed_late_requests,
            max_failures=self.settings.max_engine_failures,
            run_timeout_s=self.settings.engine_timeout_s,
        )
        statistics = InferenceStatistics()
        observer = self.metrics.for_model(folder.name, statistics)
        batcher = Batcher(
            engine, limits, observer, time.monotonic, on_failure=observer.engine_failed
        )
        model = Model(folder, version, batcher, statistics)

        def recover(reason: str) -> None:
            log.error("model %s version %d is not ready: %s", folder.name, version, reason)
            task = asyncio.create_task(self._recover(model, pool))
            self._recoveries.add(task)
            task.add_done_callback(self._recoveries.discard)

        batcher.on_broken = recover
        batcher.start()
        return model

    def _open(
        self, folder: ModelFolder, version: int, old: Model | None
    ) -> tuple[Engine, ModelFolder]:
        try:
            engine = self.open_engine(folder, version, self.settings)
        except SegserveError:
            raise
        except Exception as error:
            raise _unexpected(folder, version, error) from error
        try:
            spec = engine.spec
            folder = keep_given_outputs(folder, version, spec)
            if old is not None:
                check_contract(folder, version, spec, old.folder, old.spec)
            check_graph(folder, version, spec)
            warm_checks()
            warm_up(engine, folder)
        except BaseException as error:
            engine.close()
            if isinstance(error, Exception) and not isinstance(error, SegserveError):
                raise _unexpected(folder, version, error) from error
            raise
        return engine, folder

    async def _recover(self, model: Model, pool: Executor) -> None:
        """Opens the engine anew until it works, waiting longer after each failure."""
        wait_s = FIRST_RETRY_S
        loop = asyncio.get_running_loop()
        while not model.batcher.is_closing():
            try:
                engine, _ = await loop.run_in_executor(
                    pool, self._open, model.folder, model.version, model
                )
            except Exception as error:
                log.error("model %s: its engine does not open: %s", model.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_RETRY_S)
                continue
            if model.batcher.is_closing():
                engine.close()
                return
            await model.batcher.replace(engine)
            self.metrics.engine_restarts.labels(model.name).inc()
            log.warning("model %s version %d is ready again", model.name, model.version)
            return

    async def close(self) -> None:
        """Ends what goes on in the background."""
        for task in tuple(self._recoveries):
            task.cancel()
        await asyncio.gather(*self._recoveries, return_exceptions=True)


def _unexpected(folder: ModelFolder, version: int, error: Exception) -> InvalidModel:
    """What no check foresaw is one model's error too: it must not stop the others."""
    return InvalidModel(f"{folder.graph(version)}: {type(error).__name__}: {error}")
