"""Wraps every HTTP request: its id, its key, its span, its line in the log."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission.admission import Admission, RequestHead
from serving.errors import (
    INTERNAL,
    Internal,
    InvalidRequest,
    SegserveError,
    TooManyRequests,
    Unauthenticated,
    code_of_http,
)
from serving.http.body import TIMEOUT_HEADER, parse_timeout
from serving.http.options import read_formats
from serving.observability.middleware import RequestContexts
from serving.observability.request_context import log_defect, report_error
from serving.parsing import parse_version, read_length

# Without a key, and not in the log, which probes every few seconds would drown.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/metrics"})
# Without a key: a browser has none to send before the page is there to type it into, and OPTIONS
# of the whole server (``*``) reveals nothing about it.
KEYLESS_PATHS = frozenset({"/", "*"})
# A request is refused by its head before FastAPI has matched a route, which would cost more than
# the refusal; a test holds that this matches the routes of ``segment`` and ``infer`` alone.
INFERENCE_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/(segment|infer)")
_TIMEOUT = TIMEOUT_HEADER.lower().encode()


class CallMiddleware:
    """ASGI middleware around the whole application.

    What is refused here leaves its body unread: the connection drops it (``http/connection.py``).
    """

    def __init__(self, app: ASGIApp, contexts: RequestContexts, admission: Admission) -> None:
        self.app = app
        self.contexts = contexts
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        routed = {**scope, "method": route_method(scope["method"], scope["path"])}
        if scope["path"] in OPEN_PATHS:
            await self.app(routed, receive, send)
            return
        headers: dict[bytes, str] = {
            name: value.decode("latin-1") for name, value in reversed(scope["headers"])
        }

        def read(name: str) -> str:
            return headers.get(name.encode(), "")

        client = scope["client"][0] if scope["client"] else ""
        with self.contexts.begin("http", scope["method"], scope["path"], client, read) as context:
            is_begun = False

            async def receive_counted() -> Message:
                message = await receive()
                context.request_bytes += len(message.get("body", b""))
                return message

            async def send_marked(message: Message) -> None:
                nonlocal is_begun
                if message["type"] == "http.response.start":
                    is_begun = True
                    context.status = str(message["status"])
                    if message["status"] >= 400 and context.code == "ok":
                        context.code = code_of_http(message["status"])
                    marked = MutableHeaders(raw=message["headers"])
                    for name, value in context.response_headers:
                        marked[name] = value
                    if "location" in marked:
                        # Of a path with a slash too many. Scheme and host stay the client's own:
                        # those that a header names may be another's, or without TLS.
                        marked["location"] = _drop_origin(marked["location"])
                    if message["status"] == 429:
                        longest_s = longest_wait(read(TIMEOUT_HEADER.lower()))
                        await self.contexts.delay_refusal(context, longest_s)
                elif message["type"] == "http.response.body" and scope["method"] != "HEAD":
                    context.response_bytes += len(message.get("body", b""))
                await send(message)

            model = ""
            try:
                if scope["path"] not in KEYLESS_PATHS:
                    self.contexts.admit(context, read)
                head = read_head(routed, headers)
                if head is not None:
                    model = head.model
                    self.admission.check_head(head, "http")
            except SegserveError as error:
                report_error(error, model)
                await show(error)(routed, receive_counted, send_marked)
                return
            try:
                await self.app(routed, receive_counted, send_marked)
            except Exception as error:
                # Where the answer has begun, the connection breaks it off.
                if is_begun:
                    raise
                log_defect(error)
                context.code = INTERNAL
                await show(Internal())(routed, receive_counted, send_marked)


def route_method(method: str, path: str) -> str:
    """Returns the method whose route answers.

    HEAD is answered wherever GET is, by a GET whose body the connection leaves out. An upload as
    ``curl -T`` sends it (PUT) is taken as POST.
    """
    if method == "HEAD":
        return "GET"
    if method == "PUT" and INFERENCE_PATH.fullmatch(path):
        return "POST"
    return method


def longest_wait(timeout_ms: str) -> float:
    """Returns the seconds that a refusal may wait for a caller with that ``X-Timeout-Ms``: half
    of its deadline, so that it still comes in time."""
    try:
        timeout_s = parse_timeout(timeout_ms or None)
    except InvalidRequest:
        timeout_s = None
    return math.inf if timeout_s is None else timeout_s / 2.0


def show(error: SegserveError) -> JSONResponse:
    """Returns the answer that an error becomes."""
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = error.retry_after
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        {"error": str(error), "code": error.code}, error.http_status, headers=headers
    )


def _drop_origin(url: str) -> str:
    """Returns a URL without its origin: ``http://host/path?query`` -> ``/path?query``."""
    return urlunsplit(("", "", *urlsplit(url)[2:]))


def read_head(scope: Scope, headers: Mapping[bytes, str]) -> RequestHead | None:
    """Returns what the head of an inference says; None where the request is not one, or not one
    that can be answered."""
    path = INFERENCE_PATH.fullmatch(scope["path"])
    if path is None or scope["method"] != "POST":
        return None
    model, version, operation = path.groups()
    try:
        number = parse_version(version or "")
        timeout_s = parse_timeout(headers.get(_TIMEOUT))
        formats: tuple[str, ...] = ()
        if operation == "segment":
            formats = read_formats(scope["query_string"], headers.get(b"accept", ""))
        request_bytes = read_length(headers.get(b"content-length", "0").strip(), "Content-Length")
    except InvalidRequest:
        return None
    if operation == "infer":
        return RequestHead(model, number, timeout_s, request_bytes=request_bytes)
    return RequestHead(model, number, timeout_s, 0, formats, request_bytes)
