"""The classes of a model: of a known dataset, or from a file of one's own."""

from __future__ import annotations

from pathlib import Path

from export.errors import InvalidLabels
from export.passes.mask_head import MAX_CLASSES
from serving.palette import LabelSet, default_palette, load_labels, parse_palette


def find_labels(dataset: str | None, file: Path | None) -> LabelSet | None:
    """The label set of ``file``, else of ``dataset``, else None. Raises InvalidLabels."""
    if file is not None:
        return read_labels(file)
    if dataset is None:
        return None
    try:
        return load_labels(dataset)
    except ValueError as error:
        raise InvalidLabels(f"{error}; or give the classes with --labels FILE") from error


def read_labels(path: Path) -> LabelSet:
    """Reads one class a line, ``name`` or ``name #rrggbb``; all lines or none have a colour.

    Raises InvalidLabels naming the file and the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabels(f"{path}: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    names, colors = [], []
    for number, line in enumerate(lines, 1):
        name, mark, color = line.rpartition("#")
        try:
            colors += list(parse_palette(mark + color.strip())) if mark else []
        except ValueError as error:
            raise InvalidLabels(f"{path}: line {number}: {error}") from error
        names.append((name if mark else line).strip())
        if not names[-1]:
            raise InvalidLabels(f"{path}: line {number} has no class name")
    if len(set(names)) != len(names) or not names:
        raise InvalidLabels(f"{path}: needs at least one class, and each name once")
    if colors and len(colors) != len(names):
        raise InvalidLabels(f"{path}: {len(colors)} colours for {len(names)} classes")
    return LabelSet(tuple(names), tuple(colors) or tuple(default_palette(len(names))))


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
