"""A real model scored over HTTP, over gRPC and in the process: the same numbers three times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from serving.palette import load_labels
from serving.settings import Settings
from serving.testing import ServerThread
from training.datasets.synthetic import render_scene
from training.evaluation.cli import evaluate

ROOT = Path(__file__).resolve().parents[3]
REPOSITORY = ROOT / "model_repository"
# A process that has neither framework; None makes an import fail as if it were not there.
WITHOUT = """
import sys
for name in ("mxnet", "gluoncv", "torch", "matplotlib"):
    sys.modules[name] = None
from typer import Typer
from training.evaluation.cli import evaluate
app = Typer()
app.command()(evaluate)
app()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rendered scenes of several sizes, as one's own photos: JPEG, the masks indexed."""
    root = tmp_path_factory.mktemp("photos")
    (root / "labels.txt").write_text("\n".join(load_labels("camvid").names))
    for folder in ("images/val", "masks/val"):
        (root / folder).mkdir(parents=True)
    for seed, size in enumerate(((120, 160), (176, 240), (97, 201), (160, 120), (240, 320))):
        scene = render_scene(seed, *size)
        Image.fromarray(scene.image).save(root / f"images/val/{seed}.jpg", quality=90)
        Image.fromarray(scene.label).save(root / f"masks/val/{seed}.png")
    return root


def arguments(photos: Path, scores: Path) -> list[str]:
    return [
        "--model", "icnet", "--dataset", "folder", "--root", str(photos), "--json", str(scores),
    ]  # fmt: skip


def run(photos: Path, scores: Path, *where: str) -> dict[str, Any]:
    app = Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [*arguments(photos, scores), *where])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(scores.read_text())
    assert found.pop("server") == where[1]
    return found


def test_three_ways_one_score(photos: Path, tmp_path: Path) -> None:
    settings = Settings(
        repository=REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
    )
    with ServerThread(settings) as server:
        http = run(photos, tmp_path / "1.json", "--server", f"127.0.0.1:{server.ports.http}")
        grpc = run(photos, tmp_path / "2.json", "--server", f"grpc://127.0.0.1:{server.ports.grpc}")
    embedded = run(photos, tmp_path / "3.json", "--repository", str(REPOSITORY))
    assert http == grpc == embedded
    assert (http["images"], http["model"], http["dataset"]) == (5, "icnet", "folder")
    assert http["mean_iou"] > 0.25, "the model has seen such scenes: equal, and not by chance"
    assert len({image["mean_iou"] for image in http["per_image"]}) == 5


def test_neither_framework_is_needed(photos: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments(photos, tmp_path / "scores.json"),
         "--repository", str(REPOSITORY), "--limit", "2"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 2


def test_a_model_that_the_repository_lacks_is_named(photos: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(evaluate)
    command = arguments(photos, tmp_path / "scores.json")
    command[1] = "pspnet"
    result = CliRunner().invoke(app, [*command, "--repository", str(REPOSITORY)])
    assert result.exit_code == 1
    assert "unknown model 'pspnet'" in result.output
    result = CliRunner().invoke(app, [*command, "--repository", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no model repository at" in result.output
