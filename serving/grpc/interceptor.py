"""Every gRPC call of every service passes here: its id, key, limits, messages, and its end.

gRPC hands over bytes and takes bytes; what a servicer sees is a message that was found small enough
to be parsed, and what it raises becomes a status here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError, Message
from segserve_client.proto import segserve_pb2 as pb
from tritonclient.grpc import service_pb2 as oip

from serving.admission.admission import Admission
from serving.errors import (
    DeadlineExceeded,
    HeaderTooLarge,
    InvalidRequest,
    SegserveError,
    TooLarge,
    TooManyRequests,
    code_of_grpc,
    drop_traceback,
)
from serving.grpc.open_calls import Lane, OpenCall, OpenCalls
from serving.grpc.status import (
    INLINE_BYTES,
    MARGIN_S,
    Context,
    cancelled_by_itself,
    end_call,
    fail_call,
    run_sized,
    time_left,
)
from serving.grpc.wire import NOT_A_MESSAGE, Shape, list_wanted, read_head, scan, shape_of
from serving.observability.middleware import RequestContexts
from serving.observability.request_context import RequestContext, report_error
from serving.settings import Settings

# What an entry takes beside its letters, as HTTP/2 counts (RFC 7541, 4.1).
ENTRY_BYTES = 32
# gRPC's clients send their timeouts with two or three digits, rounded up.
ROUNDED_UP_SHARE = 0.01
# Without a key, as over HTTP.
OPEN_METHODS = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)

# All others are names and numbers.
IMAGE_MESSAGES = (pb.SegmentRequest.DESCRIPTOR.name, oip.ModelInferRequest.DESCRIPTOR.name)

Run = Callable[[object, Context], Awaitable[None]]


@dataclass(frozen=True)
class _Method:
    """A method of a service and how it is served.

    Attributes:
        is_open: it takes no key, and is in the log only where it fails.
        request: what its messages may hold.
    """

    name: str
    handler: grpc.RpcMethodHandler
    is_open: bool
    lane: Lane
    request: Shape

    @property
    def is_stream(self) -> bool:
        return bool(self.handler.request_streaming)

    @property
    def takes_images(self) -> bool:
        """Returns whether its messages may be as large as images."""
        return self.request.name in IMAGE_MESSAGES


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server and applies the limits, named and counted.

    gRPC's own are silent, so they stand at the double: see ``grpc/server.py``.
    """

    def __init__(
        self,
        contexts: RequestContexts,
        settings: Settings,
        admission: Admission,
        pool: Executor,
        open_calls: OpenCalls,
    ) -> None:
        self.contexts = contexts
        self.settings = settings
        self.admission = admission
        self.pool = pool
        self.open_calls = open_calls
        self._wrapped: dict[str, grpc.RpcMethodHandler] = {}
        # A parser keeps the interpreter to itself: one at a time, and the loop runs in between.
        self._parsing = asyncio.Lock()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Returns the handler that was found, wrapped; None where there is none."""
        handler = await continuation(details)
        if handler is None:
            return None
        wrapped = self._wrapped.get(details.method)
        if wrapped is None:
            wrapped = self._wrapped[details.method] = self._wrap(details.method, handler)
        return wrapped

    def _wrap(self, name: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        is_open = name.startswith(OPEN_METHODS)
        lane = self.open_calls.calls
        if is_open:
            lanes = self.open_calls
            lane = lanes.watches if handler.response_streaming else lanes.probes
        method = _Method(name, handler, is_open, lane, find_shape(handler))

        async def run(messages: object, context: Context) -> None:
            await self._run(method, context)

        # Also what has one message: gRPC would receive it before anybody is asked, and would send
        # an answer, which a client may refuse to read, when nobody counts the call any more.
        return grpc.stream_stream_rpc_method_handler(run)

    async def _run(self, method: _Method, context: Context) -> None:
        with self._call(method, context) as (call, read):
            opened: OpenCall | None = None
            deadline = find_deadline(context)
            try:
                opened = self.open_calls.enter(method.lane, call.client, is_stream=method.is_stream)
                try:
                    self._check_metadata(context)
                    if not method.is_open:
                        self.contexts.admit(call, read)
                        opened.check_key = lambda: self.contexts.check_key(call)
                    await self._serve(method, call, opened, context)
                except SegserveError as error:
                    report_error(error, opened.model)
                    if isinstance(error, TooManyRequests):
                        # Nothing of the message is kept while its refusal waits.
                        drop_traceback(error)
                        left = context.time_remaining()
                        longest_s = math.inf if left is None else left / 2.0
                        await self.contexts.delay_refusal(call, longest_s)
                    raise
            except SegserveError as error:
                if opened is None:
                    report_error(error)
                await end_call(context, error)
            except asyncio.CancelledError:
                if opened is not None and opened.error is not None:
                    cancelled_by_itself(opened.task)
                    report_error(opened.error)
                    await end_call(context, opened.error)
                    return
                self._note_cancelled(call, deadline)
                raise
            except Exception as error:
                await fail_call(context, error)
            finally:
                if opened is not None:
                    self.open_calls.leave(opened)
                    # It holds this call's key and task, and they, by way of this frame, it.
                    opened.check_key = None

    async def _serve(
        self, method: _Method, call: RequestContext, opened: OpenCall, context: Context
    ) -> None:
        handler = method.handler
        if method.is_stream:
            await context.send_initial_metadata(call.response_headers)
            requests = self._receive_all(method, call, opened, context)
            if handler.response_streaming:
                await self._send_all(handler.stream_stream(requests, context), handler, call,
                                     opened, context)  # fmt: skip
            else:
                response = await handler.stream_unary(requests, context)
                await self._send(response, handler, call, opened, context)
            return
        request = await self._receive_one(method, call, opened, context)
        if handler.response_streaming:
            await context.send_initial_metadata(call.response_headers)
            await self._send_all(handler.unary_stream(request, context), handler, call, opened,
                                 context)  # fmt: skip
            return
        response = await handler.unary_unary(request, context)
        await context.send_initial_metadata(call.response_headers)
        await self._send(response, handler, call, opened, context)

    @contextmanager
    def _call(
        self, method: _Method, context: Context
    ) -> Iterator[tuple[RequestContext, Callable[[str], str]]]:
        metadata = dict(context.invocation_metadata() or ())

        def read(name: str) -> str:
            value = metadata.get(name, "")
            return value if isinstance(value, str) else ""

        address = read_address(context.peer())
        with self.contexts.begin(
            "grpc", "POST", method.name, address, read, is_probe=method.is_open
        ) as call:
            try:
                yield call, read
            finally:
                if not call.status:
                    call.status = name_status(context.code())
                if call.status != "OK" and call.code == "ok":
                    call.code = code_of_grpc(call.status)

    def _note_cancelled(self, call: RequestContext, deadline: float | None) -> None:
        """Notes why gRPC ended a call: its deadline passed, or its client left."""
        call.status, call.code = "CANCELLED", "cancelled"
        if has_passed(deadline):
            late = DeadlineExceeded("the call's deadline passed", reason="deadline")
            call.status, call.code = late.grpc_code.name, late.code
            # Its deadline may have refused one of its images a moment ago.
            if "deadline" not in call.counted:
                call.count_refusal(late, "")

    async def _receive_one(
        self, method: _Method, call: RequestContext, opened: OpenCall, context: Context
    ) -> Message:
        """Returns the one message of a call, unless it is refused before it is parsed.

        Raises:
            SegserveError: as ``scan`` and ``_parse``, and what is certain from the head.
        """
        deadline = find_deadline(context)
        data = await context.read()
        if data is grpc.aio.EOF:
            # A call that gRPC has ended looks the same, a moment before this task is cancelled.
            await asyncio.sleep(0)
            if has_passed(deadline):
                raise DeadlineExceeded(
                    "the deadline passed before the message came", reason="deadline"
                )
            raise InvalidRequest("the call ended before its message; send one")
        opened.note_message()
        call.request_bytes = len(data)
        self._check_size(method, data)
        scanned = scan(data, method.request, list_wanted(method.name))
        head = read_head(method.name, scanned.fields, time_left(context), len(data))
        if head is not None:
            opened.model = head.model
            self.admission.check_head(head, "grpc")
        return await self._parse(method, scanned.data)

    async def _receive_all(
        self, method: _Method, call: RequestContext, opened: OpenCall, context: Context
    ) -> AsyncIterator[Message]:
        while (data := await context.read()) is not grpc.aio.EOF:
            opened.note_message()
            if opened.check_key is not None:
                opened.check_key()
            call.request_bytes += len(data)
            self._check_size(method, data)
            message = await self._parse(method, scan(data, method.request).data)
            # Not kept while the next one is waited for.
            del data
            yield message
            del message

    async def _parse(self, method: _Method, data: bytes) -> Message:
        """Returns the message in ``data``, which was scanned before.

        Raises:
            InvalidRequest: the bytes are not a message of this call.
        """
        if len(data) <= INLINE_BYTES:
            return parse(method.handler, data)
        async with self._parsing:
            return await run_sized(self.pool, False, parse, method.handler, data)

    async def _send_all(
        self,
        answers: AsyncIterator[Message],
        handler: grpc.RpcMethodHandler,
        call: RequestContext,
        opened: OpenCall,
        context: Context,
    ) -> None:
        async with aclosing(answers):  # type: ignore[type-var]
            async for response in answers:
                await self._send(response, handler, call, opened, context)
                del response

    async def _send(
        self,
        response: Message,
        handler: grpc.RpcMethodHandler,
        call: RequestContext,
        opened: OpenCall,
        context: Context,
    ) -> None:
        """Sends one answer; the client may take its time, up to ``send_timeout_s``."""
        is_small = response.ByteSize() <= INLINE_BYTES
        data: bytes = await run_sized(self.pool, is_small, handler.response_serializer, response)
        call.response_bytes += len(data)
        opened.note_sending(done=False)
        await context.write(data)
        opened.note_sending(done=True)

    def _check_size(self, method: _Method, data: bytes) -> None:
        setting = "max_request_bytes" if method.takes_images else "max_control_bytes"
        limit = getattr(self.settings, setting)
        if len(data) > limit:
            raise TooLarge(
                f"the message has {len(data)} bytes, the limit is {limit} (setting {setting})",
                reason="request_bytes",
            )

    def _check_metadata(self, context: Context) -> None:
        limit = self.settings.max_header_bytes
        metadata = context.invocation_metadata() or ()
        if sum(len(name) + len(value) + ENTRY_BYTES for name, value in metadata) > limit:
            raise HeaderTooLarge(
                f"the metadata is longer than {limit} bytes (setting max_header_bytes)",
                reason="header_bytes",
            )


def parse(handler: grpc.RpcMethodHandler, data: bytes) -> Message:
    """Returns the message in ``data``; gRPC itself would answer UNKNOWN and log a traceback.

    Raises:
        InvalidRequest: the bytes are not a message of this call.
    """
    try:
        message: Message = handler.request_deserializer(data)
    except DecodeError:
        raise InvalidRequest(NOT_A_MESSAGE) from None
    return message


def find_shape(handler: grpc.RpcMethodHandler) -> Shape:
    """Returns what the requests of a handler may hold."""
    return shape_of(handler.request_deserializer(b"").DESCRIPTOR)


def find_deadline(context: Context) -> float | None:
    """Returns when a call is late on the event loop's clock; None where it has no deadline.

    A client's own clock ends its call up to 1 % before the deadline that the server knows.
    """
    left = context.time_remaining()
    if left is None:
        return None
    return asyncio.get_running_loop().time() + float(left) * (1.0 - ROUNDED_UP_SHARE) - MARGIN_S


def has_passed(deadline: float | None) -> bool:
    """Returns whether a time that ``find_deadline`` returned has come."""
    return deadline is not None and asyncio.get_running_loop().time() >= deadline


def read_address(peer: str) -> str:
    """Returns a peer's address: ``ipv4:127.0.0.1:5000`` -> ``127.0.0.1``, ``ipv6:%5B::1%5D:5000``
    -> ``::1``."""
    address = peer.partition(":")[2].rpartition(":")[0] or peer
    return address.removeprefix("%5B").removesuffix("%5D").removeprefix("[").removesuffix("]")


def name_status(code: grpc.StatusCode | int | None) -> str:
    """Returns ``OK``, ``NOT_FOUND``, ...; a call that has no code yet, or 0, is OK."""
    if isinstance(code, grpc.StatusCode):
        return str(code.name)
    known = {status.value[0]: status.name for status in grpc.StatusCode}
    return str(known.get(code or 0, "UNKNOWN"))
