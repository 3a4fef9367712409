"""What the answer to one HTTP request is written to, in place of the connection's transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class AnswerWriter:
    """Sends an answer's head with what follows at once: a call of the kernel costs more than to
    make most bodies.

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
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        elif self._has_begun:
            self._transport.write(data)
        else:
            self._has_begun, self._held = True, data
            self._loop.call_soon(self._flush)

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
