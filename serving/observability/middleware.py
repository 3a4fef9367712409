"""What both transports do around every call: an id, a key, a span, a line in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.admission.pacing import RefusalPacer
from serving.errors import CANCELLED, INTERNAL, KeyLimitExceeded, Unauthenticated
from serving.observability.access_log import AccessLog
from serving.observability.log_stream import LogStream
from serving.observability.metrics import Metrics, counted_reasons
from serving.observability.request_context import (
    REQUEST_ID,
    TRACEPARENT,
    Call,
    Transport,
    choose_request_id,
    current_call,
)
from serving.observability.tracing import Tracing, open_tracing
from serving.security.api_keys import KeyRing
from serving.settings import Settings

BEARER = "bearer "


class Calls:
    """Begins, admits and ends the calls of one server.

    Raises:
        InvalidSetting: ``api_keys_file`` is broken, or ``tracing`` has no packages.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.metrics = metrics
        self.log_stream = LogStream(sys.stderr, metrics.log_lines_dropped.inc)
        self.pacer = RefusalPacer(settings.refusals_per_second)
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
    def call(
        self,
        transport: Transport,
        method: str,
        path: str,
        client: str,
        read: Callable[[str], str],
        *,
        is_probe: bool = False,
    ) -> Iterator[Call]:
        """Runs one call inside a ``with``: its id, its span, and at the end its line.

        Args:
            read: the value of a header or metadata of that lower-case name, or "".
            is_probe: comes every few seconds: it has no span, and a line only where it fails.
        """
        call = Call(transport, method, path, client, choose_request_id(read(REQUEST_ID)))
        call.count_refusal = self.metrics.count_refusal
        current_call.set(call)
        counted_reasons.set(call.counted)
        span = None
        if self.tracing is not None and not is_probe:
            span = self.tracing.begin(call, read(TRACEPARENT), read("tracestate"))
        try:
            yield call
        except BaseException as error:
            if not call.status:
                call.code = INTERNAL if isinstance(error, Exception) else CANCELLED
            raise
        finally:
            self._release_key(call)
            if self.tracing is not None and span is not None:
                self.tracing.end(call, span)
            if self.log is not None and not (is_probe and call.code in ("ok", "cancelled")):
                self.log.write(call)

    def admit(self, call: Call, read: Callable[[str], str]) -> None:
        """Finds the caller's key and counts the call for it; without a key file all may call.

        Raises:
            Unauthenticated: no key, or an unknown one.
            KeyLimitExceeded: too many calls of that key.
        """
        if self.keys is None:
            return
        try:
            use = self.keys.find(present(read))
            use.enter()
        except (Unauthenticated, KeyLimitExceeded) as error:
            self.metrics.count_refusal(error)
            raise
        # Only now: what has not entered must not leave.
        call.key = use
        call.holds_key = True

    async def delay_refusal(self, call: Call, longest_s: float) -> None:
        """Waits until a refusal may leave; meanwhile the call is none of its key's ``concurrent``.

        Args:
            longest_s: the longest wait that its caller has time for.
        """
        self._release_key(call)
        await self.pacer.wait(longest_s)

    def _release_key(self, call: Call) -> None:
        if call.key is not None and call.holds_key:
            call.holds_key = False
            call.key.leave()

    def check_key(self, call: Call) -> None:
        """Checks that the key of a call that goes on for long is still in the file.

        Raises:
            Unauthenticated: it was taken out of it.
        """
        if self.keys is not None and call.key is not None:
            self.keys.check(call.key)

    def close(self) -> None:
        """Sends what spans are left, and writes what lines are."""
        if self.tracing is not None:
            self.tracing.close()
        self.log_stream.close()


def present(read: Callable[[str], str]) -> str:
    """The key that a caller presents, "" for none."""
    authorization = read("authorization")
    if authorization[: len(BEARER)].lower() == BEARER:
        return authorization[len(BEARER) :].strip()
    return read("x-api-key").strip()
