"""The Prometheus metrics of one server, in seconds and bytes; labels are bounded.

A server owns its registry, so two in one process do not share state.

Every series that something may count in is there from the start, at 0: Prometheus sees no increase
in a counter that is born at 1, so that an alert would miss the first failure, mostly the only one.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from serving.errors import ENGINE_FAILURES, list_codes
from serving.observability.request_context import STAGES, Timings, current_context

UNKNOWN_MODEL = "_unknown"
TRANSPORTS = ("http", "grpc")
# Of segserve_rejected_total; docs/observability.md names the setting behind each.
REASONS = (
    "queue_size", "queue_bytes", "policy_queue_size", "deadline", "predicted_late", "inflight",
    "inflight_megapixels", "connections", "grpc_calls", "message_fields", "stream_idle",
    "header_timeout", "header_bytes", "header_fields", "upload_timeout", "request_bytes",
    "json_bytes", "image_memory", "image_megapixels", "views", "polygons", "shared_memory_regions",
    "send_timeout", "unauthenticated", "key_limit", "invalid_request", "unsupported",
    "method_not_allowed", "http_version_not_supported",
)  # fmt: skip
# Requests whose unknown fields are ignored: JSON of inferences, of the repository and of shared
# memory; multipart forms.
IGNORING = ("infer", "control", "form")
# What the response cache keeps: whole answers, and the network's logits or labels.
CACHED = ("answer", "prediction")
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
BYTES = tuple(float(4**power) for power in range(5, 15))


class Metrics:
    """The metrics that ``/metrics`` shows."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # CPU time, memory and open files of the process: process_cpu_seconds_total and so on.
        ProcessCollector(registry=registry)
        self.request_seconds = Histogram(
            "segserve_request_duration_seconds",
            "From the whole request read to the answer made",
            ("model", "transport", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "segserve_stage_duration_seconds",
            "Time of one image in one stage",
            ("model", "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "segserve_batch_size",
            "Images in one run of an engine",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.queue_length = Gauge(
            "segserve_queue_length", "Images waiting for an engine", ("model",), registry=registry
        )
        self.ready = Gauge("segserve_ready", "1 while the server takes requests", registry=registry)
        self.event_loop_lag = Gauge(
            "segserve_event_loop_lag_seconds",
            "The latest that the event loop came in the last minute, now included",
            registry=registry,
        )
        self.connections = Gauge(
            "segserve_http_connections", "Open HTTP connections", registry=registry
        )
        self.inflight = Gauge(
            "segserve_inflight_requests", "Requests being worked on", registry=registry
        )
        self.request_bytes = Histogram(
            "segserve_request_bytes", "Size of a request", ("model",), buckets=BYTES,
            registry=registry,
        )  # fmt: skip
        self.response_bytes = Histogram(
            "segserve_response_bytes", "Size of an answer", ("model",), buckets=BYTES,
            registry=registry,
        )  # fmt: skip
        self.requests = Counter(
            "segserve_requests", "Answers by code", ("model", "code"), registry=registry
        )
        self.rejected = Counter(
            "segserve_rejected", "Requests turned away", ("model", "reason"), registry=registry
        )
        self.ignored_fields = Counter(
            "segserve_ignored_fields",
            "Fields of requests that no protocol names: without effect, perhaps misspelt",
            ("request",),
            registry=registry,
        )
        for request in IGNORING:
            self.ignored_fields.labels(request)
        self.log_lines_dropped = Counter(
            "segserve_log_lines_dropped",
            "Lines of the log that its reader was too slow for, or that could not be written",
            registry=registry,
        )
        self.model_info = Gauge(
            "segserve_model_info",
            "1 for every loaded model",
            ("model", "version", "engine", "precision"),
            registry=registry,
        )
        self.model_load_seconds = Gauge(
            "segserve_model_load_seconds", "Load and warm-up", ("model",), registry=registry
        )
        self.engine_restarts = Counter(
            "segserve_engine_restarts",
            "Broken engines that were replaced",
            ("model",),
            registry=registry,
        )
        self.decoder_restarts = Counter(
            "segserve_decoder_restarts",
            "Decoder processes that ended, or were ended, and were replaced",
            ("reason",),
            registry=registry,
        )
        self.engine_failures = Counter(
            "segserve_engine_failures",
            "Runs of an engine that gave an image no answer",
            ("model", "reason"),
            registry=registry,
        )
        self.cache_hits = Counter(
            "segserve_cache_hits",
            "Results that the response cache had",
            ("model", "kind"),
            registry=registry,
        )
        self.cache_misses = Counter(
            "segserve_cache_misses",
            "Results that the response cache did not have",
            ("model", "kind"),
            registry=registry,
        )
        self.cache_evictions = Counter(
            "segserve_cache_evictions",
            "Results that the response cache dropped for later ones",
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "segserve_cache_bytes", "Size of the response cache", registry=registry
        )
        self.reload_failures = Counter(
            "segserve_reload_failures",
            "Changes of the repository that could not be served",
            ("model",),
            registry=registry,
        )

        self.create_series(UNKNOWN_MODEL)

    def create_series(self, model: str) -> None:
        """Creates what may be counted under the name of a model or family, at 0."""
        for reason in REASONS:
            self.rejected.labels(model, reason)
        for code in ("ok", *list_codes()):
            self.requests.labels(model, code)
        for counter in (self.reload_failures, self.request_bytes, self.response_bytes):
            counter.labels(model)
        for transport in TRANSPORTS:
            self.request_seconds.labels(model, transport, "ok")
        if model == UNKNOWN_MODEL:
            return
        for reason in ENGINE_FAILURES:
            self.engine_failures.labels(model, reason)
        for stage in STAGES:
            self.stage_seconds.labels(model, stage)
        for kind in CACHED:
            self.cache_hits.labels(model, kind)
            self.cache_misses.labels(model, kind)
        for series in (self.engine_restarts, self.batch_size, self.queue_length):
            series.labels(model)

    def reject(self, reason: str, model: str = UNKNOWN_MODEL) -> None:
        """Counts a request or connection that was turned away."""
        self.rejected.labels(model, reason).inc()
        context = current_context.get()
        if context is not None:
            context.counted.add(reason)

    def count_ignored(self, request: str, count: int) -> None:
        """Counts a request's fields without effect (see ``IGNORING``). Any thread may call it."""
        if count:
            self.ignored_fields.labels(request).inc(count)

    def observe_request(
        self,
        model: str,
        transport: str,
        outcome: str,
        seconds: float,
        request_bytes: int,
        response_bytes: int,
    ) -> None:
        """Adds one finished request; ``outcome`` is ``ok`` or an error's code."""
        self.request_seconds.labels(model, transport, outcome).observe(seconds)
        self.requests.labels(model, outcome).inc()
        self.request_bytes.labels(model).observe(request_bytes)
        if outcome == "ok":
            self.response_bytes.labels(model).observe(response_bytes)

    def observe_stages(self, model: str, timings: Timings) -> None:
        """Adds where one image's time went."""
        for stage, seconds in timings.seconds.items():
            self.stage_seconds.labels(model, stage).observe(seconds)

    def forget_model(self, model: str, version: int, engine: str, precision: str) -> None:
        """Removes a version that is no longer served from the list of loaded ones."""
        self.model_info.remove(model, str(version), engine, precision)
