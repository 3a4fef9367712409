"""Calls one of several Triton servers that hold the same models, the next one where it is away.

Tensors go through shared memory where a server is on the same machine.

Source: Open Inference Protocol v2 over gRPC, with Triton's extensions (tritonclient's stubs);
Triton's extension_shared_memory.md (system shared memory).
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.errors import DeadlineExceeded, EngineFailed, NotReady

log = logging.getLogger("segserve")

Stub: TypeAlias = service_pb2_grpc.GRPCInferenceServiceStub
Answer = TypeVar("Answer")

CHANNEL_OPTIONS = (
    # Segmentation tensors pass gRPC's 4 MB default at once.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that was restarted is found soon, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
HEALTH_TIMEOUT_S = 2.0
# The server is gone or stopping; or it lives, and does not have the model (any more).
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)


class TritonConnection:
    """Stubs of all servers; a call goes to the one that answered last. Any thread may call it.

    Args:
        urls: ``host:port`` of the servers' gRPC ports, in order of preference.
        timeout_s: for one call to one server.

    Raises:
        ValueError: no URL, or one with a scheme.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        if not urls:
            raise ValueError("no Triton server is named; give --triton-url HOST:GRPC_PORT")
        for url in urls:
            if "//" in url or ":" not in url:
                raise ValueError(
                    f"{url!r} is not a valid address of a Triton server: expected HOST:GRPC_PORT"
                )
        self.urls = tuple(urls)
        self.timeout_s = timeout_s
        self._channels = [grpc.insecure_channel(url, options=CHANNEL_OPTIONS) for url in self.urls]
        self._stubs = [Stub(channel) for channel in self._channels]
        self._preferred = 0
        self._lock = threading.Lock()

    def call(self, ask: Callable[[Stub, str], Answer]) -> Answer:
        """Calls ``ask(stub, url)`` for the first server that answers and has the model.

        Raises:
            NotReady: none is; the message has each one's reason.
            DeadlineExceeded: a server took longer than ``timeout_s``; it is not asked again.
            EngineFailed: a server refused; its own message.
        """
        reasons = []
        for step in range(len(self.urls)):
            index = (self._preferred + step) % len(self.urls)
            url = self.urls[index]
            try:
                answer = ask(self._stubs[index], url)
            except grpc.RpcError as error:
                code, text = error.code(), f"Triton at {url}: {error.details()}"
                if code in AWAY:
                    reasons.append(text)
                    continue
                if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise DeadlineExceeded(
                        f"{text} after {self.timeout_s:g} s (setting triton_timeout_s)"
                    ) from error
                raise EngineFailed(text) from error
            self._prefer(index)
            return answer
        raise NotReady("no Triton server is ready: " + "; ".join(reasons))

    def _prefer(self, index: int) -> None:
        with self._lock:
            if index != self._preferred:
                log.warning("Triton: from %s to %s", self.urls[self._preferred], self.urls[index])
                self._preferred = index

    def has_started(self) -> bool:
        """Returns whether one server has loaded its models, or given up on those it could not
        load."""
        return any(_ask(_has_started, stub) for stub in self._stubs)

    def is_ready(self, models: Sequence[str]) -> bool:
        """Returns whether one server has all the models ready, whatever becomes of its other
        ones."""
        return any(_ask(_has_ready, stub, *models) for stub in self._stubs)

    def stub(self, url: str) -> Stub:
        """Returns the stub of one of ``urls``."""
        stub: Stub = self._stubs[self.urls.index(url)]
        return stub

    def close(self) -> None:
        """Ends all channels."""
        for channel in self._channels:
            channel.close()


def _ask(question: Callable[..., bool], stub: Stub, *models: str) -> bool:
    try:
        return question(stub, *models)
    except grpc.RpcError:
        return False


def _has_started(stub: Stub) -> bool:
    ready: bool = stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=HEALTH_TIMEOUT_S).ready
    if ready:
        return True
    # Triton is not ready for good where one model of its repository is broken.
    index = stub.RepositoryIndex(
        service_pb2.RepositoryIndexRequest(), timeout=HEALTH_TIMEOUT_S
    ).models
    states = {model.state for model in index}
    return "READY" in states and "LOADING" not in states


def _has_ready(stub: Stub, *models: str) -> bool:
    return all(
        stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=HEALTH_TIMEOUT_S).ready
        for name in models
    )


# Where Linux keeps what shm_open creates.
FOLDER = Path("/dev/shm")
TIMEOUT_S = 2.0
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def is_local(url: str) -> bool:
    """Returns whether ``host:port`` is this machine for certain."""
    return url.rpartition(":")[0] in LOCAL_HOSTS


class SharedTensor:
    """One region of ``size`` bytes, known to the servers that it was registered with."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"segserve_{os.getpid()}_{secrets.token_hex(6)}"
        descriptor = os.open(FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._urls: set[str] = set()

    def register(self, stub: Stub, url: str) -> None:
        """Tells a server of the region, once.

        Raises:
            grpc.RpcError: it cannot open it: another machine or container.
        """
        if url not in self._urls:
            stub.SystemSharedMemoryRegister(
                service_pb2.SystemSharedMemoryRegisterRequest(
                    name=self.name, key=f"/{self.name}", offset=0, byte_size=self.size
                ),
                timeout=TIMEOUT_S,
            )
            self._urls.add(url)

    def forget(self, stub: Stub, url: str) -> None:
        """Takes the region from a server; one that does not know it has nothing to forget."""
        self._urls.discard(url)
        with suppress(grpc.RpcError):
            stub.SystemSharedMemoryUnregister(
                service_pb2.SystemSharedMemoryUnregisterRequest(name=self.name), timeout=TIMEOUT_S
            )

    def write(self, array: npt.NDArray[np.uint8]) -> None:
        """Copies ``array`` to the region's beginning."""
        np.copyto(np.frombuffer(self._map, np.uint8, array.size).reshape(array.shape), array)

    def read(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """Returns a copy of the tensor at the region's beginning."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count).reshape(shape).copy()

    def describe(
        self,
        tensor: service_pb2.ModelInferRequest.InferInputTensor
        | service_pb2.ModelInferRequest.InferRequestedOutputTensor,
        size: int,
    ) -> None:
        """Names the region, and the bytes of it that count, in a tensor of a request."""
        tensor.parameters["shared_memory_region"].string_param = self.name
        tensor.parameters["shared_memory_byte_size"].int64_param = size

    def close(self, connection: TritonConnection) -> None:
        """Takes the region from all servers and from this machine."""
        for url in tuple(self._urls):
            self.forget(connection.stub(url), url)
        self._map.close()
        (FOLDER / self.name).unlink(missing_ok=True)
