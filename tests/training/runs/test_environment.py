"""A run notes the revision of the checkout that it ran from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from training.runs.environment import read_environment

ROOT = Path(__file__).parents[3]


def test_the_revision_is_that_of_the_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    here = read_environment()
    assert here.git_revision == head
    assert here.git_dirty in (True, False)
