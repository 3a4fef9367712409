"""One gRPC call: its context, and how an error of ours ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import TypeAlias

import grpc
from google.protobuf.message import Message

from serving.calls.call import current_call, note_error, note_refusal
from serving.errors import SegserveError, TooManyRequests

Context: TypeAlias = grpc.aio.ServicerContext


async def answer(context: Context, work: Awaitable[Message]) -> Message:
    """Awaits ``work``; an error of ours ends the call with its code and text."""
    try:
        return await work
    except SegserveError as error:
        await abort(context, error)
        raise


async def answer_stream(
    context: Context, answers: AsyncIterator[Message]
) -> AsyncIterator[Message]:
    """Passes ``answers`` on; an error of ours ends the stream with its code and text."""
    try:
        async for message in answers:
            yield message
    except SegserveError as error:
        await abort(context, error)


async def abort(context: Context, error: SegserveError) -> None:
    """Ends the call; in the trailing metadata are the error's code, when to try again, and the
    call's id: one that is refused before it begins has no other."""
    note_error(error.code)
    note_refusal(error)
    call = current_call.get()
    trailing = [("segserve-code", error.code), *(call.marks if call else ())]
    if isinstance(error, TooManyRequests):
        trailing.append(("retry-after", error.retry_after))
    await context.abort(error.grpc_code, str(error), tuple(trailing))
