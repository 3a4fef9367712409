"""Start and stop: bind, load, ready; and on a signal unready, drain, stop.

Ports are bound, and the signals caught, before models load: health can be asked, and a stop is
obeyed, from the first moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

import cv2
import grpc
import uvicorn
from prometheus_client import start_http_server

from serving import class_statistics, mask, restore
from serving.dataplane import Dataplane
from serving.engine import Engine
from serving.engines.onnx import OnnxEngine
from serving.grpc_server import build_grpc_server
from serving.http_server import build_app
from serving.metrics import Metrics
from serving.registry import OpenEngine, Registry
from serving.repository import ModelFolder
from serving.service import Segmenter
from serving.settings import Settings

log = logging.getLogger("segserve")


@dataclass(frozen=True)
class Ports:
    """What was bound: with 0 in the settings, free ports."""

    http: int
    grpc: int
    metrics: int


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: they would stop HTTP before the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def open_onnx_engine(folder: ModelFolder, version: int, settings: Settings) -> Engine:
    """The embedded engine for one version of a model."""
    return OnnxEngine(
        folder.graph(version),
        instances=folder.instances,
        threads=settings.threads,
        max_batch_size=folder.max_batch_size,
    )


class Server:
    """One server: ``await start()``, then ``await stop()``. Two of them share no state."""

    def __init__(self, settings: Settings, open_engine: OpenEngine = open_onnx_engine) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.registry = Registry(settings, self.metrics, open_engine)
        self.pool = ThreadPoolExecutor(settings.pool_threads, "pool")
        self.segmenter = Segmenter(self.registry, self.metrics, settings, self.pool)
        self.dataplane = Dataplane(self.segmenter)
        self.ports = Ports(0, 0, 0)
        self._socket: socket.socket | None = None
        self._http: _HttpServer | None = None
        self._http_task: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None
        self._metrics_server: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def ready(self) -> bool:
        return self.registry.ready

    async def start(self) -> None:
        """Binds the ports, then loads and warms every model.

        Raises:
            OSError: a port is taken; the message names it.
            InvalidModel: nothing can be served.
        """
        try:
            await self._bind()
            loop = asyncio.get_running_loop()
            # The pool's threads are the parallelism; OpenCV's own would compete with them.
            cv2.setNumThreads(1)
            await loop.run_in_executor(self.pool, warm_stages)
            await self.registry.load_all(self.pool)
        except BaseException:
            await self._close(grace_s=0.0)
            raise

    async def _bind(self) -> None:
        s = self.settings
        self._socket = _listen(s.host, s.http_port)
        http_port = self._socket.getsockname()[1]
        self._metrics_server = _serve_metrics(s, self.metrics)
        self._grpc, grpc_port = build_grpc_server(
            self.segmenter, self.dataplane, s, lambda: self.ready
        )
        await self._grpc.start()
        app = build_app(self.segmenter, self.dataplane, self.metrics, s, lambda: self.ready)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(s.stop_timeout_s) or 1,
            backlog=2048,
        )
        self._http = _HttpServer(config)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[self._socket]))
        while not self._http.started and not self._http_task.done():
            await asyncio.sleep(0.005)
        self.ports = Ports(http_port, grpc_port, self._metrics_server[0].server_port)

    async def stop(self) -> None:
        """Not ready; still answering for ``drain_seconds``; then finishes what is in flight."""
        self.registry.ready = False
        log.info("not ready; draining for %g s", self.settings.drain_seconds)
        await asyncio.sleep(self.settings.drain_seconds)
        await self._close(grace_s=self.settings.stop_timeout_s)

    async def _close(self, grace_s: float) -> None:
        stopping = []
        if self._grpc is not None:
            stopping.append(self._grpc.stop(grace_s))
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            stopping.append(self._http_task)
        await asyncio.gather(*stopping)
        if self._socket is not None:
            self._socket.close()
        await self.registry.drain()
        if self._metrics_server is not None:
            server, thread = self._metrics_server
            server.shutdown()
            server.server_close()
            thread.join()
        self.pool.shutdown(wait=True)


def warm_stages() -> None:
    """Compiles the native loops, so that no request waits for it."""
    restore.warm()
    mask.warm()
    class_statistics.warm()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another with --http-port"
        ) from None
    return listener


def _serve_metrics(settings: Settings, metrics: Metrics) -> tuple[WSGIServer, threading.Thread]:
    try:
        return start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        raise OSError(
            f"cannot listen on {settings.host}:{settings.metrics_port} ({error.strerror}); "
            f"choose another with --metrics-port"
        ) from None


async def run(server: Server, on_ready: asyncio.Event | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second signal stops at once."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def obey() -> None:
        if signalled.is_set():
            raise SystemExit(1)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, obey)
    starting = asyncio.create_task(server.start())
    waiting = asyncio.create_task(signalled.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        starting.result()
        if on_ready is not None:
            on_ready.set()
        await waiting
        await server.stop()
    finally:
        waiting.cancel()
