"""Several processes, or several devices of one, validate as a single one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

SCRIPTS = Path(__file__).parent / "scripts"
# One more than the images between two meetings of two processes, and one more.
IMAGES = 17
FLAGS = "--crop-size 64x96 --base-size 96 --no-cuda --batch-size 2 --dataset camvid"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_scenes) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"val": IMAGES})


def launch(folder: Path, root: Path, symbol: Path, processes: int, **environment: str) -> int:
    """The exit status of ``replica_validation.py``."""
    network = "--trainer", "torch", "--symbol", symbol
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", SCRIPTS / "replica_validation.py", folder,
               *FLAGS.split(), *network, "--root", root]  # fmt: skip
    around = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, env=around, check=False, timeout=240
    )
    assert environment or done.returncode == 0, done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def scored(
    steady_symbol: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one process and two found: by ``world-rank``."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"scored-{processes}")
        launch(folder, root, steady_symbol, processes)
        for rank in range(processes):
            found[f"{processes}-{rank}"] = json.loads((folder / f"scored-{rank}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", ["odd", "averaged", "mixed"])
def test_two_processes_count_what_one_counts(scored: dict[str, Any], case: str) -> None:
    alone, first, second = (scored[which][case] for which in ("1-0", "2-0", "2-1"))
    pixels = np.array(alone["matrices"][0])
    assert pixels.sum() > IMAGES * 1000
    assert np.count_nonzero(pixels.sum(0)) > 1, "more than one class is predicted"
    assert len(alone["matrices"]) == (2 if case == "mixed" else 1)
    assert first["matrices"] == second["matrices"] == alone["matrices"]
    assert sorted(first["seen"] + second["seen"]) == sorted(alone["seen"])
    assert abs(len(first["seen"]) - len(second["seen"])) <= 1


@pytest.mark.slow
def test_where_one_process_cannot_go_on_none_does(scored: dict[str, Any]) -> None:
    first, second = scored["2-0"], scored["2-1"]
    assert second["refused"] == {"kind": "ValueError", "message": "no image 3"}
    assert first["refused"] == {
        "kind": "FailedElsewhere", "message": "another process failed: ValueError: no image 3"
    }  # fmt: skip
    assert first["told"] == second["told"] == {"kind": "Interrupted", "message": "SIGINT"}
    assert scored["1-0"]["refused"]["kind"] == scored["1-0"]["told"]["kind"] == ""


@pytest.mark.slow
def test_a_process_without_any_image_waits_for_nobody(scored: dict[str, Any]) -> None:
    assert scored["2-0"]["one"]["kind"] == scored["2-1"]["one"]["kind"] == ""


@pytest.mark.slow
def test_a_process_that_ends_is_not_waited_for(
    steady_symbol: Path, root: Path, tmp_path: Path
) -> None:
    """The launch has a limit of its own; the backend waits for half an hour."""
    assert launch(tmp_path, root, steady_symbol, 2, ENDS="1") != 0
    assert (tmp_path / "left.txt").read_text()


@pytest.fixture(scope="module")
def devices(run_script, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What MXNet did on two CPU contexts of one process."""
    folder = tmp_path_factory.mktemp("devices")
    flags = f"{FLAGS} --backbone resnet18 --width 0.25 --root {root}"
    run_script("device_validation", folder, *flags.split())
    return json.loads((folder / "devices.json").read_text())


@pytest.mark.slow
def test_two_devices_of_one_process_count_what_one_counts(devices: dict[str, Any]) -> None:
    """Each trained with statistics of its own; the first one's are written, and validated."""
    assert devices["apart"] > 0.01
    assert devices["images"] == {"cpu(0)": 9, "cpu(1)": 8}
    assert devices["together"] == devices["alone"]
    assert np.count_nonzero(np.sum(devices["alone"], 0)) > 1


@pytest.mark.slow
def test_two_devices_take_the_step_of_one(devices: dict[str, Any]) -> None:
    apart, losses_apart = devices["steps"]
    assert apart < 1e-3
    assert losses_apart < 1e-5


@pytest.mark.slow
def test_one_device_reads_what_several_trained_with_synchronised_norms(
    devices: dict[str, Any],
) -> None:
    """Their parameters have one name, so they also are the backbone's or the head's alike."""
    found = devices["synchronised"]
    assert found["kinds"] == ["SyncBatchNorm"]
    assert found["same_rates"]
    assert found["apart"] < 1e-4
