"""Ends gRPC calls: with a status, and without anything of the call left in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final, ParamSpec, TypeAlias, TypeVar

import grpc

from serving.errors import Internal, SegserveError, TooManyRequests, drop_traceback, shorten
from serving.observability.request_context import current_context, log_defect, report_error

Context: TypeAlias = grpc.aio.ServicerContext
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

log = logging.getLogger("segserve")

# Longer messages are parsed, read and written on a pool thread.
INLINE_BYTES: Final = 256 << 10
# A client takes 8 kB of metadata by default, and whatever is not ASCII travels as three bytes each.
MAX_DETAIL_BYTES: Final = 4096
# The server's own timer for a deadline has to come before gRPC's, which only cancels the call: the
# refusal would be counted as a client that left.
MARGIN_S: Final = 0.005


async def run_sized(
    pool: Executor, is_small: bool, work: Callable[Arguments, Result],
    *arguments: Arguments.args, **named: Arguments.kwargs,
) -> Result:  # fmt: skip
    """Runs ``work`` at once where its data is small, else on a thread: copying megabytes on the
    event loop would keep all other calls waiting."""
    if is_small:
        return work(*arguments, **named)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, partial(work, *arguments, **named))


def time_left(context: Context) -> float | None:
    """Returns the seconds until a call's deadline, less what an answer takes; None without one."""
    left = context.time_remaining()
    return None if left is None else max(0.0, float(left) - MARGIN_S)


def write_details(text: str) -> str:
    """Returns an error's text as a status can carry it: valid Unicode, of bounded length."""
    text = shorten(text).encode("utf-8", "replace").decode("utf-8")
    limit = len(text)
    while sum(1 if " " <= letter <= "~" else 3 * len(letter.encode()) for letter in text) > (
        MAX_DETAIL_BYTES
    ):
        limit = limit * 3 // 4
        text = shorten(text, limit)
    return text


async def end_call(context: Context, error: SegserveError) -> None:
    """Ends the call with an error's code and text; in the trailing metadata are the error's code,
    when to try again, and the call's id: one that is refused before it begins has no other.

    Returns where gRPC's own ``abort`` raises: the exception that it keeps would hold the frames of
    the call, and with them its message, until a rare collection.
    """
    call = current_context.get()
    trailing = [("segserve-code", error.code), *(call.response_headers if call else ())]
    if isinstance(error, TooManyRequests):
        trailing.append(("retry-after", error.retry_after))
    drop_traceback(error)
    try:
        await context.abort(error.grpc_code, write_details(str(error)), tuple(trailing))
    except grpc.aio.AbortError as abort:
        drop_traceback(abort)
    except grpc.aio.BaseError as gone:
        # The client has left, or the call was ended before.
        log.debug("a call could not be ended: %s", gone)
        drop_traceback(gone)


async def fail_call(context: Context, error: Exception) -> None:
    """Ends the call that a defect of the server has broken: INTERNAL with the call's id, and the
    whole error in the log alone."""
    log_defect(error)
    internal = Internal()
    report_error(internal)
    await end_call(context, internal)


def cancelled_by_itself(task: asyncio.Task[object]) -> None:
    """Takes back the mark of a cancellation that was only a way to wake a task (Python 3.11)."""
    uncancel = getattr(task, "uncancel", None)
    if uncancel is not None:
        uncancel()
