"""``segment`` of this server over HTTP."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from benchmarks.loadgen.target import Outcome

# Refusals for want of capacity or time; other statuses are errors.
REFUSALS = frozenset({408, 429, 503, 504})


class HttpTarget:
    """Keeps connections open, as many as requests are under way.

    Args:
        address: as ``http://127.0.0.1:8000``.
        deadline_s: sent along as ``X-Timeout-Ms``.
    """

    def __init__(
        self,
        address: str,
        model: str,
        *,
        form: str = "png",
        deadline_s: float | None = None,
        give_up_s: float = 60.0,
    ) -> None:
        self.url = f"{address}/v2/models/{model}/segment?format={form}"
        self.headers = {} if deadline_s is None else {"X-Timeout-Ms": f"{deadline_s * 1000:.0f}"}
        self.give_up = aiohttp.ClientTimeout(total=give_up_s)
        self._session: aiohttp.ClientSession | None = None

    @property
    def title(self) -> str:
        return "segserve HTTP"

    async def send(self, image: bytes) -> Outcome:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=self.give_up
            )
        try:
            async with self._session.post(self.url, data=image, headers=self.headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return Outcome("error", type(error).__name__)
        if answer.status == 200:
            return Outcome("ok", response_bytes=len(body))
        code = read_code(body) or str(answer.status)
        return Outcome("rejected" if answer.status in REFUSALS else "error", code, len(body))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def read_code(body: bytes) -> str:
    """``code`` of an error's JSON, "" where there is none."""
    try:
        return str(json.loads(body).get("code", ""))
    except (ValueError, AttributeError):
        return ""
