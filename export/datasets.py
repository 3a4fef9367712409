"""The datasets that calibrate and judge a lower precision, found by the entry points of packages.

Any package may offer one under the group ``segserve.datasets``: the entry point's name is what
``--dataset`` says, its object a :class:`DatasetSource`. ``training.datasets`` offers those of this
project. Other names of a dataset are in ``serving.palette.ALIASES``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serving.palette import LabelSet, canonical_name

GROUP = "segserve.datasets"
IGNORE_LABEL = 255

Sample = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


class SegmentationDataset(Protocol):
    """``dataset[i]`` is (image uint8 ``[H,W,3]`` RGB, label uint8 ``[H,W]``, 255 ignored)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def name(self, index: int) -> str:
        """Returns what an error message calls sample ``index``: its file."""
        ...


@runtime_checkable
class DatasetSource(Protocol):
    """What an entry point of the group offers."""

    def open(self, split: str, root: Path | None = None) -> SegmentationDataset:
        """Opens ``train`` or ``val`` in the folder ``root``; None is the dataset's usual folder.

        Raises ValueError or OSError, saying what is missing.
        """
        ...

    def labels(self, root: Path | None = None) -> LabelSet:
        """Returns the classes' names and colours. Raises ValueError or OSError."""
        ...


def known_datasets() -> tuple[str, ...]:
    """Returns the names of all datasets that installed packages offer, in alphabetical order."""
    return tuple(sorted(_offered()))


def find_dataset(name: str) -> DatasetSource:
    """Returns the dataset of that name, or of one that ``name`` is an alias of.

    Raises ValueError where no package offers it, or where the one that does cannot be imported.
    """
    offered = _offered()
    entry = offered.get(canonical_name(name))
    if entry is None:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(offered))}")
    try:
        source = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be imported from {entry.value}: {error}; install what it"
            " needs, or uninstall the package that offers it"
        ) from error
    if not isinstance(source, DatasetSource):
        raise ValueError(
            f"{entry.value} is not a valid dataset: expected an object with open(split, root) and"
            f" labels(root), as the entry points of {GROUP} need them"
        )
    return source


def _offered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
