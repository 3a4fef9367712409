"""Small facts of the Open Inference Protocol that both transports need."""

from __future__ import annotations

from importlib.metadata import version

from serving.errors import InvalidRequest
from serving.settings import Settings

SERVER_NAME = "segserve"
SERVER_VERSION = version("segserve")
# Of extensions that Triton has and this server refuses.
CUDA_REFUSED = "CUDA shared memory is not supported; use system shared memory"
TRACE_REFUSED = "trace settings are not supported"
LOG_REFUSED = "log settings are not supported; the log level is the process's own"


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
        InvalidRequest: not a positive integer.
    """
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InvalidRequest(f"version {text!r} is not a positive integer")
    return int(text)
