"""Holds an engine's tensors on the host or on a CUDA GPU and copies them there and back.

CUDA is reached through its runtime library, which ONNX Runtime's provider has loaded already.
Copies and kernels of an instance share one stream, so they follow each other without the host
waiting in between; those of two instances overlap.

Source: CUDA Runtime API, cudaHostRegister, cudaMemcpyAsync, cudaStreamCreateWithFlags.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.errors import EngineFailed

Bytes = npt.NDArray[np.uint8]

RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING = 1


@dataclass(frozen=True)
class Block:
    """``size`` bytes of a device's memory, alive as long as ``owner``."""

    address: int
    size: int
    owner: object


class Device(Protocol):
    """One device, and one stream of work on it. ``kind`` is ONNX Runtime's name of the device."""

    kind: str
    number: int
    stream: int

    def enter(self) -> None:
        """Makes the device current; each thread calls it before its first work there."""
        ...

    def host(self, size: int) -> Bytes:
        """Returns host memory that the device copies from and to quickly."""
        ...

    def allocate(self, size: int) -> Block:
        """Returns memory of the device."""
        ...

    def upload(self, source: Bytes, target: Block) -> None:
        """Begins to copy to the device; what follows on the stream waits for it."""
        ...

    def download(self, source: Block, target: Bytes) -> None:
        """Begins to copy from the device, after what is on the stream already."""
        ...

    def synchronise(self) -> None:
        """Returns when all work on the stream is done."""
        ...

    def close(self) -> None:
        """Frees the stream and what ``host`` gave; sessions on it are closed before."""
        ...


class HostDevice:
    """The CPU: its memory is the host's, and work is done when a call returns."""

    kind = "cpu"
    number = 0
    stream = 0

    def enter(self) -> None:
        return

    def host(self, size: int) -> Bytes:
        return np.empty(size, np.uint8)

    def allocate(self, size: int) -> Block:
        memory = np.empty(size, np.uint8)
        return Block(memory.ctypes.data, size, memory)

    def upload(self, source: Bytes, target: Block) -> None:
        ctypes.memmove(target.address, source.ctypes.data, source.nbytes)

    def download(self, source: Block, target: Bytes) -> None:
        ctypes.memmove(target.ctypes.data, source.address, target.nbytes)

    def synchronise(self) -> None:
        return

    def close(self) -> None:
        return


class CudaDevice:
    """A GPU by its number.

    Args:
        runtime: the CUDA runtime library.
        pinned: whether ``host`` page-locks: without, copies wait and are half as fast.

    Raises:
        EngineFailed: CUDA does not answer; the message holds its own error.
    """

    kind = "cuda"

    def __init__(self, runtime: ctypes.CDLL, number: int, *, pinned: bool = True) -> None:
        self._runtime = runtime
        self.number = number
        self._pinned = pinned
        self._locked: list[Bytes] = []
        self.enter()
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        self.stream = handle.value or 0

    def enter(self) -> None:
        self._call("cudaSetDevice", ctypes.c_int(self.number))

    def host(self, size: int) -> Bytes:
        memory = np.empty(size, np.uint8)
        if self._pinned:
            address = ctypes.c_void_p(memory.ctypes.data)
            self._call("cudaHostRegister", address, ctypes.c_size_t(size), ctypes.c_uint(0))
            self._locked.append(memory)
        return memory

    def allocate(self, size: int) -> Block:
        # ONNX Runtime's own allocator: what it frees, it frees.
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            [size], np.uint8, self.kind, self.number
        )
        return Block(value.data_ptr(), size, value)

    def upload(self, source: Bytes, target: Block) -> None:
        self._copy(target.address, source.ctypes.data, source.nbytes, _TO_DEVICE)

    def download(self, source: Block, target: Bytes) -> None:
        self._copy(target.ctypes.data, source.address, target.nbytes, _TO_HOST)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        self.enter()
        while self._locked:
            address = ctypes.c_void_p(self._locked.pop().ctypes.data)
            self._call("cudaHostUnregister", address)
        if self.stream:
            self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))
            self.stream = 0

    def _copy(self, target: int, source: int, size: int, direction: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(target),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            ctypes.c_int(direction),
            ctypes.c_void_p(self.stream),
        )

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._runtime, name)(*arguments))
        if code:
            explain = self._runtime.cudaGetErrorString
            explain.restype = ctypes.c_char_p
            raise EngineFailed(f"{name}: {(explain(code) or b'?').decode()} ({code})")


def load_cuda_runtime(
    names: Sequence[str] = RUNTIMES, load: Callable[[str], ctypes.CDLL] = ctypes.CDLL
) -> ctypes.CDLL:
    """Returns the CUDA runtime library, the newest first.

    Raises:
        EngineFailed: none of ``names`` can be loaded.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their Python packages
    failures = []
    for name in names:
        try:
            return load(name)
        except OSError as error:
            failures.append(str(error))
    raise EngineFailed(f"no CUDA runtime library: {'; '.join(failures)}")
