"""A line a request on stderr, as text or JSON. No key, no query and no image is in it."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime, timezone
from time import perf_counter
from typing import Literal, Protocol

from serving.observability.request_context import Call

Style = Literal["text", "json"]
# Stands for itself in a line of text; anything else is quoted.
_WORD = re.compile(r"[A-Za-z0-9._:/+=@-]+")


class LineStream(Protocol):
    """What lines are written to. A server's own never waits (``observability/log_stream.py``)."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class AccessLog:
    """Writes finished calls to a stream."""

    def __init__(self, style: Style, stream: LineStream) -> None:
        self._format = format_json if style == "json" else format_text
        self._stream = stream

    def write(self, call: Call) -> None:
        """One line, in one write; lost where it cannot be written.

        A full disk, or a collector that has ended, is no reason to fail the request.
        """
        # ValueError: the stream was closed.
        with suppress(OSError, ValueError):
            self._stream.write(self._format(call) + "\n")
            self._stream.flush()


def stage_milliseconds(call: Call) -> dict[str, float]:
    """Milliseconds of each stage, over all images of the call."""
    return {stage: round(seconds * 1000.0, 3) for stage, seconds in call.stages.items()}


def format_json(call: Call) -> str:
    """One JSON object; fields that say nothing are left out."""
    fields = {
        "time": _now(),
        "request_id": call.request_id,
        "trace_id": call.traceparent[3:35],
        "transport": call.transport,
        "client": call.client,
        "key": call.key_name,
        "method": call.method,
        "path": call.path,
        "model": call.model,
        "version": call.version,
        "status": int(call.status) if call.status.isdecimal() else call.status,
        "code": call.code,
        "request_bytes": call.request_bytes,
        "response_bytes": call.response_bytes,
        "images": call.images,
        "milliseconds": round((perf_counter() - call.start) * 1000.0, 3),
        "stages": stage_milliseconds(call),
    }
    kept = {"request_bytes", "response_bytes"}
    shown = json.dumps({k: v for k, v in fields.items() if v or k in kept})
    return shown.replace("\x7f", "\\u007f")


def format_text(call: Call) -> str:
    """The same for eyes; what comes from callers cannot start a line or pass for another word."""
    words = [
        _now(), _quote(call.client), _quote(call.method), _quote(call.path, always=True),
        call.status, call.code,
        f"{call.request_bytes}B>{call.response_bytes}B",
        f"{(perf_counter() - call.start) * 1000.0:.1f}ms",
        f"id={_quote(call.request_id)}",
    ]  # fmt: skip
    if call.model:
        words.append(f"model={_quote(call.model)}/{call.version}")
    if call.key is not None:
        words.append(f"key={_quote(call.key_name)}")
    words += [f"{stage}={ms:.1f}" for stage, ms in stage_milliseconds(call).items()]
    return " ".join(words)


def _quote(text: str, *, always: bool = False) -> str:
    """Returns the text, as a JSON string unless it is one plain word."""
    if not always and _WORD.fullmatch(text):
        return text
    # JSON escapes all control characters but this one.
    return json.dumps(text).replace("\x7f", "\\u007f")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
