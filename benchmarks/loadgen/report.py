"""Measurements as lines for people, and as what a file of results holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.loadgen.measurement import Measurement, Timing
from benchmarks.loadgen.server_metrics import Distribution, ServerMetrics

HEADER = (
    "| load | offered/s | answered/s | in time/s | p50 | p95 | p99 ms | refused | errors "
    "| server, client cores | client late p99, ms |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Named:
    """A measurement with the name of its load."""

    name: str
    measurement: Measurement

    def line(self) -> str:
        """A row below :data:`HEADER`."""
        s = self.measurement.summary
        latency = " | ".join(number(v, 0) for v in (s.latency.p50, s.latency.p95, s.latency.p99))
        return (
            f"| {self.name} | {s.offered:.1f} | {s.throughput:.1f} | {s.goodput:.1f} | {latency} "
            f"| {counts(s.rejected)} | {counts(s.errors)} "
            f"| {number(self.measurement.server_cpu, 2)}, {s.client_cpu:.2f} "
            f"| {number(s.lateness.p99, 1)} |"
        )

    def stage_line(self) -> str:
        """Mean, median and 95th percentile of each stage, in milliseconds; "" without metrics."""
        server = self.measurement.server
        if server is None:
            return ""
        stages = ", ".join(
            f"{name} {1000 * stage.mean:.1f} ({1000 * stage.quantile(0.5):.1f}, "
            f"{1000 * stage.quantile(0.95):.1f})"
            for name, stage in server.stages.items()
            if stage.count
        )
        return f"{self.name}: {stages}; {number(server.batches.mean, 2)} images a batch"


def number(value: float, digits: int) -> str:
    """A figure, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def counts(by_reason: Mapping[str, int]) -> str:
    """As ``12 queue_full, 3 deadline_exceeded``."""
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) or "0"


def describe(
    subject: Mapping[str, object], timing: Timing, measurements: Sequence[Named]
) -> dict[str, object]:
    """Everything, as JSON takes it."""
    written = {
        "subject": dict(subject),
        "timing": asdict(timing),
        "measurements": [
            {
                "name": named.name,
                **asdict(named.measurement.summary),
                "server": describe_server(named.measurement),
            }
            for named in measurements
        ],
    }
    return {name: _plain(value) for name, value in written.items()}


def describe_server(measurement: Measurement) -> dict[str, object] | None:
    """The server's side; times in milliseconds."""
    server: ServerMetrics | None = measurement.server
    if server is None:
        return None

    def ms(stage: Distribution) -> dict[str, float]:
        return {
            "count": stage.count,
            "mean_ms": 1000 * stage.mean,
            "p50_ms": 1000 * stage.quantile(0.5),
            "p95_ms": 1000 * stage.quantile(0.95),
        }

    return {
        "cores": measurement.server_cpu,
        "stages": {name: ms(stage) for name, stage in server.stages.items()},
        "images_per_batch": server.batches.mean,
        "rejected": dict(server.rejected),
        "resident_megabytes": server.resident_bytes / 1e6,
    }


def _plain(value: object) -> object:
    """JSON has no nan; four digits behind the point are more than was measured."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
