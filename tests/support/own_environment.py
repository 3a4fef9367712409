"""Environments of their own for what cannot share the tests': kept in the cache folder.

Where packages cannot be had (no network) the test is skipped; with ``SEGSERVE_TEST_NO_SKIP`` set,
as in CI, it fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.contest import processes as environments
from benchmarks.contest.processes import Unavailable


def unavailable(reason: str) -> None:
    """Skips the test, or fails it where nothing may be skipped."""
    if os.environ.get("SEGSERVE_TEST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


def make_environment(name: str, *requirements: str) -> Path:
    """Installs the requirements once; returns the environment's ``bin`` folder."""
    try:
        return environments.make_environment(name, *requirements)
    except Unavailable as reason:
        unavailable(str(reason))
        raise
