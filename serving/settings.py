"""Every setting of the server, its unit in its name; environment prefix ``SEGSERVE_``."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX: Final = "SEGSERVE_"
# Encoded images that can be decoded.
IMAGE_FORMATS: Final = frozenset({"JPEG", "PNG", "BMP", "WEBP"})
# Other variables of that prefix: the client's key, the cache of compiled loops, a switch of the
# tests. Kubernetes adds those of a Service of that name (SEGSERVE_PORT_8000_TCP, ...).
_OTHERS = {"SEGSERVE_API_KEY", "SEGSERVE_CACHE_DIR", "SEGSERVE_TEST_NO_SKIP"}
_OF_KUBERNETES = re.compile("SEGSERVE_(SERVICE_.*|PORT|PORT_[0-9].*)")

# In the environment as JSON or separated by commas.
Words: TypeAlias = Annotated[frozenset[str], NoDecode]


class Settings(BaseSettings):
    """The settings. Their defaults suit one machine that serves a few models.

    ``SEGSERVE_HTTP_PORT=80`` overrides one.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    repository: Path = Field(
        Path("model_repository"),
        description="model repository: a folder of models in Triton's layout",
    )
    host: str = Field(
        "127.0.0.1",
        description="address or host name that all three ports bind to; :: binds all interfaces, "
        "IPv4 included",
    )
    http_port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 picks a free port")
    grpc_port: int = Field(8001, ge=0, le=65535, description="gRPC port; 0 picks a free port")
    metrics_port: int = Field(
        8002, ge=0, le=65535, description="port of Prometheus metrics; 0 picks a free port"
    )
    engine: Literal["onnxruntime", "triton"] = Field(
        "onnxruntime",
        description="run models in this process (onnxruntime) or on a Triton server (triton)",
    )
    cpu_engine: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto",
        description="engine that runs models on CPUs; auto: the one that config.pbtxt names, else "
        "the faster one for the file and the processor (docs/engines.md)",
    )
    triton_url: str = Field(
        "127.0.0.1:9001",
        description="HOST:GRPC_PORT of the Triton servers, comma-separated; all have the same "
        "models",
    )
    triton_timeout_s: float = Field(
        30.0, gt=0, description="seconds that one call to a Triton server may take"
    )
    triton_start_timeout_s: float = Field(
        60.0, ge=0, description="seconds to wait for the Triton servers to become ready at start"
    )
    triton_health_interval_s: float = Field(
        2.0, gt=0, description="seconds between health checks of the Triton servers"
    )
    triton_shared_memory: bool = Field(
        True, description="pass tensors through shared memory where Triton runs on this machine"
    )
    strict: bool = Field(False, description="exit if any model fails to load")

    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="CPU cores for inference, divided among the instances of a model",
    )
    pool_threads: int = Field(
        default_factory=lambda: (os.cpu_count() or 1) + 2,
        ge=1,
        description="threads that resize, restore and encode, and wait for decoders",
    )

    decoder_processes: int = Field(
        default_factory=lambda: (os.cpu_count() or 1) + 1 if sys.platform == "linux" else 0,
        ge=0,
        description="confined processes that decode images; at most pool_threads - 1 are busy at a "
        "time. 0 decodes in the server's own process: for trusted callers only",
    )
    decoder_sandbox: Literal["auto", "required", "off"] = Field(
        "auto",
        description="seccomp filter of decoder processes, which needs libseccomp: auto warns and "
        "continues where it is missing, required refuses to start",
    )
    decode_timeout_s: float = Field(
        20.0,
        gt=0,
        description="seconds, of wall-clock and of CPU time, that decoding one image may take",
    )

    tls_certificate: Path | None = Field(
        None,
        description="PEM certificate chain of the HTTP and gRPC ports; with tls_key set they accept"
        " TLS only",
    )
    tls_key: Path | None = Field(None, description="PEM private key of tls_certificate")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM of the authorities that must have signed every client's certificate "
        "(mutual TLS)",
    )
    api_keys_file: Path | None = Field(
        None,
        description="file with one API key a line: NAME KEY [requests_per_second=N] [concurrent=N]",
    )
    allowed_origins: Words = Field(
        frozenset(),
        description="allowed CORS origins, comma-separated, for example https://host; * allows all",
    )

    max_http_connections: int = Field(2048, ge=1, description="open HTTP connections")
    max_grpc_connections: int = Field(2048, ge=1, description="open gRPC connections")
    max_grpc_calls: int = Field(2048, ge=1, description="open gRPC calls, streams included")
    max_grpc_watches: int = Field(
        256,
        ge=1,
        description="open streams of the gRPC health service, counted apart from other calls",
    )
    max_grpc_watches_per_address: int = Field(
        64, ge=1, description="open streams of the gRPC health service from one client address"
    )
    # Named as Triton's options of the same meaning.
    grpc_keepalive_time_ms: int = Field(
        60_000,
        ge=1000,
        description="milliseconds of silence after which the server pings a gRPC client",
    )
    grpc_keepalive_timeout_ms: int = Field(
        20_000,
        ge=100,
        description="milliseconds to wait for the answer to a ping before closing the connection",
    )
    grpc_keepalive_permit_without_calls: bool = Field(
        True, description="ping, and accept pings, also while no call is open"
    )
    grpc_http2_max_pings_without_data: int = Field(
        0, ge=0, description="pings to a client between two data frames; 0 for no limit"
    )
    grpc_http2_min_recv_ping_interval_without_data_ms: int = Field(
        5_000,
        ge=0,
        description="least milliseconds between two pings of a client that sends no data",
    )
    grpc_http2_max_ping_strikes: int = Field(
        2,
        ge=0,
        description="pings of a client that may come too early before its connection is closed; 0 "
        "for no limit",
    )
    grpc_connection_idle_s: float = Field(
        600.0, gt=0, description="seconds that a gRPC connection may stay open without a call"
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, description="bytes of the request line and headers, or of gRPC metadata"
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="seconds that an HTTP header may take to arrive"
    )
    max_header_fields: int = Field(256, ge=8, description="header fields of one HTTP request")
    keep_alive_s: float = Field(
        180.0,
        gt=0,
        description="seconds that an HTTP connection may be idle; longer than the 60 to 120 s of "
        "most proxies. When max_http_connections are open, the longest idle one is "
        "closed earlier",
    )
    trusted_proxies: Words = Field(
        frozenset(),
        description="addresses and networks, for example 10.0.0.0/8, whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed, comma-separated",
    )
    refusals_per_second: float = Field(
        50.0,
        gt=0,
        description="refusals (429, RESOURCE_EXHAUSTED) that are sent at once; further ones are "
        "delayed by at most four seconds or half of the request's deadline",
    )
    send_timeout_s: float = Field(
        60.0, gt=0, description="seconds that a client may stop reading its answer"
    )
    allowed_formats: Words = Field(
        IMAGE_FORMATS, description="image formats that are accepted, comma-separated"
    )
    max_inflight_megapixels: float = Field(
        2000.0, gt=0, description="megapixels of decoded images of all requests in progress"
    )

    max_request_bytes: int = Field(
        64 << 20, ge=1024, description="bytes of an HTTP body or gRPC message"
    )
    max_json_bytes: int = Field(
        1 << 20,
        ge=1024,
        description="bytes of the JSON of an inference request, without the data of its tensors",
    )
    max_control_bytes: int = Field(
        64 << 10, ge=1024, description="bytes of the body of an HTTP request that carries no image"
    )
    max_image_megapixels: float = Field(
        100.0, gt=0, description="megapixels of one image, checked before it is decoded"
    )
    max_queue_size: int = Field(
        256, ge=1, description="images waiting for one model, over all callers"
    )
    max_queue_bytes: int = Field(
        1 << 30, ge=1, description="bytes of the pixels waiting for one model"
    )
    queue_timeout_ms: float = Field(
        30_000.0,
        gt=0,
        description="milliseconds that an image may wait for a decoder, and for the engine",
    )
    shed_late_requests: bool = Field(
        True, description="refuse requests at once that would be answered after their deadline"
    )
    max_engine_failures: int = Field(
        3, ge=1, description="consecutive failed runs after which an engine is replaced"
    )
    engine_timeout_s: float = Field(
        300.0,
        gt=0,
        description="seconds after which a run counts as stuck and the engine is replaced",
    )
    watch_repository: bool = Field(
        False, description="load, reload and unload models when the repository changes"
    )
    poll_interval_s: float = Field(
        15.0, gt=0, description="seconds between scans of the repository"
    )
    upload_timeout_s: float = Field(
        60.0,
        gt=0,
        description="seconds that a request body, or a call's first message, may take to arrive",
    )
    stream_idle_timeout_s: float = Field(
        600.0,
        gt=0,
        description="seconds that a gRPC stream may stay open without a request or an answer",
    )
    max_inflight_requests: int = Field(
        512, ge=1, description="requests in progress over all models"
    )
    response_cache_bytes: int = Field(
        256 << 20,
        ge=0,
        description="memory for results of the models whose config.pbtxt says response_cache "
        "{ enable: true }; 0 keeps none (docs/response_cache.md)",
    )
    max_views: int = Field(
        512, ge=1, description="views (tiles x scales x mirror images) of one image of one request"
    )
    max_views_in_flight: int = Field(
        8, ge=1, description="views of one request that wait, are inferred or are not yet blended"
    )
    max_polygons: int = Field(100_000, ge=1, description="regions of one answer in polygons")
    max_stream_frames: int = Field(
        8, ge=1, description="requests of one gRPC stream that are in progress"
    )
    grpc_compression: Literal["none", "deflate", "gzip"] = Field(
        "none", description="compression of gRPC answers"
    )
    enable_model_control: bool = Field(
        False, description="let clients load and unload models of the repository"
    )
    enable_shared_memory: bool = Field(
        False, description="let clients name POSIX shared memory for the server to read and write"
    )
    max_shared_memory_regions: int = Field(64, ge=1, description="registered shared memory regions")
    access_log: Literal["none", "text", "json"] = Field(
        "none", description="write one line a request to stderr, as text or JSON"
    )
    tracing: bool = Field(
        False, description="send OpenTelemetry spans over OTLP, as the OTEL_* variables say"
    )
    drain_seconds: float = Field(
        1.0, ge=0, description='seconds to keep answering after SIGTERM while reporting "not ready"'
    )
    stop_timeout_s: float = Field(
        30.0, gt=0, description="seconds that requests in flight may take after draining"
    )

    @field_validator("allowed_origins", "trusted_proxies", "allowed_formats", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"expected a JSON list, or words with commas: {error}") from None
        return [word.strip() for word in value.split(",") if word.strip()]

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        return strip_brackets(host)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, networks: frozenset[str]) -> frozenset[str]:
        for network in sorted(networks):
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(
                    f"{network!r} is not a valid address or network: expected one as 10.0.0.5 or "
                    f"10.0.0.0/8 ({error})"
                ) from None
        return networks

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: frozenset[str]) -> frozenset[str]:
        for origin in sorted(origins):
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(
                    f"{origin!r} is not a valid origin: expected https://host or https://host:port"
                )
        return origins

    @field_validator("allowed_formats")
    @classmethod
    def _check_formats(cls, formats: frozenset[str]) -> frozenset[str]:
        unknown = sorted(formats - IMAGE_FORMATS)
        if unknown or not formats:
            known = ", ".join(sorted(IMAGE_FORMATS))
            raise ValueError(f"{', '.join(unknown) or 'no format'} cannot be decoded; {known} can")
        return formats


def find_misspelt(variables: Iterable[str]) -> list[str]:
    """Returns a sentence for each variable of the environment that looks like a setting and has
    the name of none: it would have no effect, and nobody would know."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    found = []
    for name in sorted(variables):
        if name.upper().startswith(PREFIX) and name.upper() not in _OTHERS.union(known):
            if _OF_KUBERNETES.fullmatch(name):
                continue
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.append(f"{name} in the environment is not a setting and has no effect{hint}")
    return found


def strip_brackets(host: str) -> str:
    """Returns an IPv6 address without the brackets that it has in a URL; else the host itself."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join_address(host: str, port: int) -> str:
    """Returns ``HOST:PORT``, with brackets around an IPv6 address."""
    host = strip_brackets(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cache_folder() -> Path:
    """Returns ``$SEGSERVE_CACHE_DIR``, else ``~/.cache/segserve``; it need not exist yet."""
    folder = os.environ.get("SEGSERVE_CACHE_DIR")
    return Path(folder) if folder else Path.home() / ".cache" / "segserve"
