"""ONNX Runtime sends nothing home, and writes no identifier, on this project's behalf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = """
import os, {module}
from pathlib import Path
from serving.engines.onnxruntime import OnnxEngine
engine = OnnxEngine(Path("model_repository/icnet/1/model.onnx"), instances=1, threads=1,
                    max_batch_size=1)
engine.close()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(module: str, home: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **variables}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(module=module)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "elemetry" not in done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["serving.engines.onnxruntime", "export.verify", "benchmarks.engines.speed"]
)
def test_it_is_off_unless_somebody_turns_it_on(tmp_path: Path, module: str) -> None:
    assert run(module, tmp_path) == "1"
    left = [path.name for path in tmp_path.rglob("*") if "deviceid" in path.name]
    assert left == []


def test_who_wants_it_may_have_it(tmp_path: Path) -> None:
    assert run("serving", tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
