"""Every gRPC call passes here first: its id, its key, its span, its line in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError, Message

from serving.calls.call import REQUEST_ID, TRACEPARENT, Call
from serving.calls.calls import Calls
from serving.errors import (
    HeaderTooLarge,
    InvalidRequest,
    SegserveError,
    TooLarge,
    TooManyRequests,
)
from serving.rpc.call import Context, abort
from serving.settings import Settings

NO_MESSAGE = "the bytes are not a message of this call; see the .proto file"
# What an entry takes beside its letters, as HTTP/2 counts (RFC 7541, 4.1).
ENTRY_BYTES = 32
# Without a key, as over HTTP.
OPEN_METHODS = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Around every handler of the server; here its limits are, with names and counts.

    gRPC's own are silent, so they stand at the double: see ``grpc_server.py``.
    """

    def __init__(self, calls: Calls, settings: Settings) -> None:
        self.calls = calls
        self.settings = settings
        self._open = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The handler that was found, wrapped; None where there is none."""
        handler = await continuation(details)
        if handler is None:
            return None
        if details.method.startswith(OPEN_METHODS):
            return self._wrap_open(handler)
        if handler.unary_unary:
            return self._wrap_unary(handler, details.method)
        return self._wrap_streaming(handler, details.method)

    def _wrap_unary(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        async def run(request: Message | SegserveError, context: Context) -> Message:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                if isinstance(request, SegserveError):
                    await abort(context, request)
                    raise AssertionError("abort raises")
                call.request_bytes = request.ByteSize()
                response: Message = await handler.unary_unary(request, context)
                call.response_bytes = response.ByteSize()
                return response

        return grpc.unary_unary_rpc_method_handler(
            run, self._parser(handler), handler.response_serializer
        )

    def _wrap_streaming(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        async def run(
            request: Message | SegserveError | AsyncIterator[Message | SegserveError],
            context: Context,
        ) -> AsyncIterator[Message]:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                if isinstance(request, SegserveError):
                    await abort(context, request)
                elif handler.request_streaming:
                    answers = handler.stream_stream(counted(request, call), context)
                else:
                    answers = handler.unary_stream(request, context)
                async for response in answers:
                    call.response_bytes += response.ByteSize()
                    yield response

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(run, self._parser(handler), handler.response_serializer)

    def _wrap_open(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Without id, key, span and line, as probes come every few seconds."""

        async def run(request: Message | SegserveError, context: Context) -> Message:
            if isinstance(request, SegserveError):
                await abort(context, request)
            response: Message = await handler.unary_unary(request, context)
            return response

        async def watch(
            request: Message | SegserveError, context: Context
        ) -> AsyncIterator[Message]:
            if isinstance(request, SegserveError):
                await abort(context, request)
            async for response in handler.unary_stream(request, context):
                yield response

        parse, serialize = self._parser(handler), handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(run, parse, serialize)
        return grpc.unary_stream_rpc_method_handler(watch, parse, serialize)

    def _parser(self, handler: grpc.RpcMethodHandler) -> Callable[[bytes], Message | SegserveError]:
        return parse_or_refuse(handler.request_deserializer, self.settings.max_request_bytes)

    @contextmanager
    def _call(self, method: str, context: Context) -> Iterator[tuple[Call, Callable[[str], str]]]:
        metadata = dict(context.invocation_metadata() or ())

        def read(name: str) -> str:
            value = metadata.get(name, "")
            return value if isinstance(value, str) else ""

        with self.calls.call("grpc", "POST", method, read_address(context.peer()), read) as call:
            self._open += 1
            try:
                yield call, read
            finally:
                self._open -= 1
                call.status = name_status(context.code())
                if call.status != "OK" and call.code == "ok":
                    call.code = call.status.lower()

    async def _admit(self, call: Call, read: Callable[[str], str], context: Context) -> None:
        marks = [(REQUEST_ID, call.request_id)]
        if call.traceparent:
            marks.append((TRACEPARENT, call.traceparent))
        await context.send_initial_metadata(marks)
        try:
            self._check_limits(context)
            self.calls.admit(call, read)
        except SegserveError as error:
            await abort(context, error)

    def _check_limits(self, context: Context) -> None:
        limit = self.settings.max_grpc_calls
        if self._open > limit:
            raise TooManyRequests(
                f"{limit} calls are open already (setting max_grpc_calls); try again later",
                reason="grpc_calls",
            )
        limit = self.settings.max_header_bytes
        metadata = context.invocation_metadata() or ()
        if sum(len(name) + len(value) + ENTRY_BYTES for name, value in metadata) > limit:
            raise HeaderTooLarge(
                f"the metadata is longer than {limit} bytes (setting max_header_bytes)",
                reason="header_bytes",
            )


def parse_or_refuse(
    parse: Callable[[bytes], Message], max_bytes: int
) -> Callable[[bytes], Message | SegserveError]:
    """gRPC would answer UNKNOWN to bytes that are no message, with a traceback in the log."""

    def parse_quietly(data: bytes) -> Message | SegserveError:
        if len(data) > max_bytes:
            return TooLarge(
                f"the message has {len(data)} bytes, the limit is {max_bytes} "
                f"(setting max_request_bytes)",
                reason="request_bytes",
            )
        try:
            return parse(data)
        except DecodeError:
            return InvalidRequest(NO_MESSAGE)

    return parse_quietly


async def counted(
    requests: AsyncIterator[Message | SegserveError], call: Call
) -> AsyncIterator[Message]:
    """The same, their bytes noted.

    Raises:
        InvalidRequest, TooLarge: one is no message, or too long.
    """
    async for request in requests:
        if isinstance(request, SegserveError):
            raise request
        call.request_bytes += request.ByteSize()
        yield request


def read_address(peer: str) -> str:
    """``ipv4:127.0.0.1:5000`` -> ``127.0.0.1``."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


def name_status(code: grpc.StatusCode | int | None) -> str:
    """``OK``, ``NOT_FOUND``, ...; a call that has no code yet, or 0, is OK."""
    if isinstance(code, grpc.StatusCode):
        return str(code.name)
    known = {status.value[0]: status.name for status in grpc.StatusCode}
    return str(known.get(code or 0, "UNKNOWN"))
