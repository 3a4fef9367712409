"""JSON bodies of the protocol: strict types, no unknown fields, errors that say where."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class StrictBody(BaseModel):
    """A JSON object; a field of another type or name is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


def describe(error: ValidationError) -> str:
    """The first thing that is wrong, and where it is."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
