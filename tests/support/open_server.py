"""A server that lets its clients load, unload, and name shared memory; and clients of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from serving.models.repository import ModelFolder
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, free_ports

Client: TypeAlias = (
    tritonclient.http.InferenceServerClient | tritonclient.grpc.InferenceServerClient
)
CLIENTS: dict[str, ModuleType] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@dataclass
class OpenServer:
    """The server, and every engine that it has opened, in order."""

    server: Server
    engines: list[FakeEngine] = field(default_factory=list)

    def address(self, protocol: str) -> str:
        return f"127.0.0.1:{getattr(self.server.ports, protocol)}"

    @contextmanager
    def client(self, protocol: str) -> Iterator[Client]:
        """tritonclient's client of that protocol."""
        client = CLIENTS[protocol].InferenceServerClient(self.address(protocol))
        try:
            yield client
        finally:
            client.close()


@contextmanager
def run_open_server(repository: Path, **settings: object) -> Iterator[OpenServer]:
    """Serves a repository of band models, each opening on an engine of its own."""
    engines: list[FakeEngine] = []

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        engines.append(FakeEngine(MODEL_SIZE))
        return engines[-1]

    enabled = {"enable_model_control": True, "enable_shared_memory": True, **settings}
    chosen = free_ports(repository).model_copy(update=enabled)
    with ServerThread(chosen, open_engine) as server:
        yield OpenServer(server, engines)


def pixels_of(protocol: str, n: int = 1) -> object:
    """``n`` images of the model's size as the client's InferInput."""
    pixels = np.stack([bands(MODEL_SIZE.height, MODEL_SIZE.width)] * n)
    item = CLIENTS[protocol].InferInput("image", list(pixels.shape), "UINT8")
    item.set_data_from_numpy(pixels)
    return item


def index_of(client: Client) -> list[tuple[str, str, str]]:
    """Name, version and state of every entry of the repository index."""
    if isinstance(client, tritonclient.http.InferenceServerClient):
        entries = client.get_model_repository_index()
    else:
        entries = client.get_model_repository_index(as_json=True)["models"]
    return [(e["name"], e.get("version", ""), e.get("state", "")) for e in entries]


def statistics_of(client: Client, name: str = "") -> list[dict[str, Any]]:
    """The statistics extension's entries, numbers as numbers."""
    if isinstance(client, tritonclient.http.InferenceServerClient):
        entries: list[dict[str, Any]] = client.get_inference_statistics(name)["model_stats"]
        return entries
    return [_numbers(stats) for stats in client.get_inference_statistics(name).model_stats]


def _numbers(stats: service_pb2.ModelStatistics) -> dict[str, Any]:
    def durations(message: Message) -> dict[str, dict[str, int]]:
        return {
            d.name: {"count": value.count, "ns": value.ns}
            for d in message.DESCRIPTOR.fields
            if d.message_type is not None
            for value in [getattr(message, d.name)]
        }

    return {
        "name": stats.name,
        "version": stats.version,
        "last_inference": stats.last_inference,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": durations(stats.inference_stats),
        "batch_stats": [
            {"batch_size": batch.batch_size, **durations(batch)} for batch in stats.batch_stats
        ],
    }
