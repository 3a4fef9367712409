"""Sums up a run: rates, latencies, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.loadgen.driver import Record, Run


@dataclass(frozen=True)
class Latencies:
    """Latencies in milliseconds from when requests were due; all nan where there are none."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        """Returns the figures of latencies in seconds."""
        if not seconds:
            return cls(*[float("nan")] * 5)
        ms = np.asarray(seconds) * 1000
        return cls(float(ms.mean()), *(float(np.percentile(ms, q)) for q in (50, 95, 99, 100)))


@dataclass(frozen=True)
class Summary:
    """The figures of a run without its start; rates a second, latencies in milliseconds.

    Attributes:
        offered: requests that were due.
        throughput: answers, in time or not.
        goodput: answers in time; equal to ``throughput`` where there is no deadline.
        in_time_share: of all requests (0-1).
        late: answers after the deadline.
        rejected: refusals by the server's code; ``errors`` likewise.
        lateness: of the generator.
        client_cpu: cores that the generator used, of the whole run.
    """

    title: str
    load: str
    requests: int
    offered: float
    throughput: float
    goodput: float
    in_time_share: float
    late: int
    rejected: Mapping[str, int]
    errors: Mapping[str, int]
    latency: Latencies
    refusal: Latencies
    lateness: Latencies
    client_cpu: float
    max_in_flight: int


def summarise(run: Run, *, deadline_s: float | None = None, skip_s: float = 0.0) -> Summary:
    """Sums up the requests that were due after ``skip_s``, in which queues fill and caches warm.

    Args:
        deadline_s: an answer counts as good if it came within it, from when it was due.
    """
    measured = run.seconds - skip_s
    records = [record for record in run.records if skip_s <= record.due < run.seconds]
    answered = [record for record in records if record.outcome.status == "ok"]
    good = [r for r in answered if deadline_s is None or r.latency <= deadline_s]
    # All that ended within the stretch, whenever they were due.
    ended = [r for r in run.records if skip_s <= r.ended < run.seconds]
    throughput = sum(record.outcome.status == "ok" for record in ended) / measured
    refused = [record for record in records if record.outcome.status == "rejected"]
    return Summary(
        title=run.title,
        load=run.load,
        requests=len(records),
        offered=len(records) / measured,
        throughput=throughput,
        goodput=len(good) / measured,
        in_time_share=len(good) / len(records) if records else 0.0,
        late=len(answered) - len(good),
        rejected=_count(refused),
        errors=_count([r for r in records if r.outcome.status == "error"]),
        latency=Latencies.of([record.latency for record in answered]),
        refusal=Latencies.of([record.latency for record in refused]),
        lateness=Latencies.of([record.lateness for record in records]),
        client_cpu=run.cpu_seconds / max((r.ended for r in run.records), default=run.seconds),
        max_in_flight=run.max_in_flight,
    )


def _count(records: Sequence[Record]) -> dict[str, int]:
    return dict(Counter(record.outcome.reason for record in records).most_common())
