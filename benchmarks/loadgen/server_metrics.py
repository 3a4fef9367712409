"""Reads this server's ``/metrics`` before and after a run, and takes the difference.

Percentiles are read from the histograms' buckets as Prometheus' ``histogram_quantile`` does, so
they are only as fine as the buckets; means are exact.
"""

from __future__ import annotations

import math
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

STAGES = "segserve_stage_duration_seconds"
BATCHES = "segserve_batch_size"
REJECTED = "segserve_rejected_total"
CPU = "process_cpu_seconds_total"
MEMORY = "process_resident_memory_bytes"


@dataclass
class Distribution:
    """A histogram: the observations up to each bound, their number, and their sum."""

    buckets: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    count: float = 0.0
    sum: float = 0.0

    @property
    def mean(self) -> float:
        """Returns the mean; nan where nothing was observed."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Returns a quantile, interpolated in its bucket; the endless last one's lower bound."""
        if not self.count:
            return math.nan
        wanted, low, below = share * self.count, 0.0, 0.0
        for bound, upto in sorted(self.buckets.items()):
            if upto >= wanted and upto > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (upto - below)
            low, below = bound, upto
        return low

    def minus(self, earlier: Distribution) -> Distribution:
        """Returns what was observed since ``earlier``."""
        return Distribution(
            {bound: upto - earlier.buckets.get(bound, 0.0) for bound, upto in self.buckets.items()},
            self.count - earlier.count,
            self.sum - earlier.sum,
        )


@dataclass(frozen=True)
class ServerMetrics:
    """The metrics of a server at one moment, or the difference of two; sums over all models.

    Attributes:
        stages: seconds of an image, by stage.
        batches: images in a run of the engine.
        rejected: by reason.
        cpu_seconds: of its process; nan where it does not report them.
        resident_bytes: of its process, now.
    """

    stages: Mapping[str, Distribution]
    batches: Distribution
    rejected: Mapping[str, float]
    cpu_seconds: float
    resident_bytes: float

    def since(self, earlier: ServerMetrics) -> ServerMetrics:
        """Returns what happened since ``earlier``."""
        none = Distribution()
        rejected = {
            reason: count - earlier.rejected.get(reason, 0.0)
            for reason, count in self.rejected.items()
        }
        return ServerMetrics(
            {
                name: stage.minus(earlier.stages.get(name, none))
                for name, stage in self.stages.items()
            },
            self.batches.minus(earlier.batches),
            {reason: count for reason, count in rejected.items() if count},
            self.cpu_seconds - earlier.cpu_seconds,
            self.resident_bytes,
        )


def read_metrics(url: str) -> ServerMetrics:
    """Reads ``/metrics``.

    Raises:
        OSError: the server cannot be reached.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        return parse_metrics(answer.read().decode())


def parse_metrics(text: str) -> ServerMetrics:
    """Reads Prometheus' text format."""
    stages: dict[str, Distribution] = defaultdict(Distribution)
    batches = Distribution()
    rejected: dict[str, float] = defaultdict(float)
    process = {CPU: math.nan, MEMORY: math.nan}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(STAGES):
                _add(stages[sample.labels["stage"]], STAGES, sample)
            elif sample.name.startswith(BATCHES):
                _add(batches, BATCHES, sample)
            elif sample.name == REJECTED:
                rejected[sample.labels["reason"]] += sample.value
            elif sample.name in process:
                process[sample.name] = sample.value
    return ServerMetrics(dict(stages), batches, dict(rejected), process[CPU], process[MEMORY])


def _add(distribution: Distribution, name: str, sample: Sample) -> None:
    """Adds one sample of the histogram ``name``."""
    if sample.name == f"{name}_bucket":
        distribution.buckets[float(sample.labels["le"])] += sample.value
    elif sample.name == f"{name}_sum":
        distribution.sum += sample.value
    elif sample.name == f"{name}_count":
        distribution.count += sample.value
