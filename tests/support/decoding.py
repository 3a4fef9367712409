"""The decoder under test in a child process, so that a crash is a result and not the end."""

from __future__ import annotations

import importlib.util
import os
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.support.decode_child import HEAD, PIXELS, REFUSED

ROOT = Path(__file__).parents[2]
MALLOC_DEBUG = "libc_malloc_debug.so.0"
# Everything here takes the server's decoder from this one place.
DECODER = "serving.imaging.decode:decode"

Kind: TypeAlias = Literal["pixels", "refused", "wrong_error", "crash", "hang"]


@dataclass(frozen=True)
class Decoded:
    """What came of a file: pixels or a text, and what it took."""

    kind: Kind
    pixels: npt.NDArray[np.uint8] | None = None
    text: str = ""
    cpu_s: float = 0.0
    resident_bytes: int = 0
    address_bytes: int = 0


class DecoderProcess:
    """Decodes one file after the other; a process that dies is replaced.

    Args:
        decoder: ``MODULE:FUNCTION``, called like ``serving``'s own ``decode``.
        environment: in addition to this process's own.
        wait_s: for one file; then the process is killed and the file hangs.
    """

    def __init__(
        self,
        decoder: str = DECODER,
        *,
        max_megapixels: float = 1.0,
        environment: Mapping[str, str] | None = None,
        wait_s: float = 60.0,
    ) -> None:
        self._command = [sys.executable, str(ROOT / "tests" / "support" / "decode_child.py")]
        self._command += [decoder, str(max_megapixels)]
        self._environment = {**os.environ, **(environment or {})}
        self._wait_s = wait_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restart()

    def restart(self) -> None:
        """Ends the process; the next file starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()

    def decode(self, data: bytes) -> Decoded:
        """What the decoder makes of a file."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<I", len(data)) + data)
            process.stdin.flush()
        except BrokenPipeError:
            return self._died()
        head = self._read(HEAD.size)
        if head is None:
            self.restart()
            return Decoded("hang", text=f"no answer within {self._wait_s:g} s")
        if len(head) < HEAD.size:
            return self._died()
        status, cpu_s, resident, address, length = HEAD.unpack(head)
        payload = process.stdout.read(length)
        cost = (cpu_s, resident, address)
        if status != PIXELS:
            kind: Kind = "refused" if status == REFUSED else "wrong_error"
            return Decoded(kind, None, payload.decode(), *cost)
        height, width = struct.unpack_from("<II", payload)
        pixels = np.frombuffer(payload, np.uint8, offset=8).reshape(height, width, 3)
        return Decoded("pixels", pixels, "", *cost)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                cwd=ROOT,
            )
        return self._process

    def _read(self, count: int) -> bytes | None:
        """That many bytes, fewer at the end of the stream, None when nothing comes in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._wait_s):
                return None
        return self._process.stdout.read(count)

    def _died(self) -> Decoded:
        process, self._process = self._process, None
        assert process is not None
        process.communicate()
        code = process.returncode
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Decoded("crash", text=name)


def memory_checks(perturb: int) -> dict[str, str]:
    """The environment in which glibc checks its heap and fills new and freed memory.

    Empty where the C library has no such checks (musl).
    """
    preload = MALLOC_DEBUG if _has_malloc_debug() else ""
    checks = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": str(perturb)}
    return {**checks, "LD_PRELOAD": preload} if preload else checks


def _has_malloc_debug() -> bool:
    if importlib.util.find_spec("ctypes") is None:
        return False
    import ctypes

    try:
        ctypes.CDLL(MALLOC_DEBUG)
    except OSError:
        return False
    return True
