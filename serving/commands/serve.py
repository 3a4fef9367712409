"""``segserve serve``."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from serving.errors import InvalidModel, InvalidSetting, NotReady
from serving.observability.log_stream import LogStream
from serving.server import Server, run
from serving.settings import Settings, find_misspelt, join_address

log = logging.getLogger("segserve")

OPEN_FILES = 65_536


def serve(
    repository: Annotated[
        Path | None,
        typer.Option(help="model repository: a folder of models", show_default="model_repository"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="address to listen on", show_default="127.0.0.1")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="HTTP port; 0 picks a free port", show_default="8000")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port; 0 picks a free port", show_default="8001")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="port of Prometheus metrics; 0 picks a free port", show_default="8002"),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="where models run: onnxruntime (here) or triton", show_default="onnxruntime"
        ),
    ] = None,
    cpu_engine: Annotated[
        str | None,
        typer.Option(
            help="engine that runs models on CPUs: auto, onnxruntime or openvino",
            show_default="auto",
        ),
    ] = None,
    triton_url: Annotated[
        str | None, typer.Option(help="HOST:GRPC_PORT of Triton servers, comma-separated")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU cores for inference", show_default="all")
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            help='seconds to keep answering after SIGTERM while reporting "not ready"',
            show_default="1",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option(help="exit if any model fails to load")] = False,
    watch_repository: Annotated[
        bool,
        typer.Option(
            "--watch-repository", help="load, reload and unload models when the folder changes"
        ),
    ] = False,
) -> None:
    """Serve a model repository over HTTP, gRPC and Prometheus metrics.

    Every setting can also be given in the environment, as SEGSERVE_NAME.
    """
    given: dict[str, object] = {
        "repository": repository,
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "engine": engine,
        "cpu_engine": cpu_engine,
        "triton_url": triton_url,
        "threads": threads,
        "drain_seconds": drain_seconds,
        "strict": strict or None,
        "watch_repository": watch_repository or None,
    }
    # No line of the log makes the event loop wait, whoever reads it or does not.
    log_stream = LogStream(sys.stderr)
    console = Console(file=cast(TextIO, log_stream))
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    for sentence in find_misspelt(os.environ):
        log.warning("%s", sentence)
    _raise_file_limit()
    try:
        settings = Settings.model_validate(
            Settings().model_dump() | {k: v for k, v in given.items() if v is not None}
        )
        uvloop.run(serve_until_signal(settings, log_stream))
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        sys.exit(f"segserve serve: setting {name}: {first['msg']}, got {first['input']!r}")
    except (InvalidModel, InvalidSetting, NotReady, OSError) as error:
        sys.exit(f"segserve serve: {error}")
    finally:
        log_stream.close()


def _raise_file_limit() -> None:
    """Lets the process open as many files as it may: many systems allow 1,024 until it asks for
    more, which is below ``max_http_connections``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if wanted > soft >= 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve_until_signal(settings: Settings, log_stream: LogStream | None = None) -> None:
    """Runs one server; greets once it is ready."""
    server = Server(settings)
    if log_stream is not None:
        log_stream.count_dropped = server.metrics.log_lines_dropped.inc
    ready = asyncio.Event()

    async def greet() -> None:
        await ready.wait()
        print(greeting(server), flush=True)

    greeter = asyncio.create_task(greet())
    try:
        await run(server, ready)
    finally:
        greeter.cancel()


def greeting(server: Server) -> str:
    """Returns what the terminal shows at the start: addresses, models, and a command to paste."""
    host, ports = server.settings.host, server.ports
    http, grpc, metrics = (join_address(host, p) for p in (ports.http, ports.grpc, ports.metrics))
    scheme = "https" if server.tls else "http"
    model = server.registry.models()[0].name
    lines = [
        f"segserve is ready: {scheme}://{http}  gRPC {grpc}  metrics http://{metrics}/metrics",
        "models: "
        + ", ".join(
            f"{m.name} v{m.version} ({m.spec.size}, {m.spec.precision}, {len(m.labels.names)} "
            f"classes)"
            for m in server.registry.models()
        ),
        "try:    curl --data-binary @street.jpg "
        f"'{scheme}://{http}/v2/models/{model}/segment?format=overlay' -o overlay.png",
        f"        or {scheme}://{http}/ in a browser",
    ]
    lines += [f"not served: {name}: {why}" for name, why in server.registry.failures.items()]
    return "\n".join(lines)
