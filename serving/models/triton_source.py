"""The models of a Triton server that ``segserve`` stands in front of.

Everything comes from the models' own configurations: sizes and outputs from the tensors, names and
colours of classes from ``parameters`` (docs/triton.md). What is not of the contract is refused by
name; Triton continues to serve it.

Source: Open Inference Protocol v2 over gRPC; Triton's extension_model_repository.md and
extension_model_configuration.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from tritonclient.grpc import service_pb2

from serving.engine import Engine
from serving.engines.triton import TritonEngine
from serving.engines.triton_connection import Stub, TritonConnection
from serving.errors import InvalidModel, NotReady, SegserveError
from serving.models.repository import ModelConfig, ModelFolder, describe_remote
from serving.settings import Settings

log = logging.getLogger("segserve")

POLL_S = 0.5


class TritonRepository:
    """The models of the servers named by ``settings.triton_url``, which all hold the same ones.

    Raises:
        InvalidModel: no URL, or a malformed one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        urls = [url.strip() for url in settings.triton_url.split(",") if url.strip()]
        try:
            self.connection = TritonConnection(urls, settings.triton_timeout_s)
        except ValueError as error:
            raise InvalidModel(str(error)) from None
        self._met = False

    @property
    def title(self) -> str:
        return "Triton at " + ", ".join(self.connection.urls)

    def names(self) -> list[str]:
        if not self._met:
            self._wait()
            self._met = True
        index = self.connection.call(self._index)
        return sorted({model.name for model in index.models})

    def read(self, name: str) -> ModelFolder:
        index = self.connection.call(self._index)
        states = {model.version: model for model in index.models if model.name == name}
        ready = sorted(int(v) for v, model in states.items() if model.state == "READY")
        if not ready:
            reasons = {model.reason or model.state or "not loaded" for model in states.values()}
            raise InvalidModel(f"{name}: not ready in Triton: {', '.join(reasons) or 'unknown'}")
        config = self._config(name, ready[-1])
        # Triton did that when it loaded the model; the files that it may name are there.
        config.ClearField("model_warmup")
        found = describe_remote(config, tuple(ready))
        # Triton has a batching delay itself; a second one here would double it.
        return replace(found, scheduling=replace(found.scheduling, delay_s=0.0))

    def open(self, folder: ModelFolder, version: int, settings: Settings) -> Engine:
        """Opens an engine for a version that ``read`` has returned."""
        config = self._config(folder.name, version)
        return TritonEngine(
            self.connection, config, version, shared_memory=settings.triton_shared_memory
        )

    def is_ready(self, names: Sequence[str]) -> bool:
        return self.connection.is_ready(names)

    def close(self) -> None:
        self.connection.close()

    def _wait(self) -> None:
        """Waits until a server is ready: both may have been started together."""
        deadline = time.monotonic() + self.settings.triton_start_timeout_s
        while not self.connection.has_started():
            if time.monotonic() > deadline:
                raise NotReady(
                    f"{self.title} was not ready within "
                    f"{self.settings.triton_start_timeout_s:g} s "
                    f"(setting triton_start_timeout_s)"
                )
            time.sleep(POLL_S)

    def _index(self, stub: Stub, url: str) -> service_pb2.RepositoryIndexResponse:
        return stub.RepositoryIndex(
            service_pb2.RepositoryIndexRequest(), timeout=self.settings.triton_timeout_s
        )

    def _config(self, name: str, version: int) -> ModelConfig:
        request = service_pb2.ModelConfigRequest(name=name, version=str(version))
        try:
            answer = self.connection.call(
                lambda stub, url: stub.ModelConfig(request, timeout=self.settings.triton_timeout_s)
            )
        except SegserveError as error:
            raise InvalidModel(f"{name}: no configuration: {error}") from error
        config: ModelConfig = answer.config
        return config
