"""The Open Inference Protocol's ``infer``, as a request and an answer without a transport.

Facts of the protocol that both transports need stand here too: names, versions, and the texts for
the extensions that Triton has and this server refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from serving.oip.shared_memory import RegionSlice
from serving.oip.tensors import Tensor
from serving.settings import Settings


@dataclass(frozen=True)
class RequestedOutput:
    """An output and where it goes.

    Attributes:
        binary: behind the JSON part, not in it; HTTP only.
        place: in shared memory, not in the answer.
    """

    name: str
    binary: bool = False
    place: RegionSlice | None = None


@dataclass(frozen=True)
class InferRequest:
    """One inference; no ``outputs`` means all of the model's own.

    Attributes:
        timeout_s: the transport's deadline (gRPC's, or the header's), from now.
        policy_timeout_s: the parameter ``timeout``, which the model's queue policy acts upon.
        priority: 1 goes first, 0 is the model's default.
        binary: as in RequestedOutput, where ``outputs`` is empty.
    """

    model: str
    version: int | None
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    timeout_s: float | None = None
    policy_timeout_s: float | None = None
    priority: int = 0
    binary: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """An output; its data is in shared memory already where ``requested.place`` names some."""

    requested: RequestedOutput
    tensor: Tensor


@dataclass(frozen=True)
class InferResponse:
    """The answer, outputs in the order of the model's configuration."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]


SERVER_NAME = "segserve"
SERVER_VERSION = version("segserve")
# Of extensions that Triton has and this server refuses.
CUDA_REFUSED = "CUDA shared memory is not supported; use system shared memory"
TRACE_REFUSED = "trace settings are not supported"
LOG_REFUSED = "log settings are not supported; the log level is the process's own"


def list_extensions(settings: Settings) -> tuple[str, ...]:
    """Returns Triton's extensions that this server has, by Triton's names."""
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
