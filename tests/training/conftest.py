"""MXNet outside this process, and a small dataset in CamVid's layout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from training.datasets.synthetic import render_scene

SCRIPTS = Path(__file__).parent / "scripts"
RunScript = Callable[..., str]
WriteScenes = Callable[[Path, dict[str, int]], Path]


@pytest.fixture(scope="session")
def run_script() -> RunScript:
    """Runs ``scripts/<name>.py`` in a process that may import MXNet; returns its stdout."""
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed (extra 'training')")

    def run(name: str, *arguments: str | Path) -> str:
        command = [sys.executable, "-W", "ignore", SCRIPTS / f"{name}.py", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
