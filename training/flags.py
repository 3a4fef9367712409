"""Options that are declared once: a dataclass whose fields carry their flags.

``argparse`` reads them, so that flags can be abbreviated, take their defaults from a recipe or an
earlier run, and share a command line with another parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, get_args, get_type_hints


def flag(
    group: str,
    default: object,
    text: str,
    *,
    name: str | None = None,
    parse: Callable[[str], object] | None = None,
    choices: tuple[object, ...] | None = None,
    metavar: str | None = None,
) -> Any:
    """Returns a dataclass field that has a flag.

    Args:
        group: title under which ``--help`` lists it; ``options`` for the first ones.
        text: what the flag sets, for ``--help``; the default is added.
        name: the flag, unless it is the field's name with dashes.
        parse: turns the text into a value; else the field's type does. Not for ``bool``, whose flag
            takes no value.
    """
    more = {"name": name, "parse": parse, "choices": choices, "metavar": metavar}
    return field(default=default, metadata={"group": group, "help": text, **more})


def flagged(options: type) -> frozenset[str]:
    """Returns the names of the fields that have a flag."""
    return frozenset(option.name for option in fields(options) if option.metadata)


def add_flags(parser: argparse.ArgumentParser, options: type) -> dict[str, Any]:
    """Adds the flags of a dataclass, in the order of its fields; returns the groups by title."""
    groups: dict[str, Any] = {"options": parser}
    types = get_type_hints(options)
    for option in fields(options):
        about = option.metadata
        if not about:
            continue
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        kind = types[option.name]
        settings: dict[str, object] = {"action": "store_true"}
        if kind is not bool:
            # The type of an option that may be absent is ``X | None``.
            inner = [part for part in get_args(kind) if part is not type(None)]
            settings = {"type": about["parse"] or (inner[0] if inner else kind)}
            settings |= {key: about[key] for key in ("choices", "metavar")}
        groups[about["group"]].add_argument(
            about["name"] or f"--{option.name.replace('_', '-')}", dest=option.name,
            default=option.default, help=about["help"] + _describe(option.default), **settings,
        )  # fmt: skip
    return groups


def _describe(default: object) -> str:
    """Returns the default for ``--help``, where there is one that a command line could give."""
    if default is None or default is False or default == ():
        return ""
    values = default if isinstance(default, tuple) else (default,)
    text = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return f" (default: {text})"


def parse_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of ``768`` or ``352x480`` (height x width)."""
    parts = text.lower().split("x")
    try:
        sizes = [int(part) for part in parts]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes, default=0) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a size nor HEIGHTxWIDTH: expected for example 768 or 352x480"
        )
    return sizes[0], sizes[-1]


def parse_floats(text: str) -> tuple[float, ...]:
    """Returns the numbers of a comma-separated list, such as ``1,0.4,0.4``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a comma-separated list of numbers: expected for example 1,0.4"
        ) from None
