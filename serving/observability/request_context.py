"""The context of one HTTP request or gRPC call: who asks, its outcome, where its time went.

The context of the request that is being worked on is known everywhere below the transport, without
being passed on.
"""

from __future__ import annotations

import logging
import re
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns
from typing import Literal, TypeAlias

from serving.errors import SegserveError, drop_traceback
from serving.security.api_keys import KeyUse

log = logging.getLogger("segserve")

Transport: TypeAlias = Literal["http", "grpc"]
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
CACHE = "x-cache"
MAX_INTERVALS = 1000
STAGES = ("decode", "preprocess", "queue", "infer", "restore", "encode")
# Its header is read before, to choose a model and to refuse what is too large.
_IN_PARTS = "decode"
# Anything else could forge lines of a log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(frozen=True)
class Interval:
    """A part of the time of one stage; ``start`` is on ``time.perf_counter``."""

    stage: str
    start: float
    seconds: float


@dataclass
class Timings:
    """The seconds of each stage of one image, in the order of ``STAGES``."""

    seconds: dict[str, float] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes, also if it raises."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - start)

    def add(self, stage: str, seconds: float, *, ended_s_ago: float = 0.0) -> None:
        """Adds an interval that ended now, or ``ended_s_ago``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        ended = perf_counter() - ended_s_ago
        if stage == _IN_PARTS:
            # One span, of the length of all parts, that ends with the last.
            self.intervals = [known for known in self.intervals if known.stage != stage]
            seconds = self.seconds[stage]
        self.intervals.append(Interval(stage, ended - seconds, seconds))

    @property
    def server_timing(self) -> str:
        """Returns the ``Server-Timing`` header: milliseconds (W3C Server Timing)."""
        return ", ".join(
            f"{stage};dur={self.seconds[stage] * 1000:.2f}"
            for stage in STAGES
            if stage in self.seconds
        )


@dataclass
class RequestContext:
    """The context of one request, filled in while it is processed.

    Attributes:
        method: GET, POST, ...; of gRPC always POST.
        path: without the query.
        code: ``ok``, or the error's.
        key, holds_key: the caller's, and whether it counts the request among its concurrent ones.
        status: the HTTP status, or the name of the gRPC code.
        start, start_ns: when it began, on ``time.perf_counter`` and since the epoch.
        request_bytes, response_bytes: of the bodies or messages.
        images: that were answered.
        count_refusal: counts an error that a limit caused, under the name of a model.
        counted: the reasons for which it, or one of its images, was counted as refused.
        stages: seconds of each stage, over all images.
        intervals: what happened when, of the first images: a stream has no end.
        traceparent: of the request's span; empty without tracing.
        cache: ``hit`` where nothing had to be inferred, ``miss`` where something had; empty where
            the model keeps no results.
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
    count_refusal: Callable[[SegserveError, str], None] = lambda error, model: None
    counted: set[str] = field(default_factory=set)
    images: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    traceparent: str = ""
    cache: str = ""

    @property
    def key_name(self) -> str:
        return self.key.key.name if self.key else ""

    @property
    def response_headers(self) -> tuple[tuple[str, str], ...]:
        """Returns what its answer carries of it: names, in lower case, and values."""
        headers = (
            (REQUEST_ID, self.request_id), (TRACEPARENT, self.traceparent), (CACHE, self.cache),
        )  # fmt: skip
        return tuple((name, value) for name, value in headers if value or name == REQUEST_ID)

    def count_request(self) -> None:
        """Counts one request for the key; the first of a stream was counted when it was opened.

        Raises:
            KeyLimitExceeded: one too many.
        """
        self.requests += 1
        if self.key is not None and self.requests > 1:
            self.key.count()

    def note_images(self, model: str, version: int, timings: Sequence[Timings]) -> None:
        """Adds the images of a request, the model that answered and where the time went."""
        self.model, self.version = model, version
        self.images += len(timings)
        for image in timings:
            for stage, seconds in image.seconds.items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            if len(self.intervals) < MAX_INTERVALS:
                self.intervals += image.intervals


current_context: ContextVar[RequestContext | None] = ContextVar("current_context", default=None)


def report_error(error: SegserveError, model: str = "") -> None:
    """Reports the error that the current request is answered with; call it once, where it is
    written. Arguments as for :func:`count_refusal`.
    """
    note_error(error.code)
    count_refusal(error, model)


def note_error(code: str) -> None:
    """Sets the code of the current request."""
    context = current_context.get()
    if context is not None:
        context.code = code


def count_refusal(error: SegserveError, model: str = "") -> None:
    """Counts an error that a limit caused, for the ``model`` that was asked for, where known."""
    context = current_context.get()
    if context is not None:
        context.count_refusal(error, model)


def log_defect(error: Exception) -> None:
    """Logs what broke the request that is being worked on, with its id, in one record."""
    context = current_context.get()
    # Paths are percent-decoded, so a caller could put line ends into them.
    name = f"{context.path!a}, request {context.request_id}" if context else "a call"
    # As text: a record that a handler keeps would keep the frames, and the request in them.
    log.error("%s: %s", name, "".join(traceback.format_exception(error)).rstrip())
    drop_traceback(error)


def choose_request_id(given: str) -> str:
    """Returns the client's own id where it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
