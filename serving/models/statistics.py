"""Counts and durations of one version of a model, as the statistics extension reports them.

A request's ``compute_input`` is decoding and resizing, ``compute_infer`` the engine's run that it
was part of, ``compute_output`` restoring and encoding; a batch's are assembling it, the run, and
handing its rows out. Where a request holds several images, its slowest one counts.

Source: Triton's extension_statistics.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.batching.batch import Execution

COMPUTE = ("compute_input", "compute_infer", "compute_output")
# Stages of Timings.seconds that each duration of the extension holds.
STAGES = {
    "queue": ("queue",),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("infer",),
    "compute_output": ("restore", "encode"),
}


@dataclass
class Duration:
    """How often, and for how long together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass
class InferenceStatistics:
    """Filled on the event loop, from the batcher's runs and from finished requests.

    Attributes:
        last_inference_ms: since 1970 in UTC; 0 before the first.
        inference_count: images inferred.
        execution_count: runs of the engine.
        requests: by the extension's name; ``fail`` holds valid requests that got no answer.
        batches: by batch size, then by name.
    """

    wall_clock: Callable[[], float] = time.time
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    requests: dict[str, Duration] = field(
        default_factory=lambda: {name: Duration() for name in ("success", "fail", *STAGES)}
    )
    batches: dict[int, dict[str, Duration]] = field(default_factory=dict)

    def add_execution(self, execution: Execution) -> None:
        """Notes one run of the engine."""
        self.last_inference_ms = round(self.wall_clock() * 1000)
        self.inference_count += execution.size
        self.execution_count += 1
        batch = self.batches.setdefault(execution.size, {name: Duration() for name in COMPUTE})
        batch["compute_input"].add(execution.input_seconds)
        batch["compute_infer"].add(execution.infer_seconds)
        batch["compute_output"].add(execution.output_seconds)

    def add_success(self, seconds: float, images: Sequence[Mapping[str, float]]) -> None:
        """Notes an answered request: its whole time, and the seconds a stage of its images."""
        self.requests["success"].add(seconds)
        for name, stages in STAGES.items():
            spent = (sum(image.get(stage, 0.0) for stage in stages) for image in images)
            self.requests[name].add(max(spent, default=0.0))

    def add_failure(self, seconds: float) -> None:
        """Notes a valid request that got no answer."""
        self.requests["fail"].add(seconds)
