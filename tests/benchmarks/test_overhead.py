"""What the server adds to its engine: the profile's arithmetic, and one run on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.contest import cases
from benchmarks.contest.cases import CASES, Case
from benchmarks.studies import overhead
from benchmarks.studies.copies import write_small_model
from benchmarks.studies.server_profile import read_stacks
from serving.imaging.geometry import Size

STACKS = """\
run (serving/cli.py:1);Segmenter.segment (serving/service.py:80) 2
_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:83) 50
_bootstrap (threading.py:1);_answer (serving/service.py:2);indexed (serving/formats/png.py:34);\
write_png (serving/formats/png.py:14);_write (serving/formats/png.py:71) 3
_bootstrap (threading.py:1);OnnxEngine.run (serving/engines/onnxruntime.py:83);\
InferenceSession.run (onnxruntime/capi/onnxruntime_inference_collection.py:1) 4
run (serving/cli.py:1);Runner.run (asyncio/runners.py:118) 70
run (serving/cli.py:1);RequestResponseCycle.send (uvicorn/protocols/http/httptools_impl.py:9) 1
"""


def test_stacks_become_shares_of_stages() -> None:
    assert read_stacks(STACKS) == {
        "serving/engines/onnxruntime.py": 0.4,
        "serving/formats/png.py": 0.3,
        "serving/service.py": 0.2,
        "event loop and the rest": 0.1,
    }
    assert read_stacks("") == {}


@pytest.mark.slow
def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(64, 96)
    write_small_model(tmp_path, size)
    case = Case("small", "one convolution", None, size, size, 1, 1, 1, shipped=tmp_path / "net")
    monkeypatch.setitem(CASES, "small", case)
    monkeypatch.setattr(cases, "cache_folder", lambda: tmp_path / "cache")
    overhead.overhead(
        "small", "fp32", None, rounds=2, seconds=0.3, turns=2, callers=2, profile=False,
        results=tmp_path,
    )  # fmt: skip
    written = json.loads((tmp_path / "overhead_small_fp32.json").read_text())
    assert written["saturated"]["share"]["count"] == 2
    assert written["saturated"]["served"]["median"] > 0
    alone = written["alone_ms"]
    assert min(alone[part]["median"] for part in ("request", "engine", "restore")) > 0
    assert alone["beyond"]["count"] == 2
    assert set(alone["stages"]) == {"decode", "preprocess", "queue", "infer", "restore", "encode"}
    assert written["profile"] is None
