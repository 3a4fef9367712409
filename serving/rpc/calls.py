"""Every gRPC call passes here first: its id, its key, its span, its line in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError, Message

from serving.calls.call import REQUEST_ID, TRACEPARENT, Call
from serving.calls.calls import Calls
from serving.errors import InvalidRequest, SegserveError
from serving.rpc.call import Context, abort

NO_MESSAGE = "the bytes are not a message of this call; see the .proto file"
# Without a key, as over HTTP.
OPEN_METHODS = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Around every handler of the server."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The handler that was found, wrapped; None where there is none."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(OPEN_METHODS):
            return handler
        if handler.unary_unary:
            return self._wrap_unary(handler, details.method)
        return self._wrap_streaming(handler, details.method)

    def _wrap_unary(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        async def run(request: Message | None, context: Context) -> Message:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                if request is None:
                    await abort(context, InvalidRequest(NO_MESSAGE))
                    raise AssertionError("abort raises")
                call.request_bytes = request.ByteSize()
                response: Message = await handler.unary_unary(request, context)
                call.response_bytes = response.ByteSize()
                return response

        return grpc.unary_unary_rpc_method_handler(
            run, parse_or_none(handler.request_deserializer), handler.response_serializer
        )

    def _wrap_streaming(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        async def run(
            request: Message | AsyncIterator[Message], context: Context
        ) -> AsyncIterator[Message]:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                if handler.request_streaming:
                    answers = handler.stream_stream(counted(request, call), context)
                elif request is None:
                    await abort(context, InvalidRequest(NO_MESSAGE))
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
        parse = parse_or_none(handler.request_deserializer)
        return make(run, parse, handler.response_serializer)

    @contextmanager
    def _call(self, method: str, context: Context) -> Iterator[tuple[Call, Callable[[str], str]]]:
        metadata = dict(context.invocation_metadata() or ())

        def read(name: str) -> str:
            value = metadata.get(name, "")
            return value if isinstance(value, str) else ""

        with self.calls.call("grpc", "POST", method, read_address(context.peer()), read) as call:
            try:
                yield call, read
            finally:
                call.status = name_status(context.code())
                if call.status != "OK" and call.code == "ok":
                    call.code = call.status.lower()

    async def _admit(self, call: Call, read: Callable[[str], str], context: Context) -> None:
        marks = [(REQUEST_ID, call.request_id)]
        if call.traceparent:
            marks.append((TRACEPARENT, call.traceparent))
        await context.send_initial_metadata(marks)
        try:
            self.calls.admit(call, read)
        except SegserveError as error:
            await abort(context, error)


def parse_or_none(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """gRPC would answer UNKNOWN to bytes that are no message, with a traceback in the log."""

    def parse_quietly(data: bytes) -> Message | None:
        try:
            return parse(data)
        except DecodeError:
            return None

    return parse_quietly


async def counted(requests: AsyncIterator[Message | None], call: Call) -> AsyncIterator[Message]:
    """The same, their bytes noted.

    Raises:
        InvalidRequest: one is no message.
    """
    async for request in requests:
        if request is None:
            raise InvalidRequest(NO_MESSAGE)
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
