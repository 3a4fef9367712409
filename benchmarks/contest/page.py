"""Tables of docs/peers.md from the files of ``peers.py`` and ``overhead.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.contest.cli import read_results
from benchmarks.contest.contestants import OWN
from benchmarks.contest.summary import Summary, summarise
from benchmarks.machine import Machine
from benchmarks.timing import Spread

PRECISIONS = ("int8", "fp32")
HEAD = (
    "| load | server | rounds | images/s | of Triton's | p50, s | p95, s | p99, s "
    "| CPU s an image, server + caller | memory, MiB |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


_Stored = Mapping[str, Any]


class _Told(TypedDict):
    machine: dict[str, object]
    saturated: _Stored
    alone_ms: _Stored
    command: str


def peers_table(name: str, results: Path) -> str:
    """A row a server a load; nothing where the file is missing."""
    kept = read_results(results / f"peers_{name}.json")
    if not kept.rows:
        return ""
    rows = [_row(summary) for summary in summarise(kept.rows)]
    picture = f"![Server by server](../benchmarks/results/peers_{name}.png)"
    runs = [f"`{run['command']}`, {_machine(run['machine'])}.  " for run in kept.runs]
    return "\n".join([HEAD, *rows, "", picture, "", *dict.fromkeys(runs)])


def _row(summary: Summary) -> str:
    # An open loop is answered as fast as it asks: its ratio would say nothing.
    ratio = "" if summary.load == "open" else _ratio(summary)
    return (
        f"| {summary.load} | {summary.title} | {summary.throughput.count} "
        f"| {summary.throughput.median:.3g} | {ratio} | {_seconds(summary.p50_ms)} "
        f"| {_seconds(summary.p95_ms)} | {_seconds(summary.p99_ms)} "
        f"| {_digits(summary.server_cpu_s)} + {summary.client_cpu_s:.3f} "
        f"| {summary.peak_rss_mib:.0f} |"
    )


def _ratio(summary: Summary) -> str:
    if summary.ratio is None:
        return ""
    median = f"{summary.ratio.median:.2f}"
    if summary.contestant in OWN:
        median = f"**{median}**"
    if summary.ratio.count == 1 or summary.ratio.low == summary.ratio.high:
        return median
    return f"{median} ({summary.ratio.low:.2f} to {summary.ratio.high:.2f})"


def _seconds(milliseconds: float) -> str:
    return _digits(milliseconds / 1000)


def _digits(value: float) -> str:
    """Two decimals, or three where these would be one digit."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def overhead_table(name: str, results: Path) -> str:
    """A row a figure, a column a precision; nothing where one of the files is missing."""
    paths = [results / f"overhead_{name}_{precision}.json" for precision in PRECISIONS]
    if not all(path.exists() for path in paths):
        return ""
    told: list[_Told] = [json.loads(path.read_text("utf-8")) for path in paths]
    saturated = [_spreads(one["saturated"]) for one in told]
    alone = [_spreads(one["alone_ms"]) for one in told]
    rows = [
        ("bare engine, images/s", _cells(saturated, "bare")),
        ("served, saturated, images/s", _cells(saturated, "served")),
        ("share of the engine", [_share(one["share"]) for one in saturated]),
        ("CPU seconds an image, bare", _cells(saturated, "bare_cpu_s")),
        ("CPU seconds an image, served", _cells(saturated, "served_cpu_s")),
        ("one caller: engine, ms", _cells(alone, "engine")),
        ("one caller: restore, ms", _cells(alone, "restore")),
        ("one caller: request, ms", _cells(alone, "request")),
        ("one caller: beyond engine and restore, ms", _cells(alone, "beyond")),
    ]
    machines = [_machine(one["machine"]) for one in told]
    return "\n".join([
        f"| | {' | '.join(PRECISIONS)} |",
        "|---" * (1 + len(PRECISIONS)) + "|",
        *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows),
        "",
        *(f"`{one['command']}`, {machine}.  " for one, machine in zip(told, machines, strict=True)),
    ])  # fmt: skip


def _machine(stored: object) -> str:
    assert isinstance(stored, dict)
    return Machine(**stored).line()


def _spreads(stored: _Stored) -> dict[str, Spread]:
    return {name: Spread(**told) for name, told in stored.items() if name != "stages"}


def _cells(parts: Sequence[Mapping[str, Spread]], key: str) -> list[str]:
    return [str(part[key]) for part in parts]


def _share(share: Spread) -> str:
    return f"**{100 * share.median:.1f} %** ({100 * share.low:.1f}-{100 * share.high:.1f})"
