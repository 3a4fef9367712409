"""What the answer to one HTTP request is written to, in place of the connection's transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# asyncio's own transport joins what is written together, and a large body is not to be copied.
MAX_JOINED_BYTES = 1 << 16


class AnswerWriter:
    """Sends an answer's head and a small body in one call of the kernel: it costs more than to
    make them.

    Args:
        close: called where the transport would be closed, behind all that was written.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        self._held = b""
        self._has_begun = False

    def write(self, data: bytes) -> None:
        """The first is held until the second, or until the event loop's next turn."""
        if not self._has_begun:
            self._has_begun, self._held = True, data
            self._loop.call_soon(self._flush)
        elif self._held and len(data) <= MAX_JOINED_BYTES:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        else:
            self._flush()
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more reaches the client."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Nothing more is written."""
        self._flush()
        self._close()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)
