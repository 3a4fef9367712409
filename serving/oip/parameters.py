"""Request and tensor parameters of the Open Inference Protocol, checked.

Names that neither the protocol nor Triton knows are the client's own and have no effect, as in
Triton; what Triton knows and this server does not do is refused by name.

Source: Triton's extension_parameters.md, extension_schedule_policy.md, extension_shared_memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from serving.errors import InvalidRequest, Unsupported
from serving.oip.shared_memory import RegionSlice

ParameterValue: TypeAlias = str | int | float | bool | None
Parameters: TypeAlias = Mapping[str, ParameterValue]

# Of streams; every answer of ours is the final one of its request.
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class RequestParameters:
    """The values of a request's parameters; ``timeout_s`` is None where they set no limit."""

    timeout_s: float | None
    priority: int
    binary_output: bool


def read_request_parameters(given: Parameters) -> RequestParameters:
    """Checks a request's parameters.

    Raises:
        InvalidRequest: a value of another type, or a reserved name.
        Unsupported: sequences.
    """
    for name in SEQUENCE:
        if given.get(name):
            raise Unsupported(f"parameter {name!r}: sequences are not supported; leave it out")
    for name in given:
        if name.startswith("triton_") and name != EMPTY_FINAL_RESPONSE:
            raise InvalidRequest(
                f"parameter {name!r}: names that begin with 'triton_' are reserved; "
                f"known: {EMPTY_FINAL_RESPONSE}"
            )
    timeout = read_count(given, "timeout")
    return RequestParameters(
        timeout_s=timeout / 1e6 if timeout else None,
        priority=read_count(given, "priority") or 0,
        binary_output=read_flag(given, "binary_data_output") or False,
    )


def read_place(tensor: str, given: Parameters) -> RegionSlice | None:
    """Returns where in shared memory a tensor is or goes; None where it does not.

    Raises:
        InvalidRequest: incomplete, or a value of another type.
    """
    region = given.get("shared_memory_region")
    if region is None:
        return None
    size = read_count(given, "shared_memory_byte_size")
    if not isinstance(region, str) or size is None:
        raise InvalidRequest(
            f"{tensor!r}: shared_memory_region needs a name and shared_memory_byte_size"
        )
    return RegionSlice(region, read_count(given, "shared_memory_offset") or 0, size)


def refuse_classification(output: str, given: Parameters) -> None:
    """Raises Unsupported where the classification extension is asked for."""
    if given.get("classification"):
        raise Unsupported(
            f"output {output!r}: the classification extension is not supported; "
            f"the mask holds the class of every pixel"
        )


def read_count(given: Parameters, name: str) -> int | None:
    """Returns a number from 0 to 2**63 - 1, None where it is absent.

    Raises:
        InvalidRequest: anything else.
    """
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise InvalidRequest(f"parameter {name!r} must be an integer from 0 to 2^63 - 1")
    return value


def read_flag(given: Parameters, name: str) -> bool | None:
    """Returns a flag, None where it is absent.

    Raises:
        InvalidRequest: anything else.
    """
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name!r} must be true or false")
    return value
