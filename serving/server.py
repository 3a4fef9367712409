"""The server's life: bind, load, ready; and on a signal not ready, drain, stop.

Ports are bound, and the signals caught, before models load: health can be asked, and a stop is
obeyed, from the first moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn, cast

import cv2
import grpc
import uvicorn

from serving.admission.admission import Admission
from serving.errors import InvalidModel, InvalidSetting
from serving.formats import class_statistics
from serving.formats import registry as mask
from serving.grpc.server import build_grpc_server
from serving.http import json_data
from serving.http.app import build_app
from serving.http.connection import HttpConnection, limit_connections
from serving.imaging import blending, restore
from serving.imaging.decoder_pool import DecoderPool
from serving.imaging.zygote import RESTART_REASONS
from serving.models.embedded import open_onnx_engine
from serving.models.loader import OpenEngine
from serving.models.registry import Registry
from serving.models.sources import LocalRepository, ModelSource
from serving.models.triton_source import TritonRepository
from serving.models.watch import RepositoryWatch
from serving.observability.log_stream import LogStream
from serving.observability.loop_watchdog import LoopWatchdog
from serving.observability.memory_return import open_memory_returner
from serving.observability.metrics import Metrics
from serving.observability.metrics_server import MetricsPage, MetricsServer
from serving.observability.middleware import RequestContexts
from serving.oip.dataplane import Dataplane
from serving.preparation import ImagePreparer
from serving.security.tls import open_http_tls
from serving.service import Segmenter
from serving.settings import Settings, join_address, strip_brackets

log = logging.getLogger("segserve")

# For the rest of the log where a second signal asks to end at once.
END_S = 0.5


def start_threads(pool: ThreadPoolExecutor, count: int) -> None:
    """Starts all threads of a pool, which would else start them one by one as work comes.

    Later the system may refuse them, for a limit of processes or memory: then requests fail.

    Raises:
        InvalidSetting: not all can be started.
    """
    together = threading.Barrier(count)
    try:
        for _ in range(count):
            pool.submit(together.wait)
    except RuntimeError as error:
        together.abort()
        raise InvalidSetting(
            f"pool_threads = {count}: {error}; allow more processes (ulimit -u, or the container's "
            "limit of pids), or set fewer"
        ) from None


@dataclass(frozen=True)
class Ports:
    """The ports that were bound: with 0 in the settings, free ones."""

    http: int
    grpc: int
    metrics: int


class _HttpServer(uvicorn.Server):
    """A uvicorn server without its signal handlers, which would stop HTTP before the drain.

    TLS handshakes have a time limit: before they are complete, no connection is one of its own.
    """

    def __init__(self, config: uvicorn.Config, handshake_timeout_s: float) -> None:
        super().__init__(config)
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; uvicorn would, too, but with the 60 s of asyncio."""
        assert sockets is not None
        (listener,) = sockets
        server = await asyncio.get_running_loop().create_server(
            self._make_connection,
            sock=listener,
            ssl=self.config.ssl,
            ssl_handshake_timeout=self._handshake_timeout_s if self.config.ssl else None,
            backlog=self.config.backlog,
        )
        await super().startup(sockets=[])
        self.servers.append(server)

    def _make_connection(self) -> asyncio.Protocol:
        protocol = cast("type[HttpConnection]", self.config.http_protocol_class)
        return protocol(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def choose_source(settings: Settings) -> tuple[ModelSource, OpenEngine]:
    """Returns the source of models by ``settings.engine``, and what opens their engines."""
    if settings.engine == "triton":
        triton = TritonRepository(settings)
        return triton, triton.open
    return LocalRepository(settings), open_onnx_engine


class Server:
    """A server: ``await start()``, then ``await stop()``. Two of them share no state."""

    def __init__(self, settings: Settings, open_engine: OpenEngine | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.ready.set_function(lambda: float(self.ready))
        self._watchdog = LoopWatchdog()
        self._memory_returner = open_memory_returner()
        self.metrics.event_loop_lag.set_function(lambda: self._watchdog.lag_s)
        self.tls = open_http_tls(settings)
        self.source, open_own = choose_source(settings)
        self.registry = Registry(settings, self.metrics, open_engine or open_own, self.source)
        self.contexts = RequestContexts(settings, self.metrics, self.registry.label)
        self.admission = Admission(self.registry, self.metrics, settings)
        self.pool = ThreadPoolExecutor(settings.pool_threads, "pool")
        self.decoders = self._make_decoders()
        self.preparer = ImagePreparer(self.admission, settings, self.pool, self.decoders)
        parts = (self.registry, self.admission, self.preparer, self.metrics, settings, self.pool)
        self.segmenter, self.dataplane = Segmenter(*parts), Dataplane(*parts)
        self.ports = Ports(0, 0, 0)
        self._socket: socket.socket | None = None
        self._http: _HttpServer | None = None
        self._http_task: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None
        self._stopping = asyncio.Event()
        self._source_ready = True
        self._watch: asyncio.Task[None] | None = None
        self._changes: asyncio.Task[None] | None = None
        self._metrics_page = MetricsPage(self.metrics.registry)
        self._metrics_server: MetricsServer | None = None

    def _make_decoders(self) -> DecoderPool | None:
        if not self.settings.decoder_processes:
            return None
        restarts = self.metrics.decoder_restarts
        for reason in RESTART_REASONS:
            restarts.labels(reason)
        return DecoderPool(self.settings, lambda reason: restarts.labels(reason).inc())

    @property
    def ready(self) -> bool:
        return self.registry.ready and self.registry.can_answer and self._source_ready

    async def start(self) -> None:
        """Binds the ports, then loads and warms every model.

        Raises:
            OSError: a port is taken; the message names it.
            InvalidModel: nothing can be served.
            InvalidSetting: no decoder process, or not all threads, can be started.
        """
        self._watchdog.start()
        if self._memory_returner is not None:
            self._memory_returner.start()
        try:
            start_threads(self.pool, self.settings.pool_threads)
            if self.decoders is not None:
                # First, so that its imports run beside all that follows.
                self.decoders.start()
            await self._bind()
            loop = asyncio.get_running_loop()
            # The pool's threads are the parallelism; OpenCV's own would compete with them.
            cv2.setNumThreads(1)
            await loop.run_in_executor(self.pool, warm_stages)
            if self.decoders is not None:
                await loop.run_in_executor(self.pool, self.decoders.wait_ready)
            changes = self._open_watch()
            await self.registry.load_all(self.pool)
            if changes is not None:
                self._changes = asyncio.create_task(changes.run(self.settings.poll_interval_s))
            if self.settings.engine == "triton":
                self._watch = asyncio.create_task(self._watch_source())
        except BaseException:
            await self._close(grace_s=0.0)
            raise

    def _open_watch(self) -> RepositoryWatch | None:
        """Opens the watch of ``watch_repository``; before models load, to miss no change."""
        if not self.settings.watch_repository:
            return None
        if self.settings.engine != "onnxruntime":
            raise InvalidModel("watch_repository is for folders; Triton watches its own repository")
        return RepositoryWatch(self.settings.repository, self.registry, self.pool)

    async def _watch_source(self) -> None:
        """Follows the source: while the Triton servers are away, this one is not ready."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.triton_health_interval_s)
            names = [model.name for model in self.registry.models()]
            ready = await loop.run_in_executor(None, self.source.is_ready, names)
            if ready != self._source_ready:
                log.warning("%s is %s", self.source.title, "ready again" if ready else "not ready")
            self._source_ready = ready

    async def _bind(self) -> None:
        s = self.settings
        self._socket = _listen(s.host, s.http_port, "--host or --http-port")
        http_port = self._socket.getsockname()[1]
        metrics_socket = _listen(s.host, s.metrics_port, "--metrics-port")
        self._metrics_server = MetricsServer(metrics_socket, self._metrics_page)
        self._grpc, grpc_port = build_grpc_server(
            self.segmenter, self.dataplane, self.admission, self.contexts, self.pool, s,
            lambda: self.ready, self._stopping,
        )  # fmt: skip
        await self._grpc.start()
        app = build_app(
            self.segmenter, self.dataplane, self.admission, self.contexts, self.metrics,
            self._metrics_page, self.pool, s, lambda: self.ready,
        )  # fmt: skip
        config = uvicorn.Config(
            app,
            http=limit_connections(s, self.metrics),
            ws="none",
            # Its warnings are clients' mistakes, which they could fill a disk with.
            log_level="error",
            access_log=False,
            # Whom to believe is ``trusted_proxies``; what answers need not say which version.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(s.stop_timeout_s) or 1,
            backlog=2048,
        )
        config.load()
        config.ssl = self.tls
        self._http = _HttpServer(config, s.header_timeout_s)
        self._http_task = asyncio.create_task(self._http.serve(sockets=[self._socket]))
        while not self._http.started and not self._http_task.done():
            await asyncio.sleep(0.005)
        self.ports = Ports(http_port, grpc_port, self._metrics_server.server_port)

    async def stop(self) -> None:
        """Stops: not ready, still answering for ``drain_seconds``; then ends what is in flight."""
        self.registry.ready = False
        if self._changes is not None:
            self._changes.cancel()
            await asyncio.gather(self._changes, return_exceptions=True)
        log.info("not ready; draining for %g s", self.settings.drain_seconds)
        await asyncio.sleep(self.settings.drain_seconds)
        await self._close(grace_s=self.settings.stop_timeout_s)

    async def _close(self, grace_s: float) -> None:
        self._stopping.set()
        stopping = []
        if self._grpc is not None:
            stopping.append(self._grpc.stop(grace_s))
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            stopping.append(self._http_task)
        await asyncio.gather(*stopping)
        if self.decoders is not None:
            # Requests that still wait for an image have had their grace time.
            await asyncio.get_running_loop().run_in_executor(None, self.decoders.close)
        if self._socket is not None:
            self._socket.close()
        await self.registry.drain()
        self._watchdog.stop()
        if self._memory_returner is not None:
            self._memory_returner.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.source.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._metrics_page.close()
        self.pool.shutdown(wait=True)
        await asyncio.get_running_loop().run_in_executor(None, self.contexts.close)


def warm_stages() -> None:
    """Compiles the native loops, so that no request waits for it."""
    restore.warm()
    mask.warm()
    json_data.warm()
    class_statistics.warm()
    blending.warm()


def _listen(host: str, port: int, options: str) -> socket.socket:
    """Returns a socket bound to an address or a name; ``::`` takes IPv4 too.

    Args:
        options: of the command, that choose another.
    """
    listener: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(
            strip_brackets(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Named, as asyncio otherwise leaves Nagle's algorithm on: 40 ms between header and body.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise OSError(
            f"cannot listen on {join_address(host, port)} ({error.strerror}); "
            f"choose another with {options}"
        ) from None
    return listener


def end_at_once(log_stream: LogStream) -> NoReturn:
    """Ends the process with status 1, without waiting for any thread but, shortly, the log's.

    An orderly exit of the interpreter would pull it from under native threads that are at work.
    Decoder processes end with their sockets.
    """
    logging.shutdown()
    log_stream.drain(END_S)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


async def run(server: Server, on_ready: asyncio.Event | None = None) -> None:
    """Serves until SIGTERM or SIGINT; a second signal stops at once."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def obey() -> None:
        if signalled.is_set():
            end_at_once(server.contexts.log_stream)
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
