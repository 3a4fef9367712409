"""One HTTP request or gRPC call: who asks, what became of it, where its time went.

The call that is being worked on is known everywhere below the transport, without being passed on.
"""

from __future__ import annotations

import logging
import re
import secrets
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from typing import Literal, TypeAlias

from serving.errors import SegserveError, drop_traceback
from serving.observability.metrics import Interval, Timings
from serving.security.api_keys import KeyUse

log = logging.getLogger("segserve")

Transport: TypeAlias = Literal["http", "grpc"]
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
MAX_INTERVALS = 1000
# Anything else could forge lines of a log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass
class Call:
    """Filled in while it goes on.

    Attributes:
        method: GET, POST, ...; of gRPC always POST.
        path: without the query.
        code: ``ok``, or the error's.
        key, holds_key: the caller's, and whether the call counts among its concurrent ones.
        status: the HTTP status, or the name of the gRPC code.
        start, start_ns: when it began, on ``time.perf_counter`` and since the epoch.
        request_bytes, response_bytes: of the bodies or messages.
        images: that were answered.
        count_refusal: of the server's metrics.
        counted: the reasons for which it, or one of its images, was counted as refused.
        stages: seconds of each stage, over all images.
        intervals: what happened when, of the first images: a stream has no end.
        traceparent: of the span that stands for the call; empty without tracing.
    """

    transport: Transport
    method: str
    path: str
    client: str
    request_id: str
    start: float = field(default_factory=perf_counter)
    start_ns: int = field(default_factory=time_ns)
    key: KeyUse | None = None
    holds_key: bool = False
    model: str = ""
    version: int = 0
    status: str = ""
    code: str = "ok"
    request_bytes: int = 0
    response_bytes: int = 0
    requests: int = 0
    count_refusal: Callable[[SegserveError], None] = lambda error: None
    counted: set[str] = field(default_factory=set)
    images: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    traceparent: str = ""

    @property
    def key_name(self) -> str:
        return self.key.key.name if self.key else ""

    @property
    def marks(self) -> tuple[tuple[str, str], ...]:
        """What an answer carries of it: names, in lower case, and values."""
        marks = ((REQUEST_ID, self.request_id), (TRACEPARENT, self.traceparent))
        return marks if self.traceparent else marks[:1]

    def count_request(self) -> None:
        """Each request of a stream counts for its key; the first was counted with the call.

        Raises:
            KeyLimitExceeded: one too many.
        """
        self.requests += 1
        if self.key is not None and self.requests > 1:
            self.key.count()

    def note(self, model: str, version: int, timings: Sequence[Timings]) -> None:
        """Notes the model that answered and where the time went."""
        self.model, self.version = model, version
        self.images += len(timings)
        for image in timings:
            for stage, seconds in image.seconds.items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            if len(self.intervals) < MAX_INTERVALS:
                self.intervals += image.intervals


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def note_error(code: str) -> None:
    """Notes an error's code in the call that is being worked on."""
    call = current_call.get()
    if call is not None:
        call.code = code


def log_defect(error: Exception) -> None:
    """Logs what broke the call that is being worked on, with the call's id, in one record."""
    call = current_call.get()
    # Paths are percent-decoded, so a caller could put line ends into them.
    name = f"{call.path!a}, request {call.request_id}" if call else "a call"
    # As text: a record that a handler keeps would keep the frames, and the request in them.
    log.error("%s: %s", name, "".join(traceback.format_exception(error)).rstrip())
    drop_traceback(error)


def note_refusal(error: SegserveError) -> None:
    """Counts an error that a limit caused, before the client knows of it."""
    call = current_call.get()
    if call is not None:
        call.count_refusal(error)


def choose_request_id(given: str) -> str:
    """The client's own id where it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
