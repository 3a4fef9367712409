"""Shared memory that tensors go through to a Triton server on the same machine, without gRPC.

Source: Triton's extension_shared_memory.md (system shared memory).
"""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from serving.engines.triton_connection import Stub, TritonConnection

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
