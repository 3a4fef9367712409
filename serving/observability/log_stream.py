"""A text stream that never makes its writer wait: a thread of its own writes what it is given.

stderr is mostly a pipe. Where its reader is alive but stuck, the pipe fills up, and the next
write waits for as long as that lasts; on the event loop it would stop every request, and health.
"""

from __future__ import annotations

import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

MAX_PENDING_LINES = 10_000
MAX_PENDING_BYTES = 1 << 22
# A pipe takes so much in one piece (PIPE_BUF): what other processes write does not cut it apart.
PIECE_BYTES = 4096
# For what is left at the end, where the reader is slow.
DRAIN_S = 2.0


class LogStream:
    """A stream that writes to another one from a thread, which starts with the first line.

    The thread writes to the stream's file descriptor itself: one that waits there holds no lock
    that the end of the interpreter, or another writer, could wait for.

    Args:
        stream: mostly ``sys.stderr``; what is given to None is dropped.
        count_dropped: called for each write that was dropped, from any thread.
    """

    def __init__(
        self, stream: TextIO | None, count_dropped: Callable[[], object] = lambda: None
    ) -> None:
        self._stream = stream
        self.count_dropped = count_dropped
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._is_writing = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def encoding(self) -> str:
        """Returns what text is written as."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Returns whether somebody reads along: colours are for them."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Returns the descriptor; raises io.UnsupportedOperation where there is none."""
        if self._stream is None:
            raise io.UnsupportedOperation("there is no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Takes whole lines; drops them where too many wait already."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            is_full = (
                self._is_closed
                or len(self._pending) >= MAX_PENDING_LINES
                or self._pending_bytes + len(data) > MAX_PENDING_BYTES
            )
            if not is_full:
                self._pending.append(data)
                self._pending_bytes += len(data)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        if is_full:
            self.count_dropped()
        return len(text)

    def flush(self) -> None:
        """Does nothing: :meth:`drain` waits."""

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Waits until all is written, at most ``timeout_s``; returns whether it is."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._pending or self._is_writing:
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    return False
        return True

    def close(self, timeout_s: float = DRAIN_S) -> None:
        """Waits as :meth:`drain` does, and ends the thread; what is written later is dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.drain(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._pending:
                    if self._is_closed:
                        return
                    self._changed.wait()
                piece = self._take()
                self._is_writing = True
            for _ in range(len(piece) - self._write(piece)):
                self.count_dropped()

    def _take(self) -> list[bytes]:
        """Removes what is written next: as many lines as make a piece, at least one."""
        piece = [self._pending.popleft()]
        size = len(piece[0])
        while self._pending and size + len(self._pending[0]) <= PIECE_BYTES:
            piece.append(self._pending.popleft())
            size += len(piece[-1])
        self._pending_bytes -= size
        return piece

    def _write(self, piece: list[bytes]) -> int:
        """Writes lines; returns how many: none where the disk is full or the reader has ended."""
        data = b"".join(piece)
        # ValueError: the stream was closed.
        with suppress(OSError, ValueError):
            try:
                target = self.fileno()
            except io.UnsupportedOperation:
                if self._stream is None:
                    return 0
                self._stream.write(data.decode(self.encoding))
                self._stream.flush()
                return len(piece)
            while data:
                try:
                    data = data[os.write(target, data) :]
                except BlockingIOError:
                    # Whoever shares it has set it so.
                    select.select([], [target], [])
            return len(piece)
        return 0
