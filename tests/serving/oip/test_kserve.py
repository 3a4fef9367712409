"""KServe's SDK over REST, in an environment of its own: its packages are many and not ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.band_model import Served, band_labels, bands
from tests.support.own_environment import make_environment

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.slow
def test_the_sdk_infers_and_reads_readiness(served: Served, tmp_path: Path) -> None:
    lines = (SUPPORT / "kserve_requirements.txt").read_text("utf-8").splitlines()
    requirements = [line for line in lines if not line.startswith("#")]
    python = make_environment("kserve", *requirements) / "python"
    pixels = bands(32, 48)[None]
    np.save(tmp_path / "pixels.npy", pixels)
    command = [
        str(python),
        str(SUPPORT / "ask_kserve.py"),
        f"http://{served.http}",
        str(tmp_path / "pixels.npy"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert (told["live"], told["ready"], told["model ready"]) == (True, True, True)
    for binary in (False, True):
        assert told[f"mask, binary {binary}"] == band_labels(32, 48).reshape(-1).tolist()
