"""Small facts of the Open Inference Protocol that both transports need."""

from __future__ import annotations

import re
from importlib.metadata import version

from serving.errors import InvalidRequest
from serving.settings import Settings

SERVER_NAME = "segserve"
SERVER_VERSION = version("segserve")
# Of extensions that Triton has and this server refuses.
CUDA_REFUSED = "CUDA shared memory is not supported; use system shared memory"
TRACE_REFUSED = "trace settings are not supported"
LOG_REFUSED = "log settings are not supported; the log level is the process's own"
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def list_extensions(settings: Settings) -> tuple[str, ...]:
    """Triton's extensions that this server has, by Triton's names."""
    shared_memory = ("system_shared_memory",) if settings.enable_shared_memory else ()
    return (
        "model_repository",
        "schedule_policy",
        "model_configuration",
        *shared_memory,
        "binary_tensor_data",
        "parameters",
        "statistics",
    )


def parse_version(text: str) -> int | None:
    """A version from a path or message; None for the empty string.

    Raises:
        InvalidRequest: not a positive integer without leading zeros.
    """
    if not text:
        return None
    if not _VERSION.fullmatch(text):
        raise InvalidRequest(
            f"version {text[:64]!r} is not a valid version: expected a positive integer "
            f"(1 to {10**9 - 1}, ASCII digits, no leading zeros)"
        )
    return int(text)
