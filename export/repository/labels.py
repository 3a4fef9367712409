"""The classes of a model: of a known dataset, or from a file of one's own."""

from __future__ import annotations

from pathlib import Path

from export.datasets import find_dataset, known_datasets
from export.errors import InvalidLabels
from export.passes.contract import MAX_CLASSES
from serving import palette
from serving.palette import LabelSet, canonical_name, default_palette, load_labels


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
    """``class 0``, ``class 1``, ... in the default colours. Raises InvalidLabels above 255."""
    if classes > MAX_CLASSES:
        raise InvalidLabels(f"{classes} classes; a uint8 mask holds {MAX_CLASSES} and the ignored")
    return LabelSet(tuple(f"class {i}" for i in range(classes)), tuple(default_palette(classes)))


def check_labels(labels: LabelSet, classes: int) -> None:
    """Raises InvalidLabels where a network of ``classes`` outputs cannot have these labels."""
    if len(labels.names) != classes:
        raise InvalidLabels(
            f"the network has {classes} classes, the labels name {len(labels.names)}; choose"
            " another --dataset, or give the classes with --labels FILE"
        )
