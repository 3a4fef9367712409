"""What a refusal costs: one run against a server of its own, over both transports."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies import refusals
from benchmarks.studies.copies import write_small_model
from serving.imaging.geometry import Size


def test_a_run(tmp_path: Path) -> None:
    write_small_model(tmp_path / "models", Size(32, 48))
    refusals.main(
        repository=tmp_path / "models", transports="HTTP,gRPC", sizes="1000,300000", rounds=1,
        requests=4, profile=False, name="found", results=tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    told = [(cost["transport"], cost["body_bytes"]) for cost in found["costs"]]
    assert told == [("HTTP", 1000), ("HTTP", 300000), ("gRPC", 1000), ("gRPC", 300000)]
    assert all(cost["wall_ms"]["median"] > 0 for cost in found["costs"])
