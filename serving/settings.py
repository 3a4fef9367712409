"""Every setting of the server, its unit in its name; environment prefix ``SEGSERVE_``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Defaults suit one machine that serves a few models; ``SEGSERVE_HTTP_PORT=80`` overrides."""

    model_config = SettingsConfigDict(env_prefix="SEGSERVE_", frozen=True, extra="forbid")

    repository: Path = Field(Path("model_repository"), description="folder of models")
    host: str = Field("127.0.0.1", description="address that all three ports are bound to")
    http_port: int = Field(8000, ge=0, le=65535, description="0 takes a free port")
    grpc_port: int = Field(8001, ge=0, le=65535, description="0 takes a free port")
    metrics_port: int = Field(8002, ge=0, le=65535, description="0 takes a free port")
    engine: Literal["onnxruntime"] = Field("onnxruntime", description="what infers")
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

    max_request_bytes: int = Field(64 << 20, ge=1024, description="body or gRPC message")
    max_image_megapixels: float = Field(100.0, gt=0, description="checked before decoding")
    max_queue_size: int = Field(256, ge=1, description="waiting images a model, over all callers")
    max_queue_bytes: int = Field(1 << 30, ge=1, description="waiting pixels a model")
    queue_timeout_ms: float = Field(30_000.0, gt=0, description="longest wait for the engine")
    upload_timeout_s: float = Field(60.0, gt=0, description="for the whole request body")
    max_inflight_requests: int = Field(
        512, ge=1, description="requests being decoded, queued or answered, over all models"
    )
    drain_seconds: float = Field(
        1.0, ge=0, description="still answering, but not ready, after SIGTERM"
    )
    stop_timeout_s: float = Field(30.0, gt=0, description="for requests in flight, after draining")
