"""Every HTTP request passes here first: its id, its key, its span, its line in the log."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.calls.calls import Calls
from serving.door import Door
from serving.errors import SegserveError, TooManyRequests, Unauthenticated, code_of_http
from serving.http.door import read_announced

# Without a key, and not in the log, which probes every few seconds would drown.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/metrics"})
# Without a key: a browser has none to send before the page is there to type it into.
PAGE_PATH = "/"


class CallMiddleware:
    """ASGI middleware around the whole application.

    What is refused here leaves its body unread: the connection drops it (``http/connection.py``).
    """

    def __init__(self, app: ASGIApp, calls: Calls, door: Door) -> None:
        self.app = app
        self.calls = calls
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, str] = {
            name: value.decode("latin-1") for name, value in reversed(scope["headers"])
        }

        def read(name: str) -> str:
            return headers.get(name.encode(), "")

        client = scope["client"][0] if scope["client"] else ""
        with self.calls.call("http", scope["method"], scope["path"], client, read) as call:
            # A client that waits for 100 (Continue) may send its body or not: nobody knows what
            # comes next on its connection (RFC 9110, 10.1.1).
            may_wait = bool(read("expect"))

            async def receive_counted() -> Message:
                nonlocal may_wait
                may_wait = False
                message = await receive()
                call.request_bytes += len(message.get("body", b""))
                return message

            async def send_marked(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.status = str(message["status"])
                    if message["status"] >= 400 and call.code == "ok":
                        call.code = code_of_http(message["status"])
                    marked = MutableHeaders(raw=message["headers"])
                    for name, value in call.marks:
                        marked[name] = value
                    if may_wait:
                        marked["Connection"] = "close"
                elif message["type"] == "http.response.body":
                    call.response_bytes += len(message.get("body", b""))
                await send(message)

            try:
                if scope["path"] != PAGE_PATH:
                    self.calls.admit(call, read)
                announced = read_announced(scope, headers)
                if announced is not None:
                    self.door.check(announced, "http")
            except SegserveError as error:
                call.code = error.code
                await show(error)(scope, receive_counted, send_marked)
                return
            await self.app(scope, receive_counted, send_marked)


def show(error: SegserveError) -> JSONResponse:
    """The answer that an error becomes."""
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = error.retry_after
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        {"error": str(error), "code": error.code}, error.http_status, headers=headers
    )
