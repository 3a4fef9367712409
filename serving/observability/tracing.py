"""OpenTelemetry spans: one a request, and below it one a stage of each image.

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
from serving.observability.request_context import TRACEPARENT, Interval, RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

EXTRA = "the setting tracing needs more packages: pip install 'segserve[tracing]'"


class Tracing:
    """The spans of one server, with a provider of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("segserve")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, context: RequestContext, traceparent: str, tracestate: str) -> Span:
        """Begins the request's span, below the client's where its ``traceparent`` is valid.

        Sets ``context.traceparent`` to the span's own.
        """
        given = {TRACEPARENT: traceparent, "tracestate": tracestate}
        parent = self._propagator.extract({name: text for name, text in given.items() if text})
        span = self._tracer.start_span(
            f"{context.method} {context.transport}",
            parent,
            self._trace.SpanKind.SERVER,
            start_time=context.start_ns,
            attributes={
                **describe(context),
                "client.address": context.client,
                "segserve.request_id": context.request_id,
            },
        )
        own = span.get_span_context()
        context.traceparent = (
            f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
        )
        return span

    def end(self, context: RequestContext, span: Span) -> None:
        """Ends the request's span; its stages are added now, with the times that they had."""
        # Stages are timed by a clock without a date. The span keeps to it too: two clocks read one
        # after the other are apart by whatever comes between, and stages would lie outside of it.
        epoch_ns = context.start_ns - int(context.start * 1e9)
        below = self._trace.set_span_in_context(span)
        if span.is_recording():
            for interval in context.intervals:
                self._add_stage(interval, context, below, epoch_ns)
            status = {"http": "http.response.status_code", "grpc": "rpc.response.status_code"}
            span.set_attribute(
                status[context.transport],
                int(context.status) if context.status.isdecimal() else context.status,
            )
            span.set_attribute("segserve.code", context.code)
            if context.model:
                span.update_name(f"{context.transport} {context.model}")
                span.set_attribute("segserve.model", context.model)
                span.set_attribute("segserve.version", context.version)
            if context.key is not None:
                span.set_attribute("segserve.key", context.key_name)
            if context.code != "ok":
                span.set_attribute("error.type", context.code)
            if is_server_fault(context):
                span.set_status(self._trace.StatusCode.ERROR, context.code)
        span.end(epoch_ns + time.perf_counter_ns())

    def _add_stage(
        self, interval: Interval, context: RequestContext, below: object, epoch_ns: int
    ) -> None:
        start = epoch_ns + int(interval.start * 1e9)
        stage = self._tracer.start_span(
            f"segserve.{interval.stage}",
            below,  # type: ignore[arg-type]
            start_time=start,
            attributes={"segserve.model": context.model},
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


def is_server_fault(context: RequestContext) -> bool:
    """Returns whether a span is an error by OpenTelemetry's conventions: 4xx is none.

    A request that ended without a status did so by an exception, unless its client had left.
    """
    if not context.status:
        return context.code not in ("ok", CANCELLED)
    return context.status in _FAULTS or (context.status.isdecimal() and int(context.status) >= 500)


def describe(context: RequestContext) -> dict[str, str]:
    """Returns the attributes that OpenTelemetry's conventions ask of a span when it starts."""
    if context.transport == "grpc":
        service, _, method = context.path.strip("/").rpartition("/")
        return {
            "url.path": context.path,
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
        }
    if context.method in _METHODS:
        return {"url.path": context.path, "http.request.method": context.method}
    return {
        "url.path": context.path,
        "http.request.method": "_OTHER",
        "http.request.method_original": context.method,
    }


def open_tracing() -> Tracing:
    """Returns the tracing whose spans are sent over OTLP.

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
    """Returns an exporter over gRPC, to ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
