"""Returns memory that glibc's allocator keeps to the system, after large requests.

What is freed stays with the process in two ways. Blocks below the allocator's limit for blocks of
their own lie in its heaps, of which it returns only the end; and that limit grows with what is
freed. After some messages of 20 MB that is hundreds of megabytes, which never leave by themselves.

``malloc_trim`` returns what is free inside of every heap, and the end of the main one alone: the
end of another goes back when that heap's next large block is freed, down to ``KEPT_END_BYTES``.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Images and answers of everyday sizes are below this limit, and reused.
LARGE_BLOCK_BYTES: Final = 16 << 20
# What every heap keeps at its end, for the next request: 2 MP in CPU time as with 32 MiB, 4.8 MP
# 500 page faults more (1 MiB: 2 ms of CPU more at 2 MP). gRPC's threads use four heaps and more.
KEPT_END_BYTES: Final = 4 << 20
CHECK_S: Final = 2.0
# So much more than after the last time is worth it.
WORTH_BYTES: Final = 8 << 20
# Giving back holds the locks of the heaps: 0.3 ms where there is nothing to give, 30 to 250 ms for
# hundreds of megabytes. So it waits for a quiet moment; where none comes, for this long.
LONGEST_S: Final = 30.0
# Connections, and what they hold, are freed some seconds after the last answer. What is still held
# then may be in use for good, as a model: it is tried after twice the time, up to the longest.
AGAIN_S, LONGEST_AGAIN_S = 6.0, 384.0


class MemoryReturner:
    """A thread that looks every two seconds whether the process has grown, and then, once it is
    quiet, lets the allocator return what is free.

    Args:
        read_resident: bytes of the process that are in memory.
        trim: returns memory.
    """

    def __init__(
        self,
        read_resident: Callable[[], int],
        trim: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_resident = read_resident
        self._trim = trim
        self._clock = clock
        self._settled = self._last = self._lowest = 0
        self._was_worth_it = False
        self._again_s = AGAIN_S
        self._trimmed = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        """Starts the thread; what the process holds now is what it is to come back to."""
        with suppress(OSError):
            self.check()
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, which is not waited for: it may be giving memory back."""
        self._ended.set()

    def check(self) -> None:
        """Returns memory where that is worth it now."""
        resident = self._read_resident()
        is_quiet = abs(resident - self._last) < WORTH_BYTES
        self._last = resident
        self._settled = min(self._settled, resident) if self._settled else resident
        self._lowest = min(self._lowest, resident) if self._lowest else resident
        if not is_quiet:
            self._again_s = AGAIN_S
        waited_s = self._clock() - self._trimmed
        has_grown = resident >= self._settled + WORTH_BYTES
        # The last time may have been in the midst of requests, which held what is free by now.
        is_unsure = self._was_worth_it or resident >= self._lowest + WORTH_BYTES
        if not has_grown and not (is_unsure and waited_s >= self._again_s):
            return
        if not is_quiet and waited_s < LONGEST_S:
            return
        self._trim()
        self._trimmed = self._clock()
        self._settled = self._last = self._read_resident()
        self._was_worth_it = resident - self._settled >= WORTH_BYTES // 4
        is_first = has_grown or self._was_worth_it
        self._again_s = AGAIN_S if is_first else min(2.0 * self._again_s, LONGEST_AGAIN_S)

    def _run(self) -> None:
        while not self._ended.wait(CHECK_S):
            # Where no file is left to be opened nothing is known: the next check may know more.
            with suppress(OSError):
                self.check()


def open_memory_returner() -> MemoryReturner | None:
    """Sets the allocator's limits and opens a returner of memory; None without glibc."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        trim, read_resident = libc.malloc_trim, _read_resident
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        # Setting these stops glibc from raising the first.
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_END_BYTES)
        libc.mallopt(M_TOP_PAD, KEPT_END_BYTES)
        read_resident()
        return MemoryReturner(read_resident, lambda: trim(0))
    return None


def _read_resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
