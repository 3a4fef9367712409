"""Parts for tests: an engine that needs no network, and a server on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType

import numpy as np
import numpy.typing as npt

from serving.engine import EngineSpec
from serving.errors import EngineFailed
from serving.imaging.geometry import Size
from serving.imaging.restore import Prediction
from serving.models.loader import OpenEngine
from serving.server import Server
from serving.settings import Settings


class FakeEngine:
    """An engine whose classes are bands of red, so that an answer shows which image it belongs to.

    A pixel of red ``r`` gets class ``r * num_classes // 256``. ``delay_s`` is a run's time; the
    runs whose numbers (from 0) are in ``failing_runs`` raise; ``hold`` keeps runs waiting until it
    is set. Without ``logits`` it returns labels alone; with ``logits_size`` one-hot logits of that
    size.
    """

    def __init__(
        self,
        size: Size,
        *,
        num_classes: int = 8,
        max_batch_size: int = 4,
        instances: int = 1,
        delay_s: float = 0.0,
        failing_runs: frozenset[int] = frozenset(),
        precision: str = "fp32",
        logits: bool = True,
        logits_size: Size | None = None,
    ) -> None:
        given = (logits_size or size) if logits else None
        self._spec = EngineSpec(size, num_classes, given, max_batch_size, instances, precision)
        self.delay_s = delay_s
        self.failing_runs = failing_runs
        self.hold = threading.Event()
        self.hold.set()
        self.batch_sizes: list[int] = []
        self.closed = False

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def name(self) -> str:
        return "fake"

    def warm(self) -> None:
        return

    def run(self, batch: npt.NDArray[np.uint8]) -> Prediction:
        number = len(self.batch_sizes)
        self.batch_sizes.append(len(batch))
        self.hold.wait()
        time.sleep(self.delay_s)
        if number in self.failing_runs:
            raise EngineFailed(f"run {number} fails as requested")
        n = self._spec.num_classes
        labels = batch[..., 0].astype(np.int64) * n // 256
        if self._spec.logits_size is None:
            return Prediction(None, labels.astype(self._spec.label_type))
        size, given = self._spec.size, self._spec.logits_size
        rows = np.arange(given.height) * size.height // given.height
        columns = np.arange(given.width) * size.width // given.width
        labels = labels[:, rows[:, None], columns]
        one_hot = np.eye(n, dtype=np.float32)[labels]
        return Prediction(np.ascontiguousarray(one_hot.transpose(0, 3, 1, 2)), None)

    def close(self) -> None:
        self.closed = True


class ServerThread:
    """Runs a real server in a thread: ``with ServerThread(settings) as server:``; stopped at the
    end.

    Ports of 0 become free ones: see ``server.ports``.
    """

    def __init__(self, settings: Settings, open_engine: OpenEngine | None = None) -> None:
        self.server: Server
        self._settings = settings
        self._open_engine = open_engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server")

    def __enter__(self) -> Server:
        self._thread.start()
        try:
            self.server = self._run_server_start()
        except BaseException:
            self._end_loop()
            raise
        return self.server

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(120)
        finally:
            self._end_loop()

    def _run_server_start(self) -> Server:
        async def start() -> Server:
            server = Server(self._settings, self._open_engine)
            await server.start()
            return server

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(300)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
