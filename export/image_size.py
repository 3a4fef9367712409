"""``--size`` of the commands."""

from __future__ import annotations

from export.errors import IllegalSize
from serving.geometry import Size


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of HEIGHTxWIDTH; None where nothing was said. Raises IllegalSize."""
    if text is None:
        return None
    try:
        size = Size.parse(text)
    except ValueError as error:
        raise IllegalSize(f"--size {error}") from error
    return size.height, size.width
