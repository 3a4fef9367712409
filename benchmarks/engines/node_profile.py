"""Reads the profile that ONNX Runtime writes: which provider ran each node, and for how long.

A profile is a JSON array of events; those of the category ``Node`` whose names end in
``_kernel_time`` are one run of one node each, ``dur`` in microseconds (on a GPU only what the host
spends to launch it). Where a tensor changes the
device, ONNX Runtime inserts nodes called ``MemcpyToHost`` and ``MemcpyFromHost``.
Source: onnxruntime/core/common/profiler.cc.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.engines.onnxruntime import OnnxSubject
from benchmarks.engines.subject import Case
from serving.engines.acceleration import Acceleration

RUNS = 3
_KERNEL = "_kernel_time"
_COPIES = {"MemcpyToHost": "to the host", "MemcpyFromHost": "to the device"}


@dataclass(frozen=True)
class NodeTime:
    """One node: where it ran, how often, and the mean time of a run in microseconds."""

    name: str
    operator: str
    provider: str
    runs: int
    microseconds: float


@dataclass(frozen=True)
class NodeProfile:
    """All nodes of a session, in the order of their first run."""

    nodes: tuple[NodeTime, ...]

    def copies(self) -> tuple[NodeTime, ...]:
        """Returns the nodes that move a tensor between the host and the device."""
        return tuple(node for node in self.nodes if node.operator in _COPIES)

    def outside(self, provider: str) -> tuple[NodeTime, ...]:
        """Returns the nodes that ran elsewhere than on ``provider``, copies left out."""
        return tuple(n for n in self.nodes if n.provider != provider and n.operator not in _COPIES)

    def slowest(self, count: int) -> tuple[tuple[str, float], ...]:
        """Returns the operators that take the most time, and their microseconds a run."""
        total: dict[str, float] = defaultdict(float)
        for node in self.nodes:
            total[node.operator] += node.microseconds
        return tuple(sorted(total.items(), key=lambda item: -item[1])[:count])

    def lines(self, provider: str) -> list[str]:
        """Returns a report of the nodes outside of ``provider`` and of the copies."""
        outside, copies = self.outside(provider), self.copies()
        lines = [f"{len(self.nodes) - len(outside) - len(copies)} nodes on {provider}"]
        lines += [
            f"FELL BACK to {n.provider}: {n.operator} {n.name}, {n.microseconds:.0f} us"
            for n in outside
        ]
        lines += [f"COPY {_COPIES[n.operator]}: {n.name}, {n.microseconds:.0f} us" for n in copies]
        if not outside and not copies:
            lines.append("no node and no copy fell back to the CPU")
        return lines


def read_profile(path: Path) -> NodeProfile:
    """Reads the file that ``InferenceSession.end_profiling`` names.

    Raises:
        ValueError: the file is not such a profile.
    """
    events = json.loads(path.read_text("utf-8"))
    if not isinstance(events, list):
        raise ValueError(
            f"{path} is not a valid profile of ONNX Runtime: expected a JSON array of events"
        )
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        facts = event.get("args", {})
        key = (name.removesuffix(_KERNEL), facts.get("op_name", ""), facts.get("provider", ""))
        times[key].append(float(event.get("dur", 0)))
    if not times:
        raise ValueError(
            f"{path} holds no node: expected at least one run after profiling was enabled"
        )
    return NodeProfile(
        tuple(
            NodeTime(name, operator, provider, len(runs), sum(runs) / len(runs))
            for (name, operator, provider), runs in times.items()
        )
    )


def profile_graph(case: Case, engine: str, acceleration: Acceleration) -> NodeProfile:
    """Runs a case a few times, and returns where its nodes ran.

    Input and output are bound to the device, so every copy in the profile is one that the graph
    itself causes. Kernel by kernel: a captured graph shows no nodes.

    Raises EngineMissing where the provider does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        subject = OnnxSubject(replace(case, graphs=False), engine, acceleration, prefix)
        try:
            # It ran once when it was opened.
            for _ in range(RUNS - 1):
                subject.run()
            return read_profile(subject.end_profile())
        finally:
            subject.close()
