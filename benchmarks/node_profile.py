"""Reads the profile that ONNX Runtime writes: which provider ran each node, and for how long.

A profile is a JSON array of events; those of the category ``Node`` whose names end in
``_kernel_time`` are one run of one node each, ``dur`` in microseconds (on a GPU only what the host
spends to launch it). Where a tensor changes the
device, ONNX Runtime inserts nodes called ``MemcpyToHost`` and ``MemcpyFromHost``.
Source: onnxruntime/core/common/profiler.cc.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_KERNEL = "_kernel_time"
_COPIES = {"MemcpyToHost": "to the host", "MemcpyFromHost": "to the device"}


@dataclass(frozen=True)
class NodeTime:
    """One node: where it ran, how often, and the mean of a run in microseconds."""

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
        """The nodes that move a tensor between the host and the device."""
        return tuple(node for node in self.nodes if node.operator in _COPIES)

    def outside(self, provider: str) -> tuple[NodeTime, ...]:
        """The nodes that ran elsewhere than on ``provider``, copies left out."""
        return tuple(n for n in self.nodes if n.provider != provider and n.operator not in _COPIES)

    def slowest(self, count: int) -> tuple[tuple[str, float], ...]:
        """The operators that take the most time, and their microseconds a run."""
        total: dict[str, float] = defaultdict(float)
        for node in self.nodes:
            total[node.operator] += node.microseconds
        return tuple(sorted(total.items(), key=lambda item: -item[1])[:count])

    def lines(self, provider: str) -> list[str]:
        """What to tell about nodes outside of ``provider`` and about copies."""
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
        ValueError: the file is no such profile.
    """
    events = json.loads(path.read_text("utf-8"))
    if not isinstance(events, list):
        raise ValueError(f"{path} is no profile of ONNX Runtime: not an array of events")
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        facts = event.get("args", {})
        key = (name.removesuffix(_KERNEL), facts.get("op_name", ""), facts.get("provider", ""))
        times[key].append(float(event.get("dur", 0)))
    if not times:
        raise ValueError(f"{path} holds no node; was the session run after profiling began?")
    return NodeProfile(
        tuple(
            NodeTime(name, operator, provider, len(runs), sum(runs) / len(runs))
            for (name, operator, provider), runs in times.items()
        )
    )
