"""A model of a repository, run in this process by the server's own pipeline, without ports."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from serving.admission.admission import Admission
from serving.models.embedded import open_onnx_engine
from serving.models.loader import OpenEngine
from serving.models.registry import Registry
from serving.observability.metrics import Metrics
from serving.preparation import ImagePreparer
from serving.requests import SegmentOptions, SegmentRequest
from serving.server import warm_stages
from serving.service import Segmenter
from serving.settings import Settings

Answer = TypeVar("Answer")


class EmbeddedModel:
    """A ``ServedModel`` that needs no server.

    Images pass through decoding, batcher, engine and restore exactly as a request's do. Settings
    come from the environment (``SEGSERVE_THREADS``, ...), as the server's do.

    Raises:
        serving.errors.SegserveError: no such repository or model, or it cannot be loaded.
    """

    def __init__(
        self, repository: Path, model: str, open_engine: OpenEngine = open_onnx_engine
    ) -> None:
        self.served: set[tuple[str, str]] = set()
        self._model = model
        settings, metrics = Settings(repository=repository), Metrics()
        self._pool = ThreadPoolExecutor(settings.pool_threads, "pool")
        self._registry = Registry(settings, metrics, open_engine)
        admission = Admission(self._registry, metrics, settings)
        preparer = ImagePreparer(admission, settings, self._pool)
        self._segmenter = Segmenter(
            self._registry, admission, preparer, metrics, settings, self._pool
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded", daemon=True)
        self._thread.start()
        try:
            # The pool's threads are the parallelism, as in the server.
            cv2.setNumThreads(1)
            warm_stages()
            self._run(self._registry.load_all(self._pool))
            self.classes()
        except BaseException:
            self.close()
            raise

    def __call__(self, image: bytes) -> npt.NDArray[np.uint8]:
        request = SegmentRequest(self._model, image, SegmentOptions(formats=("raw",)))
        result = self._run(self._segmenter.segment(request, "embedded"))
        self.served.add((result.model, str(result.version)))
        size = result.answer_size
        return np.frombuffer(result.only.body, np.uint8).reshape(size.height, size.width)

    def classes(self) -> tuple[str, ...]:
        return self._segmenter.describe(self._model, None).labels.names

    def close(self) -> None:
        self._run(self._registry.drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    def _run(self, work: Coroutine[None, None, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
