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

from serving.imaging.header import DEFAULT_FORMATS

PREFIX: Final = "SEGSERVE_"
# Other variables of that prefix: the client's key, the cache of compiled loops, a switch of the
# tests. Kubernetes adds those of a Service of that name (SEGSERVE_PORT_8000_TCP, ...).
_OTHERS = {"SEGSERVE_API_KEY", "SEGSERVE_CACHE_DIR", "SEGSERVE_TEST_NO_SKIP"}
_OF_KUBERNETES = re.compile("SEGSERVE_(SERVICE_.*|PORT|PORT_[0-9].*)")

# In the environment as JSON or separated by commas.
Words: TypeAlias = Annotated[frozenset[str], NoDecode]


class Settings(BaseSettings):
    """Defaults suit one machine that serves a few models; ``SEGSERVE_HTTP_PORT=80`` overrides."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    repository: Path = Field(Path("model_repository"), description="folder of models")
    host: str = Field(
        "127.0.0.1",
        description="address or name that all three ports are bound to; :: takes all, IPv4 too",
    )
    http_port: int = Field(8000, ge=0, le=65535, description="0 takes a free port")
    grpc_port: int = Field(8001, ge=0, le=65535, description="0 takes a free port")
    metrics_port: int = Field(8002, ge=0, le=65535, description="0 takes a free port")
    engine: Literal["onnxruntime", "triton"] = Field("onnxruntime", description="what infers")
    cpu_engine: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto",
        description="what infers on CPUs, of all models; auto: what config.pbtxt names, else the"
        " faster one for the file and the processor (docs/engines.md)",
    )
    triton_url: str = Field(
        "127.0.0.1:9001",
        description="HOST:GRPC_PORT of Triton servers with the same models, by comma",
    )
    triton_timeout_s: float = Field(30.0, gt=0, description="for one call to one Triton server")
    triton_start_timeout_s: float = Field(60.0, ge=0, description="waits for Triton to be ready")
    triton_health_interval_s: float = Field(2.0, gt=0, description="between looks at its health")
    triton_shared_memory: bool = Field(
        True, description="tensors go through it where Triton is on this machine"
    )
    strict: bool = Field(False, description="a model that cannot be loaded stops the start")

    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="cores for inference, shared out among a model's instances",
    )
    pool_threads: int = Field(
        default_factory=lambda: (os.cpu_count() or 1) + 2,
        ge=1,
        description="threads that decode, resize, restore and encode",
    )

    decoder_processes: int = Field(
        default_factory=lambda: (os.cpu_count() or 1) + 1 if sys.platform == "linux" else 0,
        ge=0,
        description="processes that decode images, each confined; at most pool_threads - 1 are busy"
        " at a time; 0 decodes in the server's own process, for trusted callers",
    )
    decoder_sandbox: Literal["auto", "required", "off"] = Field(
        "auto",
        description="seccomp filter of decoder processes, by libseccomp: auto does without where"
        " it cannot be had, and warns; required stops the start",
    )
    decode_timeout_s: float = Field(
        20.0, gt=0, description="for decoding one image, of the clock and of the processor"
    )

    tls_certificate: Path | None = Field(
        None, description="PEM chain of the HTTP and gRPC ports; with tls_key they speak TLS alone"
    )
    tls_key: Path | None = Field(None, description="PEM private key of tls_certificate")
    tls_client_ca: Path | None = Field(
        None, description="PEM; clients must show a certificate that these authorities signed"
    )
    api_keys_file: Path | None = Field(
        None, description="one key a line, NAME KEY [requests_per_second=N] [concurrent=N]"
    )
    allowed_origins: Words = Field(
        frozenset(),
        description="of pages elsewhere that may ask from a browser, as https://host; * for all",
    )

    max_http_connections: int = Field(2048, ge=1, description="open at a time")
    max_grpc_connections: int = Field(2048, ge=1, description="open at a time")
    max_grpc_calls: int = Field(2048, ge=1, description="open at a time, streams included")
    max_grpc_watches: int = Field(
        256, ge=1, description="streams of the health service, open at a time, beside other calls"
    )
    max_grpc_watches_per_address: int = Field(
        64, ge=1, description="of max_grpc_watches, for one client address"
    )
    # Named as Triton's options of the same meaning.
    grpc_keepalive_time_ms: int = Field(
        60_000, ge=1000, description="a client that is silent for so long is pinged"
    )
    grpc_keepalive_timeout_ms: int = Field(
        20_000, ge=100, description="for the answer to a ping, before the connection is closed"
    )
    grpc_keepalive_permit_without_calls: bool = Field(
        True, description="pings both ways also while no call is open"
    )
    grpc_http2_max_pings_without_data: int = Field(
        0, ge=0, description="pings to a client between two frames of data; 0 for any number"
    )
    grpc_http2_min_recv_ping_interval_without_data_ms: int = Field(
        5_000, ge=0, description="a client may ping so often while it sends no data"
    )
    grpc_http2_max_ping_strikes: int = Field(
        2, ge=0, description="earlier pings before the connection is closed; 0 for any number"
    )
    grpc_connection_idle_s: float = Field(
        600.0, gt=0, description="a gRPC connection without any call may stay open"
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, description="request line and headers, or gRPC metadata"
    )
    header_timeout_s: float = Field(10.0, gt=0, description="for a whole HTTP header")
    max_header_fields: int = Field(256, ge=8, description="of one HTTP request")
    keep_alive_s: float = Field(
        180.0,
        gt=0,
        description="an HTTP connection may idle; longer than proxies keep theirs, which is 60 to "
        "120 s. Where max_http_connections are open the longest idle one is closed sooner",
    )
    trusted_proxies: Words = Field(
        frozenset(),
        description="addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed, as 10.0.0.0/8; none by default",
    )
    refusals_per_second: float = Field(
        50.0,
        gt=0,
        description="refusals (429, RESOURCE_EXHAUSTED) that leave at once; more of them wait, "
        "four seconds or half of the request's deadline at most",
    )
    send_timeout_s: float = Field(60.0, gt=0, description="a client may stop reading its answer")
    allowed_formats: Words = Field(
        DEFAULT_FORMATS, description="of encoded images, a subset of these"
    )
    max_inflight_megapixels: float = Field(
        2000.0, gt=0, description="decoded images of all requests being worked on"
    )

    max_request_bytes: int = Field(64 << 20, ge=1024, description="body or gRPC message")
    max_json_bytes: int = Field(
        1 << 20, ge=1024, description="JSON of an inference request, without its tensors' data"
    )
    max_control_bytes: int = Field(
        64 << 10, ge=1024, description="body of an HTTP request that holds no image"
    )
    max_image_megapixels: float = Field(100.0, gt=0, description="checked before decoding")
    max_queue_size: int = Field(256, ge=1, description="waiting images a model, over all callers")
    max_queue_bytes: int = Field(1 << 30, ge=1, description="waiting pixels a model")
    queue_timeout_ms: float = Field(
        30_000.0, gt=0, description="longest wait for a decoder, and for the engine"
    )
    shed_late_requests: bool = Field(
        True, description="refuse at once what would be answered after its deadline"
    )
    max_engine_failures: int = Field(
        3, ge=1, description="failed runs in a row after which an engine is opened anew"
    )
    engine_timeout_s: float = Field(
        300.0, gt=0, description="a run that takes longer hangs: the engine is opened anew"
    )
    watch_repository: bool = Field(
        False, description="load, reload and unload models as the repository changes"
    )
    poll_interval_s: float = Field(15.0, gt=0, description="between looks at the repository")
    upload_timeout_s: float = Field(
        60.0, gt=0, description="for the whole request body, or a call's first message"
    )
    stream_idle_timeout_s: float = Field(
        600.0, gt=0, description="a gRPC stream may stay open with nothing asked or answered"
    )
    max_inflight_requests: int = Field(
        512, ge=1, description="requests being decoded, queued or answered, over all models"
    )
    max_views: int = Field(
        512, ge=1, description="tiles x scales x mirror images of one request, one image"
    )
    max_views_in_flight: int = Field(
        8, ge=1, description="of one request: waiting, being inferred or not yet blended"
    )
    max_polygons: int = Field(100_000, ge=1, description="regions of one answer")
    max_stream_frames: int = Field(8, ge=1, description="of one gRPC stream, being worked on")
    grpc_compression: Literal["none", "deflate", "gzip"] = Field(
        "none", description="of gRPC answers"
    )
    enable_model_control: bool = Field(
        False, description="clients may load and unload models of the repository"
    )
    enable_shared_memory: bool = Field(
        False, description="clients may name POSIX shared memory for the server to read and write"
    )
    max_shared_memory_regions: int = Field(64, ge=1, description="registered at a time")
    access_log: Literal["none", "text", "json"] = Field(
        "none", description="a line a request, on stderr"
    )
    tracing: bool = Field(
        False, description="OpenTelemetry spans over OTLP; OTEL_* variables say where to"
    )
    drain_seconds: float = Field(
        1.0, ge=0, description="still answering, but not ready, after SIGTERM"
    )
    stop_timeout_s: float = Field(30.0, gt=0, description="for requests in flight, after draining")

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
        unknown = sorted(formats - DEFAULT_FORMATS)
        if unknown or not formats:
            known = ", ".join(sorted(DEFAULT_FORMATS))
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
