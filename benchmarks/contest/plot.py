"""Draws the summaries of one case as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contest.summary import Summary
from benchmarks.machine import above_footer

WIDTH_IN, HEIGHT_IN = 14.0, 9.0


def plot_summaries(title: str, summaries: Sequence[Summary]) -> Figure:
    """Draws throughput by callers, and latency, CPU time, bytes and memory under selected loads."""
    figure = Figure((WIDTH_IN, HEIGHT_IN), layout="constrained")
    above_footer(figure, 0.025)
    figure.suptitle(f"JPEG in, coloured mask out: {title}")
    axes = figure.subplots(2, 3, sharey=True).ravel()
    loads = list(dict.fromkeys(summary.load for summary in summaries))
    closed = [load for load in loads if load != "open"]
    least = closed[:1]
    # The busiest of those that most servers had.
    most = [max(closed, key=lambda load: (_count(summaries, load), closed.index(load)))]
    quiet = ["open"] if "open" in loads else least
    _bars(axes[0], "images a second", summaries, closed, lambda s: s.throughput.median)
    _bars(axes[1], "p50 latency, s", summaries, loads, lambda s: s.p50_ms / 1000)
    _bars(axes[2], "p95 latency, s", summaries, quiet, lambda s: s.p95_ms / 1000)
    axes[3].set_title(f"CPU seconds an image: server, client ({most[0]})", fontsize=9)
    _stack(axes[3], summaries, most, lambda s: s.server_cpu_s, lambda s: s.client_cpu_s)
    axes[4].set_title("kB on the wire: to the server, back", fontsize=9)
    _stack(
        axes[4], summaries, least, lambda s: s.sent_bytes / 1000, lambda s: s.received_bytes / 1000
    )
    _bars(axes[5], "peak memory, MiB (sum of resident sets)", summaries, most,
          lambda s: s.peak_rss_mib)  # fmt: skip
    return figure


def _bars(
    axes: Axes,
    title: str,
    summaries: Sequence[Summary],
    loads: Sequence[str],
    value: Callable[[Summary], float],
) -> None:
    names = _names(summaries)
    height = 0.8 / max(1, len(loads))
    for step, load in enumerate(loads):
        own = {s.title: value(s) for s in summaries if s.load == load}
        places = [names.index(name) + (step - (len(loads) - 1) / 2) * height for name in own]
        axes.barh(places, list(own.values()), height, label=load)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    _name(axes, names)


def _stack(
    axes: Axes,
    summaries: Sequence[Summary],
    loads: Sequence[str],
    first: Callable[[Summary], float],
    second: Callable[[Summary], float],
) -> None:
    names = _names(summaries)
    own = [summary for summary in summaries if summary.load in loads]
    places = [names.index(summary.title) for summary in own]
    left = [first(summary) for summary in own]
    axes.barh(places, left, 0.6)
    axes.barh(places, [second(summary) for summary in own], 0.6, left=left)
    _name(axes, names)


def _count(summaries: Sequence[Summary], load: str) -> int:
    return sum(summary.load == load for summary in summaries)


def _names(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(summary.title for summary in summaries))


def _name(axes: Axes, names: Sequence[str]) -> None:
    wrapped = [name.replace(" (", "\n(").replace(", graph", ",\ngraph") for name in names]
    axes.set_yticks(range(len(names)), wrapped, fontsize=7)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
