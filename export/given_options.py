"""Options that another one leaves no room for: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping

from export.errors import ExportError


def refuse_given(reason: str, options: Mapping[str, object]) -> None:
    """Raises ExportError where one of ``options`` was given, naming those that were.

    ``options`` are values by option; None was not given. ``reason`` begins the message.
    """
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ExportError(f"{reason}; leave {', '.join(given)} out")
