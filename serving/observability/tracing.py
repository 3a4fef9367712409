"""OpenTelemetry spans: one a call, and under it one a stage of each image.

Optional: nothing of OpenTelemetry is imported while the setting ``tracing`` is off. Where spans go,
how many are kept and what the service is called is said by OpenTelemetry's own variables
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ...).

Source: W3C Trace Context (traceparent, tracestate); OpenTelemetry semantic conventions.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from serving.errors import CANCELLED, InvalidSetting
from serving.observability.metrics import Interval
from serving.observability.request_context import TRACEPARENT, Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

EXTRA = "the setting tracing needs more packages: pip install 'segserve[tracing]'"


class Tracing:
    """Makes the spans of one server, with a provider of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("segserve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, call: Call, traceparent: str, tracestate: str) -> Span:
        """The call's span, below the client's where its ``traceparent`` is valid.

        Sets ``call.traceparent`` to the span's own.
        """
        given = {TRACEPARENT: traceparent, "tracestate": tracestate}
        parent = self._propagator.extract({name: text for name, text in given.items() if text})
        span = self._tracer.start_span(
            f"{call.method} {call.transport}",
            parent,
            self._trace.SpanKind.SERVER,
            start_time=call.start_ns,
            attributes={
                **describe(call),
                "client.address": call.client,
                "segserve.request_id": call.request_id,
            },
        )
        context = span.get_span_context()
        call.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        )
        return span

    def end(self, call: Call, span: Span) -> None:
        """Ends the call's span; its stages are told now, with the times that they had."""
        # Stages are timed by a clock without a date. The span keeps to it too: two clocks read one
        # after the other are apart by whatever comes between, and stages would lie outside of it.
        epoch_ns = call.start_ns - int(call.start * 1e9)
        below = self._trace.set_span_in_context(span)
        if span.is_recording():
            for interval in call.intervals:
                self._add_stage(interval, call, below, epoch_ns)
            status = {"http": "http.response.status_code", "grpc": "rpc.response.status_code"}
            span.set_attribute(
                status[call.transport], int(call.status) if call.status.isdecimal() else call.status
            )
            span.set_attribute("segserve.code", call.code)
            if call.model:
                span.update_name(f"{call.transport} {call.model}")
                span.set_attribute("segserve.model", call.model)
                span.set_attribute("segserve.version", call.version)
            if call.key is not None:
                span.set_attribute("segserve.key", call.key_name)
            if call.code != "ok":
                span.set_attribute("error.type", call.code)
            if is_server_fault(call):
                span.set_status(self._trace.StatusCode.ERROR, call.code)
        span.end(epoch_ns + time.perf_counter_ns())

    def _add_stage(self, interval: Interval, call: Call, below: object, epoch_ns: int) -> None:
        start = epoch_ns + int(interval.start * 1e9)
        stage = self._tracer.start_span(
            f"segserve.{interval.stage}",
            below,  # type: ignore[arg-type]
            start_time=start,
            attributes={"segserve.model": call.model},
        )
        stage.end(start + int(interval.seconds * 1e9))

    def close(self) -> None:
        """Sends what is left, and ends the sender's thread."""
        self._provider.shutdown()


# Of gRPC's codes those that are the server's fault; the others are the client's own mistakes.
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)


def is_server_fault(call: Call) -> bool:
    """Whether a server's span is an error by OpenTelemetry's conventions: 4xx is none.

    A call that ended without a status did so by an exception, unless its client had left.
    """
    if not call.status:
        return call.code not in ("ok", CANCELLED)
    return call.status in _FAULTS or (call.status.isdecimal() and int(call.status) >= 500)


def describe(call: Call) -> dict[str, str]:
    """What OpenTelemetry's conventions ask of a span when it starts: samplers read it."""
    if call.transport == "grpc":
        service, _, method = call.path.strip("/").rpartition("/")
        return {
            "url.path": call.path,
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
        }
    if call.method in _METHODS:
        return {"url.path": call.path, "http.request.method": call.method}
    return {
        "url.path": call.path,
        "http.request.method": "_OTHER",
        "http.request.method_original": call.method,
    }


def open_tracing() -> Tracing:
    """Spans sent over OTLP.

    Raises:
        InvalidSetting: the packages of the extra are not installed.
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = open_exporter()
    except ImportError as error:
        raise InvalidSetting(f"{EXTRA} ({error})") from None
    name = os.environ.get("OTEL_SERVICE_NAME", "segserve")
    resource = Resource.create({"service.name": name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def open_exporter() -> SpanExporter:
    """OTLP over gRPC, to ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
