"""A decoder process, and the process that decoder processes are forked from.

The server starts one *zygote*: a fresh interpreter without the server's environment, files or
threads, which loads the decoders once and never sees an image. Decoders are forked from it, so that
a new one is there in milliseconds and shares its memory; never from the server, whose threads and
secrets a fork would copy. A decoder confines itself (:mod:`serving.imaging.sandbox`) before it is
given the first image. Whoever loses their other end, ends.

Nothing here imports the server.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import mmap
import os
import resource
import signal
import socket
import struct

import cv2
import numpy as np
import numpy.typing as npt

from serving.imaging import sandbox, shared_memory
from serving.imaging.codecs import decode_still
from serving.imaging.still import BrokenImage, Frame, StillImage

# Server to zygote: what to do, a process, the most memory; a spawn comes with a socket.
COMMAND = struct.Struct("<BqQ")
SPAWN, END = 1, 2
# Zygote to server: the new process, or how one ended (as ``os.waitpid`` has it); where that
# failed, the error's number below zero.
REPLY = struct.Struct("<q")
# Server to decoder, with the image's memory where that is new to it: limits, the memory, then
# what StillImage says.
REQUEST = struct.Struct("<QdBQQQQIIBB?4I")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Decoder to server: one of these, and a text.
DONE, BROKEN, NO_MEMORY = 0, 1, 2
CONFINED, LIMITED, FAILED = 10, 11, 12
MAX_TEXT = 500
# A decoder that keeps this much more than it began with has a leak: it ends itself.
MAX_GROWTH_BYTES = 64 << 20
GROWN_EXIT = 3

# glibc: memory comes zeroed (the complement of 255) and is overwritten when it is freed, so that
# nothing of one image is there for the next. Blocks below the threshold stay with the process.
ENVIRONMENT = {
    "MALLOC_PERTURB_": "255",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def pack_request(still: StillImage, timeout_s: float, buffer: shared_memory.Buffer) -> bytes:
    """Returns the message that asks for ``still``, whose stream lies in ``buffer`` behind its
    pixels."""
    frame = still.frame or Frame(0, 0, still.width, still.height)
    return REQUEST.pack(
        still.memory_bytes, timeout_s,
        buffer.slot, buffer.size, buffer.dirty, 3 * still.pixels, still.stream_bytes,
        still.width, still.height, FORMATS.index(still.format), still.orientation, still.is_common,
        frame.x, frame.y, frame.width, frame.height,
    )  # fmt: skip


def main(control_fd: int, with_filter: bool) -> None:
    """Runs the zygote: it forks decoders, ends them and reaps them when the server says so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal and systemd send these to all processes; the server decides when to end.
        signal.signal(number, signal.SIG_IGN)
    sandbox.set_name("segserve-zygote")
    syscalls = None
    if with_filter:
        with contextlib.suppress(OSError, AttributeError):
            syscalls = sandbox.SyscallFilter()
    _load_decoders()
    gc.collect()
    gc.freeze()
    decoders: set[int] = set()
    with socket.socket(fileno=control_fd) as control:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
            if not message:
                break
            command, process, max_memory_bytes = COMMAND.unpack(message)
            try:
                if command == SPAWN:
                    reply = _fork(control, descriptors[0], syscalls, max_memory_bytes)
                    decoders.add(reply)
                elif process in decoders:
                    decoders.discard(process)
                    reply = _end(process)
                else:
                    reply = -errno.ESRCH
            except OSError as error:
                # No process can be had now. Those that exist continue.
                reply = -(error.errno or errno.EAGAIN)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            # Where this fails the server has gone; the next message says so.
            with contextlib.suppress(OSError):
                control.send(REPLY.pack(reply))
    # Orphans would be left to a container's first process, which may not bury them.
    for process in decoders:
        _end(process)


def _fork(
    control: socket.socket,
    descriptor: int,
    syscalls: sandbox.SyscallFilter | None,
    max_memory_bytes: int,
) -> int:
    """Starts a decoder that serves the socket ``descriptor``; returns its process.

    Raises:
        OSError: there is no room for another process.
    """
    zygote = os.getpid()
    process = os.fork()
    if not process:
        _be_decoder(control, descriptor, zygote, syscalls, max_memory_bytes)
    return process


def _end(process: int) -> int:
    """Kills a child if it lives; returns how it ended, as ``os.waitpid`` has it."""
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def _load_decoders() -> None:
    """Passes once through every decoder, and through a failure: what loads lazily is loaded."""
    cv2.setNumThreads(1)
    pixels = np.zeros((8, 8, 3), np.uint8)
    for extension, format, is_common in (
        (".jpg", "JPEG", True),
        (".jpg", "JPEG", False),
        (".png", "PNG", True),
        (".webp", "WEBP", True),
        (".bmp", "BMP", True),
    ):
        stream = cv2.imencode(extension, pixels)[1].tobytes()
        for orientation in (1, 6):
            still = StillImage(format, 8, 8, orientation, is_common=is_common)
            decode_still(still, memoryview(stream), pixels.copy())
        with contextlib.suppress(BrokenImage):
            decode_still(still, memoryview(b"\0" * 64), pixels.copy())


def _be_decoder(
    control: socket.socket,
    descriptor: int,
    zygote: int,
    syscalls: sandbox.SyscallFilter | None,
    max_memory_bytes: int,
) -> None:
    """Serves one server's socket until it closes; does not return."""
    code = 1
    try:
        sandbox.die_with_parent(zygote)
        sandbox.set_name("segserve-decode")
        control.close()
        server = socket.socket(fileno=descriptor)
        try:
            statm = _detach()
            server.send(_confine(syscalls, max_memory_bytes))
        except (OSError, ValueError) as error:
            server.send(bytes([FAILED]) + str(error).encode()[:MAX_TEXT])
        else:
            code = _serve(server, statm)
    finally:
        os._exit(code)


def _detach() -> int:
    """Opens what stays open, and lets go of the zygote's own files."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    # Decoders in C write warnings about files: not into the server's log.
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    # The kernel's first choice where memory runs out.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")
    return os.open("/proc/self/statm", os.O_RDONLY)


def _confine(syscalls: sandbox.SyscallFilter | None, max_memory_bytes: int) -> bytes:
    """Confines this process; returns what it says of that to the server."""
    if syscalls is None:
        sandbox.confine(None, max_memory_bytes)
        return bytes([LIMITED]) + b"libseccomp.so.2 cannot be used"
    try:
        sandbox.confine(syscalls, max_memory_bytes)
        return bytes([CONFINED])
    except OSError as error:
        sandbox.confine(None, max_memory_bytes)
        return bytes([LIMITED]) + str(error).encode()[:MAX_TEXT]


def _serve(server: socket.socket, statm: int) -> int:
    """Decodes image after image; returns the exit status."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    first = _read_address_space(statm)
    kept: dict[int, npt.NDArray[np.uint8]] = {}
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, REQUEST.size, 1)
        if not message:
            return 0
        try:
            answer = _answer(message, descriptors, kept, _read_address_space(statm), most)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        # Where this fails the server has gone; the next message says so.
        with contextlib.suppress(OSError):
            server.send(answer)
        mapped = _read_address_space(statm) - sum(buffer.size for buffer in kept.values())
        if mapped > first + MAX_GROWTH_BYTES:
            return GROWN_EXIT


def _read_address_space(statm: int) -> int:
    return int(os.pread(statm, 32, 0).split()[0]) * mmap.PAGESIZE


def _limit_processor_time(seconds: float) -> None:
    """Has the kernel end this process once it has computed for ``seconds`` more."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    # The server itself may have been started with a limit, which nobody may raise.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _answer(
    message: bytes,
    descriptors: list[int],
    kept: dict[int, npt.NDArray[np.uint8]],
    mapped: int,
    most: int,
) -> bytes:
    """Decodes one image; ``kept`` holds the buffers that come again."""
    (memory_bytes, timeout_s, slot, size, dirty, pixel_bytes, stream_bytes, width, height, format,
     orientation, is_common, *frame) = REQUEST.unpack(message)  # fmt: skip
    still = StillImage(
        FORMATS[format],
        width,
        height,
        orientation,
        is_common=is_common,
        frame=Frame(*frame),
    )
    resource.setrlimit(resource.RLIMIT_AS, (min(most, mapped + size + memory_bytes), most))
    _limit_processor_time(timeout_s)
    try:
        if descriptors:
            kept.pop(slot, None)
            shared = shared_memory.map_bytes(descriptors[0], size)
            if slot != shared_memory.ONE_USE:
                kept[slot] = shared
        else:
            shared = kept[slot]
        end = pixel_bytes + stream_bytes
        shared[: min(pixel_bytes, dirty)] = 0
        shared[end : max(end, dirty)] = 0
        shape = (height, width, 3) if orientation < 5 else (width, height, 3)
        stream = shared[pixel_bytes:end].data.toreadonly()
        decode_still(still, stream, shared[:pixel_bytes].reshape(shape))
        return bytes([DONE])
    except BrokenImage as error:
        return bytes([BROKEN]) + str(error).encode("utf-8", "replace")[:MAX_TEXT]
    except MemoryError:
        return bytes([NO_MEMORY])
