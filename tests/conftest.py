"""For all tests: limits for machines that do much else, signals as in a terminal, and which tests
stay together where several processes run them."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.support.waiting import SECONDS

# httpx gives up after five seconds where it is not told otherwise, and shares one default.
_default = inspect.signature(httpx.get).parameters["timeout"].default
_default.connect = _default.read = _default.write = _default.pool = SECONDS

# Answers are compared to the last bit, or with MXNet: not by an engine that depends on the machine.
os.environ.setdefault("SEGSERVE_CPU_ENGINE", "onnxruntime")

# How long examples take to make and to run says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell's background job ignores Ctrl-C, and so would all that tests start and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Its fixtures are the folder's, not a file's: one Triton and its repository.
ONE_PROCESS = frozenset({"triton"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist (``-n``) the tests of a file share a process, and so its fixtures."""
    tests = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(tests) if item.path.is_relative_to(tests) else item.path
        group = path.parts[0] if path.parts[0] in ONE_PROCESS else path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
