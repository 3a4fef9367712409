"""Surrounds every request on both transports: an id, a key, a span, a line in the log.

Refusals are paced once they come in floods, so that they leave time for answers.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import CANCELLED, INTERNAL, SegserveError
from serving.observability.access_log import AccessLog
from serving.observability.log_stream import LogStream
from serving.observability.metrics import UNKNOWN_MODEL, Metrics
from serving.observability.request_context import (
    REQUEST_ID,
    TRACEPARENT,
    RequestContext,
    Transport,
    choose_request_id,
    current_context,
)
from serving.observability.tracing import Tracing, open_tracing
from serving.security.api_keys import KeyRing
from serving.settings import Settings

BEARER = "bearer "
# A refusal waits no longer: many clients give up after five seconds, and would come back.
MAX_DELAY_S = 4.0
# Refusals that come at once, in seconds of the rate.
BURST_S = 1.0


class RefusalPacer:
    """A pacer that lets refusals leave at a bounded rate; the first of a burst are not held at all.

    A caller that asks again as soon as it is refused, whatever Retry-After says, gets its next
    refusal only after this one: who waits for a refusal does not ask meanwhile. So callers in a
    closed loop cannot spend more of the server's time on refusals than the rate allows, however
    many they are. Those that are held take a connection each and nothing more.

    Args:
        per_second: refusals that leave without delay.
        clock: seconds, as ``time.monotonic``.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1.0 / per_second
        self._clock = clock
        # When the bucket, which holds BURST_S, would be full again.
        self._due = clock()

    def reserve(self, longest_s: float) -> float:
        """Counts a refusal; returns the seconds that it has to wait, at most ``longest_s``."""
        now = self._clock()
        longest_s = min(longest_s, MAX_DELAY_S)
        delay_s = max(0.0, self._due - now - BURST_S)
        self._due = max(self._due, now) + self._interval_s
        # A flood that would have to wait longer leaves no debt behind.
        self._due = min(self._due, now + BURST_S + MAX_DELAY_S)
        return min(delay_s, longest_s)

    async def wait(self, longest_s: float) -> None:
        """Counts a refusal, and returns when it may leave."""
        delay_s = self.reserve(longest_s)
        if delay_s > 0.0:
            await asyncio.sleep(delay_s)


class RequestContexts:
    """The contexts of one server's requests: begins, admits and ends them.

    Args:
        label: a model's name as a metric label.

    Raises:
        InvalidSetting: ``api_keys_file`` is broken, or ``tracing`` has no packages.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        label: Callable[[str], str] = lambda name: UNKNOWN_MODEL,
    ) -> None:
        self._metrics = metrics
        self._label = label
        self.log_stream = LogStream(sys.stderr, metrics.log_lines_dropped.inc)
        self._pacer = RefusalPacer(settings.refusals_per_second)
        self.keys = (
            KeyRing(settings.api_keys_file, time.monotonic) if settings.api_keys_file else None
        )
        self.log = (
            AccessLog(settings.access_log, self.log_stream)
            if settings.access_log != "none"
            else None
        )
        self.tracing: Tracing | None = open_tracing() if settings.tracing else None

    @contextmanager
    def begin(
        self,
        transport: Transport,
        method: str,
        path: str,
        client: str,
        read: Callable[[str], str],
        *,
        is_probe: bool = False,
    ) -> Iterator[RequestContext]:
        """Surrounds one request: its id, its span, and at the end its line.

        Args:
            read: returns the value of a header or metadata of that lower-case name, or "".
            is_probe: comes every few seconds: it has no span, and a line only where it fails.
        """
        context = RequestContext(
            transport, method, path, client, choose_request_id(read(REQUEST_ID))
        )
        context.count_refusal = self._count_refusal
        current_context.set(context)
        span = None
        if self.tracing is not None and not is_probe:
            span = self.tracing.begin(context, read(TRACEPARENT), read("tracestate"))
        try:
            yield context
        except BaseException as error:
            if not context.status:
                context.code = INTERNAL if isinstance(error, Exception) else CANCELLED
            raise
        finally:
            self._release_key(context)
            if self.tracing is not None and span is not None:
                self.tracing.end(context, span)
            if self.log is not None and not (is_probe and context.code in ("ok", "cancelled")):
                self.log.write(context)

    def _count_refusal(self, error: SegserveError, model: str) -> None:
        if error.reason:
            self._metrics.reject(error.reason, self._label(model))

    def admit(self, context: RequestContext, read: Callable[[str], str]) -> None:
        """Finds the caller's key and counts the request for it; without a key file all may ask.

        Raises:
            Unauthenticated: no key, or an unknown one.
            KeyLimitExceeded: too many requests of that key.
        """
        if self.keys is None:
            return
        use = self.keys.find(read_key(read))
        use.enter()
        # Only now: what has not entered must not leave.
        context.key = use
        context.holds_key = True

    async def delay_refusal(self, context: RequestContext, longest_s: float) -> None:
        """Waits until a refusal may leave; its key's ``concurrent`` does not count it meanwhile.

        Args:
            longest_s: the longest wait that its caller has time for.
        """
        self._release_key(context)
        await self._pacer.wait(longest_s)

    def _release_key(self, context: RequestContext) -> None:
        if context.key is not None and context.holds_key:
            context.holds_key = False
            context.key.leave()

    def check_key(self, context: RequestContext) -> None:
        """Checks that the key of a request that lasts long is still in the file.

        Raises:
            Unauthenticated: it has been removed.
        """
        if self.keys is not None and context.key is not None:
            self.keys.check(context.key)

    def close(self) -> None:
        """Sends the spans and writes the lines that are left."""
        if self.tracing is not None:
            self.tracing.close()
        self.log_stream.close()


def read_key(read: Callable[[str], str]) -> str:
    """Returns the key that a caller presents, "" for none."""
    authorization = read("authorization")
    if authorization[: len(BEARER)].lower() == BEARER:
        return authorization[len(BEARER) :].strip()
    return read("x-api-key").strip()
