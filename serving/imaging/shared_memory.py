"""Memory that the server and one decoder process both see: a file in memory, without a name.

Its size is sealed, so that neither side can make the other read beyond its end. The kernel hands
out its pages zeroed, which takes as long as decoding a JPEG does: so a decoder's buffers are kept
and used again, for that decoder alone, which zeroes what the image before has left.

Nothing here imports the server: decoder processes load this module.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value
_MAP_POPULATE = 0x8000
_MADV_REMOVE = 9

# Takes over a millisecond to unmap.
_LARGE_BYTES = 4 << 20

# Buffers of one decoder that are used again; ONE_USE is none of them.
SLOTS = 8
ONE_USE = 255


def create(size: int) -> int:
    """Returns a descriptor of ``size`` bytes of zeroed memory."""
    memory = os.memfd_create("segserve-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(memory)
        raise
    return memory


class _Unmapper:
    """A thread that unmaps large memory.

    Whoever lets go of an image last is often the event loop, and unmapping one of 100 megapixels
    takes a tenth of a second.
    """

    def __init__(self) -> None:
        # Reentrant, as finalizers need it: they run in the midst of anything.
        self._queue: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._is_started = False

    def start(self) -> None:
        """Starts the thread, if it was not started before. Not for finalizers."""
        with self._starting:
            if not self._is_started:
                threading.Thread(target=self._run, name="unmap", daemon=True).start()
                self._is_started = True

    def unmap(self, address: int, size: int) -> None:
        """Unmaps soon. Any thread may call it, at any moment."""
        self._queue.put((address, size))

    def _run(self) -> None:
        while True:
            address, size = self._queue.get()
            _unmap(address, size)


def _unmap(address: int, size: int) -> None:
    _LIBC.munmap(address, size)


_UNMAPPER = _Unmapper()


def map_bytes(
    memory: int, size: int, unmap: Callable[[int, int], None] = _unmap
) -> npt.NDArray[np.uint8]:
    """Maps the first ``size`` bytes, all pages at once; they go when no view of them is left.

    Unlike ``mmap.mmap`` this keeps no descriptor for as long as the memory is used.

    Args:
        unmap: called then, with the address and the size.

    Raises:
        MemoryError: there is no room for them.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _LIBC.mmap(None, size, protection, mmap.MAP_SHARED | _MAP_POPULATE, memory, 0)
    if address == _FAILED:
        raise MemoryError(f"mapping an image: {os.strerror(ctypes.get_errno())}")
    buffer = (ctypes.c_uint8 * size).from_address(address)
    ending = weakref.finalize(buffer, unmap, address, size)
    ending.atexit = False
    return np.frombuffer(memoryview(buffer), np.uint8)


class Buffer:
    """Room for one image, its pixels and behind them its file. The server's side of it.

    Attributes:
        slot: where the decoder keeps it, or ``ONE_USE``.
        is_known: whether the decoder has mapped it.
        dirty: how many bytes from its start may not be zero.

    Raises:
        OSError, MemoryError: there is no room for it.
    """

    def __init__(self, size: int, slot: int) -> None:
        self.size = size
        self.slot = slot
        self.is_known = False
        self.dirty = 0
        self.descriptor = create(size)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        if size < _LARGE_BYTES:
            self._bytes = map_bytes(self.descriptor, size)
        else:
            _UNMAPPER.start()
            self._bytes = map_bytes(self.descriptor, size, _UNMAPPER.unmap)

    def write(self, parts: Sequence[memoryview | bytes], offset: int) -> None:
        """Copies ``parts`` into it, one behind the other, the first at ``offset``."""
        for part in parts:
            end = offset + len(part)
            self._bytes[offset:end] = np.frombuffer(part, np.uint8)
            offset = end

    def lend(self, size: int, give_back: Callable[[Buffer], None]) -> npt.NDArray[np.uint8]:
        """Its first ``size`` bytes; ``give_back`` is called when no view of them is left."""
        owner = (ctypes.c_uint8 * size).from_address(self._bytes.ctypes.data)
        ending = weakref.finalize(owner, give_back, self)
        ending.atexit = False
        return np.frombuffer(memoryview(owner), np.uint8)

    def close_descriptor(self) -> None:
        """Closes the descriptor; what is mapped stays, but the buffer cannot be sent any more."""
        self._close()

    def discard(self) -> None:
        """Gives its memory back to the kernel, although the decoder has it mapped."""
        _LIBC.madvise(self._bytes.ctypes.data, self.size, _MADV_REMOVE)


class BufferSlots:
    """The buffers that one decoder uses again. Only who holds the decoder takes any.

    Args:
        kept_bytes: the most that all of them together may take.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._slots: dict[int, Buffer] = {}
        self._free: list[Buffer] = []
        # Views end in any thread, and in the midst of anything: there is no lock to wait for.
        self._returned: deque[Buffer] = deque()

    def take(self, size: int) -> Buffer:
        """Returns a buffer of at least ``size`` bytes: one that is free, a new one, or one for this
        once.

        Raises:
            OSError, MemoryError: there is no room for it.
        """
        while self._returned:
            self._free.append(self._returned.popleft())
        fitting = [buffer for buffer in self._free if buffer.size >= size]
        if fitting:
            best = min(fitting, key=lambda buffer: buffer.size)
            self._free.remove(best)
            return best
        # Some more, as the next file of the same size in pixels has another size in bytes.
        roomy = (size + size // 8 + 0xFFFF) & ~0xFFFF
        while self._free and not self._has_room(roomy):
            dropped = self._free.pop(0)
            dropped.discard()
            del self._slots[dropped.slot]
        if not self._has_room(roomy):
            return Buffer(size, ONE_USE)
        slot = next(k for k in range(SLOTS) if k not in self._slots)
        self._slots[slot] = buffer = Buffer(roomy, slot)
        return buffer

    def _has_room(self, size: int) -> bool:
        used = sum(buffer.size for buffer in self._slots.values())
        return len(self._slots) < SLOTS and used + size <= self._kept_bytes

    def give_back(self, buffer: Buffer) -> None:
        """Takes back what :meth:`take` gave. Any thread may call it, at any moment."""
        if buffer.slot != ONE_USE:
            self._returned.append(buffer)
