"""Sums up all rounds of one case: medians, percentiles of all answers, ratios within a round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest.contestants import BASELINE, CONTESTANTS
from benchmarks.contest.measure import Row
from benchmarks.timing import Spread, ratios, spread_of

TITLES = {contestant.name: contestant.title for contestant in CONTESTANTS}


@dataclass(frozen=True)
class Summary:
    """The figures of one server under one load.

    Attributes:
        throughput: of the rounds.
        ratio: throughput by that of plain Triton in the same round; None where that is missing.
        p50_ms, p95_ms, p99_ms: over the answers of all rounds.
        answers: how many they are.
    """

    contestant: str
    title: str
    load: str
    throughput: Spread
    ratio: Spread | None
    p50_ms: float
    p95_ms: float
    p99_ms: float
    answers: int
    server_cpu_s: float
    client_cpu_s: float
    sent_bytes: int
    received_bytes: int
    peak_rss_mib: float
    pss_mib: float
    agreement: float
    errors: tuple[str, ...]


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Returns summaries by load, then in the contestants' order."""
    loads = sorted({row.load for row in rows}, key=lambda load: (load == "open", load))
    summaries = []
    for load in loads:
        for name in TITLES:
            own = [row for row in rows if row.load == load and row.contestant == name]
            if own:
                summaries.append(_sum_up(own, [row for row in rows if row.load == load]))
    return summaries


def _sum_up(own: Sequence[Row], all_rows: Sequence[Row]) -> Summary:
    base = {row.round: row.throughput for row in all_rows if row.contestant == BASELINE}
    paired = [row for row in own if base.get(row.round)]
    latencies = [latency for row in own for latency in row.latencies_ms] or [float("nan")]
    p50, p95, p99 = (float(v) for v in np.percentile(latencies, (50, 95, 99)))

    def median(field: str) -> float:
        return float(np.median([getattr(row, field) for row in own]))

    return Summary(
        contestant=own[0].contestant,
        title=TITLES[own[0].contestant],
        load=own[0].load,
        throughput=spread_of([row.throughput for row in own]),
        ratio=ratios([r.throughput for r in paired], [base[r.round] for r in paired])
        if paired
        else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        answers=sum(len(row.latencies_ms) for row in own),
        server_cpu_s=median("server_cpu_s"),
        client_cpu_s=median("client_cpu_s"),
        sent_bytes=own[-1].sent_bytes,
        received_bytes=own[-1].received_bytes,
        peak_rss_mib=max(row.peak_rss_mib for row in own),
        pss_mib=max(row.pss_mib for row in own),
        agreement=min(row.agreement for row in own),
        errors=tuple(sorted({error for row in own for error in row.errors})),
    )


HEADER = (
    "| server | images/s | of Triton's | p50, s | p95, s | p99, s | CPU s an image: server"
    " | client | to the server, kB | back, kB | peak memory, MiB | equal labels |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(summary: Summary) -> str:
    """Returns a row of the table under :data:`HEADER`."""
    ratio = "" if summary.ratio is None else str(summary.ratio)
    errors = f" ({'; '.join(summary.errors)})" if summary.errors else ""
    return (
        f"| {summary.title}{errors} | {summary.throughput} | {ratio} "
        f"| {summary.p50_ms / 1000:.2f} | {summary.p95_ms / 1000:.2f} | {summary.p99_ms / 1000:.2f}"
        f" | {summary.server_cpu_s:.2f} | {summary.client_cpu_s:.3f} "
        f"| {summary.sent_bytes / 1000:.0f} | {summary.received_bytes / 1000:.0f} "
        f"| {summary.peak_rss_mib:.0f} | {100 * summary.agreement:.2f} % |"
    )


def tables(summaries: Sequence[Summary]) -> str:
    """Returns a table for each load, in Markdown."""
    parts = []
    for load in dict.fromkeys(summary.load for summary in summaries):
        rows = [line(summary) for summary in summaries if summary.load == load]
        parts.append("\n".join((f"**{load}**\n", HEADER, *rows)))
    return "\n\n".join(parts)


@dataclass
class Results:
    """The measurements of all runs of this benchmark on one case.

    Attributes:
        runs: the command and the machine of each call.
        left_out: why, by contestant.
        edges: share (0-1) of the first photo's pixels that have another class beside or below.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    edges: float | None = None


def read_results(path: Path) -> Results:
    """Returns what earlier runs stored; empty results where there is no such file."""
    if not path.is_file():
        return Results()
    read = json.loads(path.read_text("utf-8"))
    rows = [
        Row(**row | {"latencies_ms": tuple(row["latencies_ms"]), "errors": tuple(row["errors"])})
        for row in read["rows"]
    ]
    return Results(read["runs"], read["left_out"], rows, read["subject"]["edges"])
