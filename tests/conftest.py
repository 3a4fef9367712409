"""Limits for machines that do much else: what waits, waits longer than it must anywhere."""

from __future__ import annotations

import inspect

import httpx
from hypothesis import HealthCheck, settings
from waiting import SECONDS

# httpx gives up after five seconds where it is not told otherwise, and shares one default.
_default = inspect.signature(httpx.get).parameters["timeout"].default
_default.connect = _default.read = _default.write = _default.pool = SECONDS

# How long examples take to make and to run says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
