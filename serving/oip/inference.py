"""What the Open Inference Protocol's ``infer`` is asked and answers, on either transport."""

from __future__ import annotations

from dataclasses import dataclass

from serving.oip.shared_memory import RegionSlice
from serving.oip.tensors import Tensor


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
