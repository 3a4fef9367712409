"""A sweep as a picture: what is answered in time, and how long answers take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.loadgen.measurement import Measurement
from benchmarks.loadgen.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sweep(swept: Sweep, deadline_s: float | None) -> Figure:
    """Two panels over the offered load in percent of the capacity; needs matplotlib.

    Lines are medians over the rounds, dots the rounds.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4))
    rates, times = figure.subplots(1, 2)
    # Below is a line on the machine.
    figure.subplots_adjust(left=0.06, right=0.99, top=0.97, bottom=0.17, wspace=0.18)
    capacity = swept.per_second

    def draw(axes, value, label, color) -> None:  # type: ignore[no-untyped-def]
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
        draw(
            times,
            lambda m, name=percentile: getattr(m.summary.latency, name),
            percentile,
            color,
        )
    if deadline_s is not None:
        times.axhline(1000 * deadline_s, ls=":", color="0.6", label="deadline")
    times.set(xlabel="offered load, % of capacity", ylabel="latency of answers, ms", ylim=(0, None))
    for axes in (rates, times):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
