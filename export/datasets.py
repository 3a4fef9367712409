"""The datasets that calibrate and judge a lower precision, and the classes of a model.

Any package may offer a dataset under the entry points ``segserve.datasets``: the entry point's name
is what ``--dataset`` says, its object a :class:`DatasetSource`. ``training.datasets`` offers those
of this project. Other names of a dataset are in ``serving.palette.ALIASES``. A dataset's classes
name those of a network; a file of one's own may name them instead.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from export.errors import InvalidLabels
from serving import palette
from serving.palette import (
    MAX_CLASSES,
    LabelSet,
    canonical_name,
    default_palette,
    largest_id,
    load_labels,
)

GROUP = "segserve.datasets"
IGNORE_LABEL = 255

Sample = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


class SegmentationDataset(Protocol):
    """A split of a dataset: ``dataset[i]`` is (image uint8 ``[H,W,3]`` RGB, label uint8 ``[H,W]``,
    255 ignored)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def name(self, index: int) -> str:
        """Returns what an error message calls sample ``index``: its file."""
        ...


@runtime_checkable
class DatasetSource(Protocol):
    """The object of an entry point of the group."""

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


def find_labels(
    dataset: str | None, file: Path | None, root: Path | None = None
) -> LabelSet | None:
    """Returns the label set of ``file``, else of ``dataset``, else None. Raises InvalidLabels.

    That of ``folder`` is the file ``labels.txt`` of its ``root``.
    """
    if file is not None:
        return read_labels(file)
    if dataset is None:
        return None
    if dataset == "folder":
        if root is None:
            raise InvalidLabels("--dataset folder needs --root DIR; or give --labels FILE")
        return read_labels(root / "labels.txt")
    try:
        if canonical_name(dataset) in known_datasets():
            return find_dataset(dataset).labels(root)
        return load_labels(dataset)
    except (ValueError, OSError) as error:
        raise InvalidLabels(f"{error}; or give the classes with --labels FILE") from error


def read_labels(path: Path) -> LabelSet:
    """Reads labels as :func:`serving.palette.read_labels` does, with this package's error. Raises
    InvalidLabels."""
    try:
        return palette.read_labels(path)
    except OSError as error:
        raise InvalidLabels(f"{path}: {error}") from error
    except ValueError as error:
        raise InvalidLabels(str(error)) from error


def generic_labels(classes: int) -> LabelSet:
    """Returns ``class 0``, ``class 1``, ... in the default colours.

    Raises InvalidLabels above 65,535.
    """
    if classes > MAX_CLASSES:
        raise InvalidLabels(f"{classes} classes: expected at most {MAX_CLASSES}")
    names = tuple(f"class {i}" for i in range(classes))
    return LabelSet(names, default_palette(classes), largest_id(classes))


def check_labels(labels: LabelSet, classes: int) -> None:
    """Raises InvalidLabels where a network of ``classes`` outputs cannot have these labels."""
    if len(labels.names) != classes:
        raise InvalidLabels(
            f"the network has {classes} classes, the labels name {len(labels.names)}; choose"
            " another --dataset, or give the classes with --labels FILE"
        )
