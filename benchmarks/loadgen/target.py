"""What a load is sent to: any server that takes an encoded image and answers its label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

# rejected: the server said no for want of capacity or time. error: anything else but an answer.
Status = Literal["ok", "rejected", "error"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request; ``reason`` is the server's code of a refusal or an error."""

    status: Status
    reason: str = ""
    response_bytes: int = 0


class Target(Protocol):
    """One server behind one protocol. Calls come concurrently, on one event loop."""

    @property
    def title(self) -> str:
        """Names it in reports."""
        ...

    async def send(self, image: bytes) -> Outcome:
        """Sends one encoded image and waits for the end of it; failures are outcomes, not raised.

        A target that has a deadline sends it along.
        """
        ...

    async def close(self) -> None:
        """Ends its connections."""
        ...
