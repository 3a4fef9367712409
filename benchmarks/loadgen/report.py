"""Reports measurements: as lines, as JSON, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from benchmarks.loadgen.server_metrics import Distribution, ServerMetrics
from benchmarks.loadgen.summary import Measurement, Sweep, Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = (
    "| load | offered/s | answered/s | in time/s | p50 | p95 | p99 ms | refused | errors "
    "| server, client cores | client late p99, ms |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Named:
    """A measurement and the name of its load."""

    name: str
    measurement: Measurement

    def line(self) -> str:
        """Returns a row below :data:`HEADER`."""
        s = self.measurement.summary
        latency = " | ".join(number(v, 0) for v in (s.latency.p50, s.latency.p95, s.latency.p99))
        return (
            f"| {self.name} | {s.offered:.1f} | {s.throughput:.1f} | {s.goodput:.1f} | {latency} "
            f"| {counts(s.rejected)} | {counts(s.errors)} "
            f"| {number(self.measurement.server_cpu, 2)}, {s.client_cpu:.2f} "
            f"| {number(s.lateness.p99, 1)} |"
        )

    def stage_line(self) -> str:
        """Returns mean, median and 95th percentile of each stage in ms; "" without metrics."""
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
    """Formats a figure; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def counts(by_reason: Mapping[str, int]) -> str:
    """Formats counts as ``12 queue_full, 3 deadline_exceeded``."""
    return ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) or "0"


def describe(
    subject: Mapping[str, object], timing: Timing, measurements: Sequence[Named]
) -> dict[str, object]:
    """Returns the measurements as a file of results holds them."""
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
    """Returns the server's side of a measurement; times in milliseconds."""
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
    """Rounds floats to four digits, more than was measured; nan, which JSON lacks, becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def plot_sweep(swept: Sweep, deadline_s: float | None) -> Figure:
    """Draws a sweep: what is answered in time, and how long answers take. Needs matplotlib.

    Lines are medians over the rounds, dots the rounds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4))
    rates, times = figure.subplots(1, 2)
    # Below is a line on the machine.
    figure.subplots_adjust(left=0.06, right=0.99, top=0.97, bottom=0.17, wspace=0.18)
    capacity = swept.per_second

    def draw(axes: Axes, value: Callable[[Measurement], float], label: str, color: str) -> None:
        medians = swept.medians(value)
        axes.plot(list(medians), list(medians.values()), color=color, label=label)
        axes.plot(
            [point.percent for point in swept.points],
            [value(point.measurement) for point in swept.points],
            ".",
            color=color,
        )

    def refused(measured: Measurement) -> float:
        summary = measured.summary
        share = sum(summary.rejected.values()) / max(1, summary.requests)
        return share * summary.offered

    rates.plot([0, 100, 300], [0, capacity, capacity], ":", color="0.6", label="ideal")
    draw(rates, lambda m: m.summary.goodput, "answered in time", "tab:green")
    draw(rates, lambda m: m.summary.throughput, "answered", "tab:blue")
    draw(rates, refused, "refused", "tab:red")
    rates.set(xlabel="offered load, % of capacity", ylabel="requests a second", ylim=(0, None))
    for percentile, color in (("p50", "tab:blue"), ("p95", "tab:orange"), ("p99", "tab:red")):
        draw(times, attrgetter(f"summary.latency.{percentile}"), percentile, color)
    if deadline_s is not None:
        times.axhline(1000 * deadline_s, ls=":", color="0.6", label="deadline")
    times.set(xlabel="offered load, % of capacity", ylabel="latency of answers, ms", ylim=(0, None))
    for axes in (rates, times):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
