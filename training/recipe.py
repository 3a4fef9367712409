"""Published recipes: ``recipes/NAME.toml`` has options of ``train.py`` and their results."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Value = bool | int | float | str | list[float] | list[str]


@dataclass(frozen=True)
class Result:
    """A published number.

    Attributes:
        measure: ``mIoU``, ``pixAcc`` in percent, ``fps``, ``ms``, ...
        protocol: on which images, at what size, by whom.
        options: what differs from the recipe's own options in this row.
    """

    measure: str
    value: float
    protocol: str
    options: Mapping[str, Value]


@dataclass(frozen=True)
class Recipe:
    """One published training.

    Attributes:
        replaces: the commands that it stands for, as published; none where it was a script.
        source: where the numbers were published.
        options: flags of ``train.py`` without the dashes.
        notes: in what this run differs from the published one, and what is unknown about that.
    """

    name: str
    title: str
    source: str
    replaces: tuple[str, ...]
    options: Mapping[str, Value]
    results: tuple[Result, ...]
    notes: tuple[str, ...]

    def arguments(self, row: Result | None = None) -> list[str]:
        """Returns the options as a command line; those of ``row`` win."""
        return [*_as_flags(self.options), *(_as_flags(row.options) if row else ())]


def recipe_names() -> tuple[str, ...]:
    """Returns the names of all recipes, in alphabetical order."""
    names = (entry.name for entry in files("training").joinpath("recipes").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def read_recipe(name: str) -> Recipe:
    """Returns a recipe. Raises ValueError for an unknown one; the message lists the known."""
    if name not in recipe_names():
        raise ValueError(f"no recipe {name!r}; known: {', '.join(recipe_names())}")
    text = files("training").joinpath("recipes", f"{name}.toml").read_text("utf-8")
    content = tomllib.loads(text)
    return Recipe(
        name=name,
        title=content["title"],
        source=content["source"],
        replaces=tuple(content["replaces"]),
        options=content["options"],
        results=tuple(
            Result(row["measure"], row["value"], row["protocol"], row.get("options", {}))
            for row in content["results"]
        ),
        notes=tuple(content["notes"]),
    )


def _as_flags(options: Mapping[str, Value]) -> list[str]:
    flags = []
    for name, value in options.items():
        if value is True:
            flags.append(f"--{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            # With "=", so that nothing is taken for a flag.
            flags.append(f"--{name}={text}")
    return flags
