"""MXNet outside this process, and a small dataset in CamVid's layout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.symbols.graph import read_symbol
from training.datasets.synthetic import render_scene

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
RunScript = Callable[..., str]
WriteScenes = Callable[[Path, dict[str, int]], Path]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """The networks of these tests are tiny, and two threads wait for each other by spinning."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_script() -> RunScript:
    """Runs ``scripts/<name>.py`` in a process that may import MXNet; returns its stdout."""
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed (extra 'training')")

    def run(name: str, *arguments: str | Path) -> str:
        command = [sys.executable, "-W", "ignore", SCRIPTS / f"{name}.py", *arguments]
        # Some compare with GluonCV, which benchmarks/ imports.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def write_scenes() -> WriteScenes:
    """``write_scenes(root, {"train": 6})`` renders scenes of 64x96 into CamVid's flat layout."""

    def write(root: Path, lengths: dict[str, int]) -> Path:
        for offset, (split, length) in enumerate(lengths.items()):
            images, labels = root / split, root / f"{split}annot"
            images.mkdir(parents=True)
            labels.mkdir()
            for index in range(length):
                scene = render_scene(100 * offset + index, 64, 96)
                assert cv2.imwrite(str(images / f"{index:03}.png"), scene.image[..., ::-1])
                assert cv2.imwrite(str(labels / f"{index:03}.png"), scene.label)
        return root

    return write


@pytest.fixture(scope="session")
def steady_symbol(run_script: RunScript, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ICNet for 64x96 and 11 classes without dropout, which draws other numbers in compiled code
    and in each of several processes; ``batch.npz`` beside it."""
    folder = tmp_path_factory.mktemp("steady")
    random = np.random.default_rng(5)
    np.savez(
        folder / "batch.npz",
        images=random.standard_normal((2, 3, 64, 96)).astype(np.float32),
        labels=random.integers(0, 11, (2, 64, 96)).astype(np.uint8),
        weights=np.ones(11, np.float32),
    )
    run_script("one_step", folder)
    path = folder / "network-symbol.json"
    assert all(node.op != "Dropout" for node in read_symbol(path).nodes)
    return path
