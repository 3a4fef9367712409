"""The public package: its names, and that a user's own modules never stand in for ours."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import segserve

SHADOWED = ("serving", "export", "training", "segserve_client")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with modules of our packages' names that end whoever imports them."""
    for name in SHADOWED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    (tmp_path / "benchmarks.py").write_text("raise SystemExit('a stranger was imported')")
    return tmp_path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=180,
        env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


def test_names_and_version() -> None:
    from segserve_client import Client

    from export.pipeline import export_symbol

    assert segserve.__version__ == version("segserve")
    assert segserve.Client is Client
    assert segserve.export_symbol is export_symbol
    assert segserve.ExportRequest.__name__ == "ExportRequest"
    with pytest.raises(AttributeError, match="'segserve' has no attribute 'Server'"):
        segserve.Server  # noqa: B018


def test_importing_it_imports_none_of_the_rooms() -> None:
    code = "import sys, segserve; print({'serving', 'export', 'onnxruntime'} & set(sys.modules))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("models", "--help"),
        ("export", "--help"),
        ("dataset", "--help"),
        ("segment", "--help"),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("where", ["PYTHONPATH", "working folder"])
def test_modules_of_the_same_name_do_not_shadow_ours(
    folder: Path, arguments: tuple[str, ...], where: str
) -> None:
    if where == "PYTHONPATH":
        command = (str(Path(sys.executable).with_name("segserve")), *arguments)
        ended = run(folder, *command, PYTHONPATH=str(folder))
    else:
        # Python puts the working folder first on its path for -m.
        ended = run(folder, sys.executable, "-m", "segserve", *arguments)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "stranger" not in ended.stderr + ended.stdout


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "segserve", "--version"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout.strip() == version("segserve")
