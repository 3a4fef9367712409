"""Every gRPC call passes here first: its id, its key, its span, its line in the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError, Message

from serving.calls.call import Call
from serving.calls.calls import Calls
from serving.door import Door
from serving.errors import (
    HeaderTooLarge,
    InvalidRequest,
    SegserveError,
    TooLarge,
    TooManyRequests,
    code_of_grpc,
)
from serving.rpc.call import Context, abort
from serving.rpc.door import read_announced
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

    def __init__(self, calls: Calls, settings: Settings, door: Door) -> None:
        self.calls = calls
        self.door = door
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
        # As a stream of one message: gRPC would receive it before anybody is asked.
        async def run(messages: AsyncIterator[bytes], context: Context) -> bytes:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                try:
                    data = await receive_one(messages)
                    request = self._receive(handler, data, call, context)
                except SegserveError as error:
                    await abort(context, error)
                    raise
                await context.send_initial_metadata(call.marks)
                return serialize(handler, await handler.unary_unary(request, context), call)

        return grpc.stream_unary_rpc_method_handler(run)

    def _wrap_streaming(self, handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
        async def run(
            received: bytes | AsyncIterator[bytes], context: Context
        ) -> AsyncIterator[bytes]:
            with self._call(method, context) as (call, read):
                await self._admit(call, read, context)
                await context.send_initial_metadata(call.marks)
                if isinstance(received, bytes):
                    try:
                        request = self._receive(handler, received, call, context)
                    except SegserveError as error:
                        await abort(context, error)
                        raise
                    answers = handler.unary_stream(request, context)
                else:
                    frames = self._receive_all(handler, received, call)
                    answers = handler.stream_stream(frames, context)
                async for response in answers:
                    yield serialize(handler, response, call)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(run)

    def _wrap_open(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """Without id, key, span and line, as probes come every few seconds."""

        async def run(data: bytes, context: Context) -> Message:
            response: Message = await handler.unary_unary(await parse(data, context), context)
            return response

        async def watch(data: bytes, context: Context) -> AsyncIterator[Message]:
            async for response in handler.unary_stream(await parse(data, context), context):
                yield response

        async def parse(data: bytes, context: Context) -> Message:
            try:
                return self._parse(handler, data)
            except SegserveError as error:
                await abort(context, error)
                raise

        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                run, response_serializer=handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            watch, response_serializer=handler.response_serializer
        )

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
                    call.code = code_of_grpc(call.status)

    async def _admit(self, call: Call, read: Callable[[str], str], context: Context) -> None:
        try:
            self._check_limits(context)
            self.calls.admit(call, read)
        except SegserveError as error:
            await abort(context, error)

    def _receive(
        self, handler: grpc.RpcMethodHandler, data: bytes, call: Call, context: Context
    ) -> Message:
        """The one message of a call, unless it is refused before it is parsed.

        Raises:
            SegserveError: as :meth:`_parse`, and what the door says.
        """
        call.request_bytes = len(data)
        self._check_size(data)
        announced = read_announced(call.path, data, context.time_remaining())
        if announced is not None:
            self.door.check(announced, "grpc")
        return self._parse(handler, data)

    async def _receive_all(
        self, handler: grpc.RpcMethodHandler, received: AsyncIterator[bytes], call: Call
    ) -> AsyncIterator[Message]:
        async for data in received:
            call.request_bytes += len(data)
            yield self._parse(handler, data)

    def _parse(self, handler: grpc.RpcMethodHandler, data: bytes) -> Message:
        """The message; gRPC itself would answer UNKNOWN, with a traceback in the log.

        Raises:
            TooLarge: more bytes than ``max_request_bytes``.
            InvalidRequest: the bytes are no message.
        """
        self._check_size(data)
        try:
            message: Message = handler.request_deserializer(data)
        except DecodeError:
            raise InvalidRequest(NO_MESSAGE) from None
        return message

    def _check_size(self, data: bytes) -> None:
        limit = self.settings.max_request_bytes
        if len(data) > limit:
            raise TooLarge(
                f"the message has {len(data)} bytes, the limit is {limit} "
                f"(setting max_request_bytes)",
                reason="request_bytes",
            )

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


async def receive_one(messages: AsyncIterator[bytes]) -> bytes:
    """The first message.

    Raises:
        InvalidRequest: the client ended its side without one.
    """
    async for data in messages:
        return data
    raise InvalidRequest(NO_MESSAGE)


def serialize(handler: grpc.RpcMethodHandler, response: Message, call: Call) -> bytes:
    """The answer's bytes, noted: a message would have to be serialised once more to be measured."""
    data: bytes = handler.response_serializer(response)
    call.response_bytes += len(data)
    return data


def read_address(peer: str) -> str:
    """``ipv4:127.0.0.1:5000`` -> ``127.0.0.1``."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


def name_status(code: grpc.StatusCode | int | None) -> str:
    """``OK``, ``NOT_FOUND``, ...; a call that has no code yet, or 0, is OK."""
    if isinstance(code, grpc.StatusCode):
        return str(code.name)
    known = {status.value[0]: status.name for status in grpc.StatusCode}
    return str(known.get(code or 0, "UNKNOWN"))
