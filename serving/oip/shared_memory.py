"""POSIX shared memory that clients name for tensors, as Triton's system shared memory.

Memory is read and written through its descriptor, not mapped: where a client truncates its region
while it is used, the request gets an error; a mapped page would end the process with SIGBUS. A read
copies, so a client that writes meanwhile cannot change what was checked. What is read is as large
as the tensor's shape says, which is checked against the model before: a region may be of any size.

Source: Triton's extension_shared_memory.md.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidRequest, RegionExists, RegionNotFound, TooLarge, Unsupported
from serving.oip.tensors import Tensor, read_tensor
from serving.settings import Settings

# Where Linux keeps what shm_open creates.
FOLDER = Path("/dev/shm")


@dataclass(frozen=True)
class Region:
    """A registered part of a shared memory object; ``offset`` and ``size`` in bytes."""

    name: str
    key: str
    offset: int
    size: int
    descriptor: int


@dataclass(frozen=True)
class RegionSlice:
    """The position of a tensor in a region, in bytes."""

    region: str
    offset: int
    size: int


class SharedMemory:
    """The registered regions. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._regions: dict[str, Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Opens the shared memory object ``key`` (with or without its leading slash).

        Raises:
            Unsupported: the setting ``enable_shared_memory`` is off.
            RegionExists: the name is taken.
            InvalidRequest: no such object, or it is smaller than ``offset + size``.
        """
        self._check_enabled()
        if not name:
            # It stands for all regions elsewhere.
            raise InvalidRequest(
                "a shared memory region needs a name: expected one character or more"
            )
        plain = key.removeprefix("/")
        if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
            raise InvalidRequest(
                f"shared memory region {name!r}: {key!r} is not a valid key: expected the name of "
                "an object as shm_open takes it, for example /tensors"
            )
        if offset < 0 or size < 1:
            raise InvalidRequest(
                f"shared memory region {name!r}: offset {offset} and byte_size {size} hold nothing"
            )
        with self._lock:
            if name in self._regions:
                raise RegionExists(f"shared memory region {name!r} is registered already")
            if len(self._regions) >= self.settings.max_shared_memory_regions:
                raise InvalidRequest(
                    f"{len(self._regions)} shared memory regions are registered "
                    f"(setting max_shared_memory_regions); unregister some",
                    reason="shared_memory_regions",
                )
            descriptor = _open(key, plain)
            length = os.fstat(descriptor).st_size
            if offset + size > length:
                os.close(descriptor)
                raise InvalidRequest(
                    f"shared memory region {name!r}: {key!r} has {length} bytes, "
                    f"not {offset + size}"
                )
            self._regions[name] = Region(name, key, offset, size, descriptor)

    def unregister(self, name: str) -> None:
        """Forgets one region, or with an empty name all; unknown names are gone already."""
        with self._lock:
            for gone in [name] if name else list(self._regions):
                region = self._regions.pop(gone, None)
                if region is not None:
                    os.close(region.descriptor)

    def status(self, name: str) -> list[Region]:
        """Returns one region, or with an empty name all.

        Raises:
            RegionNotFound: no such name.
        """
        with self._lock:
            if not name:
                return list(self._regions.values())
            return [self._find(name)]

    def check(self, place: RegionSlice) -> None:
        """Raises where ``place`` is not inside a registered region."""
        self._check_enabled()
        with self._lock:
            self._locate(place)

    def read_tensor(
        self, name: str, datatype: str, shape: tuple[int, ...], place: RegionSlice
    ) -> Tensor:
        """Reads a tensor whose datatype and shape are the model's.

        Raises:
            InvalidRequest: ``place`` has another size than the tensor; nothing was read.
            TooLarge: BYTES of more than ``max_request_bytes``.
            SegserveError: as ``read``.
        """
        self.check(place)
        limit = self.settings.max_request_bytes
        if datatype == "UINT8" and place.size != math.prod(shape):
            raise InvalidRequest(
                f"input {name!r}: UINT8 {list(shape)} takes {math.prod(shape)} bytes, "
                f"shared_memory_byte_size is {place.size}"
            )
        if datatype != "UINT8" and place.size > limit:
            raise TooLarge(
                f"input {name!r} has {place.size} bytes in shared memory, the limit is {limit} "
                f"(setting max_request_bytes)",
                reason="request_bytes",
            )
        return read_tensor(name, datatype, shape, self.read(place))

    def read(self, place: RegionSlice) -> bytes:
        """Returns a copy of what is there.

        Raises:
            InvalidRequest: beyond the region, or the object was truncated.
            RegionNotFound, Unsupported: see ``register`` and ``status``.
        """
        with self._open(place) as (region, descriptor):
            start = region.offset + place.offset
            end = start + place.size
            # Before memory for it is taken.
            _check_length(region, descriptor, end)
            parts = []
            while start < end and (part := os.pread(descriptor, end - start, start)):
                parts.append(part)
                start += len(part)
            if start < end:
                raise _truncated(region)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, place: RegionSlice, data: bytes | memoryview) -> None:
        """Puts ``data``, of bytes, at the beginning of ``place``.

        Raises:
            InvalidRequest: it takes more than ``place.size`` bytes; else as ``read``.
        """
        self._check_enabled()
        if len(data) > place.size:
            raise InvalidRequest(
                f"shared memory region {place.region!r}: the output takes {len(data)} bytes, "
                f"shared_memory_byte_size is {place.size}"
            )
        with self._open(place) as (region, descriptor):
            start, rest = region.offset + place.offset, memoryview(data)
            # A write beyond the end would make a truncated object grow again.
            _check_length(region, descriptor, start + len(data))
            while rest:
                written = os.pwrite(descriptor, rest, start)
                start, rest = start + written, rest[written:]

    @contextlib.contextmanager
    def _open(self, place: RegionSlice) -> Iterator[tuple[Region, int]]:
        """Gives the region and a descriptor of its own: others need not wait until megabytes are
        copied, and the region may be unregistered meanwhile."""
        self._check_enabled()
        with self._lock:
            region = self._locate(place)
            descriptor = os.dup(region.descriptor)
        try:
            yield region, descriptor
        finally:
            os.close(descriptor)

    def _check_enabled(self) -> None:
        if not self.settings.enable_shared_memory:
            raise Unsupported("shared memory is switched off (setting enable_shared_memory)")

    def _find(self, name: str) -> Region:
        if name not in self._regions:
            raise RegionNotFound(f"no shared memory region {name!r} is registered")
        return self._regions[name]

    def _locate(self, place: RegionSlice) -> Region:
        region = self._find(place.region)
        if place.offset < 0 or place.size < 0 or place.offset + place.size > region.size:
            raise InvalidRequest(
                f"shared memory region {region.name!r} has {region.size} bytes; "
                f"offset {place.offset} and byte size {place.size} go beyond"
            )
        return region


def _check_length(region: Region, descriptor: int, end: int) -> None:
    if end > os.fstat(descriptor).st_size:
        raise _truncated(region)


def _truncated(region: Region) -> InvalidRequest:
    return InvalidRequest(f"shared memory region {region.name!r}: the object was truncated")


def check_cuda_region(name: str) -> None:
    """Raises RegionNotFound for a name: of CUDA shared memory there never is any."""
    if name:
        raise RegionNotFound(f"no CUDA shared memory region {name!r} is registered")


def _open(key: str, plain: str) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(FOLDER / plain, flags)
    except OSError as error:
        raise InvalidRequest(f"cannot open shared memory {key!r}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidRequest(f"{key!r} is not a shared memory object")
    return descriptor
