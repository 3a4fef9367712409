"""The access log: a line a request on stderr, as text or JSON, without keys, queries or images."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime, timezone
from time import perf_counter
from typing import Literal, Protocol

from serving.observability.request_context import RequestContext

Style = Literal["text", "json"]
# Stands for itself in a line of text; anything else is quoted.
_WORD = re.compile(r"[A-Za-z0-9._:/+=@-]+")


class LineStream(Protocol):
    """A stream of lines. A server's own never waits (``observability/log_stream.py``)."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class AccessLog:
    """A log that writes a line for each finished request to a stream."""

    def __init__(self, style: Style, stream: LineStream) -> None:
        self._format = format_json if style == "json" else format_text
        self._stream = stream

    def write(self, context: RequestContext) -> None:
        """Writes one line, in one write; it is lost where it cannot be written.

        A full disk, or a collector that has ended, must not fail the request.
        """
        # ValueError: the stream was closed.
        with suppress(OSError, ValueError):
            self._stream.write(self._format(context) + "\n")
            self._stream.flush()


def stage_milliseconds(context: RequestContext) -> dict[str, float]:
    """Returns the milliseconds of each stage, over all images of the request."""
    return {stage: round(seconds * 1000.0, 3) for stage, seconds in context.stages.items()}


def format_json(context: RequestContext) -> str:
    """Returns one JSON object; fields that say nothing are left out."""
    fields = {
        "time": _now(),
        "request_id": context.request_id,
        "trace_id": context.traceparent[3:35],
        "transport": context.transport,
        "client": context.client,
        "key": context.key_name,
        "method": context.method,
        "path": context.path,
        "model": context.model,
        "version": context.version,
        "status": int(context.status) if context.status.isdecimal() else context.status,
        "code": context.code,
        "request_bytes": context.request_bytes,
        "response_bytes": context.response_bytes,
        "images": context.images,
        "milliseconds": round((perf_counter() - context.start) * 1000.0, 3),
        "stages": stage_milliseconds(context),
    }
    kept = {"request_bytes", "response_bytes"}
    shown = json.dumps({k: v for k, v in fields.items() if v or k in kept})
    return shown.replace("\x7f", "\\u007f")


def format_text(context: RequestContext) -> str:
    """Returns a line for eyes; a caller's text cannot start one or pass for another word."""
    words = [
        _now(), _quote(context.client), _quote(context.method), _quote(context.path, always=True),
        context.status, context.code,
        f"{context.request_bytes}B>{context.response_bytes}B",
        f"{(perf_counter() - context.start) * 1000.0:.1f}ms",
        f"id={_quote(context.request_id)}",
    ]  # fmt: skip
    if context.model:
        words.append(f"model={_quote(context.model)}/{context.version}")
    if context.key is not None:
        words.append(f"key={_quote(context.key_name)}")
    words += [f"{stage}={ms:.1f}" for stage, ms in stage_milliseconds(context).items()]
    return " ".join(words)


def _quote(text: str, *, always: bool = False) -> str:
    """Returns the text, as a JSON string unless it is one plain word."""
    if not always and _WORD.fullmatch(text):
        return text
    # JSON escapes all control characters but this one.
    return json.dumps(text).replace("\x7f", "\\u007f")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
