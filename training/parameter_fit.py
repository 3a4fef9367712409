"""Whether the arrays of a file are a network's: by name and shape, for every trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

Shape = tuple[int, ...]


class Shaped(Protocol):
    """NumPy's, MXNet's and PyTorch's arrays alike."""

    @property
    def shape(self) -> Shape: ...


def misfits(wanted: Mapping[str, Shape], found: Mapping[str, Shaped | None]) -> dict[str, str]:
    """Why a parameter cannot be loaded, by name; empty where all can."""
    problems = {}
    for name, shape in wanted.items():
        array = found.get(name)
        if array is None:
            problems[name] = f"{name} is missing"
        elif tuple(array.shape) != shape:
            problems[name] = f"{name} is {tuple(array.shape)}, the network has {shape}"
    return problems


def refuse_misfits(
    problems: Mapping[str, str], wanted: int, path: Path, partial: bool = False
) -> None:
    """Raises ValueError, naming them; with ``partial`` only where none of ``wanted`` fits."""
    if problems and not (partial and len(problems) < wanted):
        raise ValueError(
            f"{path} does not fit this network ({len(problems)} problems): "
            + "; ".join(list(problems.values())[:5])
        )
