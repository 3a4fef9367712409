"""``docs/tutorial.md``, run: its own commands, on a few rendered photos, up to HTTP's answers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.contest.processes import free_ports
from serving.palette import load_labels
from tests.support.own_environment import unavailable
from training.datasets.synthetic import render_scene

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
LABELS = load_labels("camvid")
PHOTOS = {"train": 10, "val": 3}
READY = "segserve is ready"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("mxnet", "torch")),
        reason="mxnet or torch is not installed (extra 'training')",
    ),
]


def read_page() -> list[str]:
    """The fenced blocks of shell commands, in their order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7, "variables, check, train, export, serve, curl, evaluate"
    return blocks


def replace_variables(block: str, values: dict[str, str]) -> str:
    """The first block with other numbers; each of its variables is given one, and no other."""
    assert set(re.findall(r"^(\w+)=", block, re.MULTILINE)) == set(values)
    for name, value in values.items():
        block = re.sub(rf"^{name}=\S+", f"{name}={value}", block, flags=re.MULTILINE)
    return block


def write_photos(root: Path) -> None:
    """Rendered scenes; the masks of one split indexed, of the other in colour."""
    lines = (
        f"{name}\t#{r:02x}{g:02x}{b:02x}\n"
        for name, (r, g, b) in zip(LABELS.names, LABELS.colors, strict=True)
    )
    root.mkdir()
    (root / "labels.txt").write_text("".join(lines))
    table = np.zeros((256, 3), np.uint8)
    table[: len(LABELS.colors)] = LABELS.colors
    table[255] = 0xE0, 0xE0, 0xC0
    for split, count in PHOTOS.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            scene = render_scene(1000 * len(split) + index, 90, 120)
            name = f"{split}{index}"
            Image.fromarray(scene.image).save(root / f"images/{split}/{name}.jpg", quality=95)
            mask = scene.label if split == "train" else table[scene.label]
            Image.fromarray(mask).save(root / f"masks/{split}/{name}.png")


def shell(commands: str, cwd: Path) -> subprocess.Popen[str]:
    """Bash in a session of its own, so that it can be stopped with what it has started."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SEGSERVE_GRPC_PORT": "0",
        "SEGSERVE_METRICS_PORT": "0",
        "SEGSERVE_DRAIN_SECONDS": "0",
    }
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=cwd, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(commands: str, cwd: Path) -> str:
    with shell(commands, cwd) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, f"{commands}\n{output}"
    return output


@contextmanager
def serving(commands: str, cwd: Path) -> Iterator[None]:
    """What stays in the foreground of one shell while another is used."""
    with shell(commands, cwd) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if READY in line:
                    break
            else:
                pytest.fail("".join(lines))
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=120)


def test_the_commands_lead_to_a_served_model(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        unavailable("the page asks the server with curl, which is not installed")
    write_photos(tmp_path / "photos")
    # The page's commands run in the project's folder, and write into it; here, beside a link to it.
    (tmp_path / "training").symlink_to(ROOT / "training")
    variables, *three, serve, ask, evaluate = read_page()
    values = {"DATA": "photos", "NAME": "mine", "SIZE": "64x96", "EPOCHS": "1"}
    given = replace_variables(variables, {**values, "PORT": "0"})
    check, train, export = (given + block for block in three)
    assert "13 pairs, no problems" in run(check, tmp_path)
    run(train, tmp_path)
    assert (tmp_path / "runs/folder/icnet/mine/best.params").stat().st_size > 1_000_000
    assert "11 classes, 64x96" in run(export, tmp_path)
    # Only now: what is free before a training may be taken after it.
    variables = replace_variables(variables, {**values, "PORT": str(free_ports(1)[0])})
    with serving(variables + serve, tmp_path):
        run(variables + ask, tmp_path)
        scored = run(variables + evaluate, tmp_path)
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (120, 90)
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.size == (120, 90)
        assert int(np.array(labels).max()) < len(LABELS.names)
        palette = labels.getpalette() or []
    assert palette[: 3 * len(LABELS.names)] == [value for color in LABELS.colors for value in color]
    assert "images 3 " in scored
    scores = json.loads((tmp_path / "scores/evaluation.json").read_text())
    assert [entry["name"] for entry in scores["classes"]] == list(LABELS.names)
    assert (tmp_path / "scores/examples.png").stat().st_size > 10_000
