"""The segmentation facts that travel in a model's ``parameters``: classes, colours, geometry.

``where`` is what errors name, the model's ``config.pbtxt``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from serving.errors import InvalidModel
from serving.imaging.geometry import DEFAULT_TILE_OVERLAP, MAX_TILE_OVERLAP, RESIZES
from serving.palette import MAX_CLASSES, LabelSet, default_palette, largest_id, parse_palette
from serving.parsing import read_text

LABELS_FILE = "labels.txt"


def read_resize(where: Path, parameters: Mapping[str, str]) -> str:
    """One of ``serving.imaging.geometry.RESIZES``; the first of them unless the model says another.

    Raises:
        InvalidModel: it says something else.
    """
    resize = parameters.get("resize", RESIZES[0])
    if resize not in RESIZES:
        raise InvalidModel(f"{where}: parameters.resize is {resize!r}; known: {', '.join(RESIZES)}")
    return resize


def read_tile_overlap(where: Path, parameters: Mapping[str, str]) -> float:
    """What neighbouring tiles share at least, as a part of their length.

    Raises:
        InvalidModel: not from 0 to ``serving.imaging.geometry.MAX_TILE_OVERLAP``.
    """
    text = parameters.get("tile_overlap", str(DEFAULT_TILE_OVERLAP))
    try:
        overlap = float(text)
    except ValueError:
        overlap = -1.0
    if not 0.0 <= overlap <= MAX_TILE_OVERLAP:
        raise InvalidModel(
            f"{where}: parameters.tile_overlap is {text!r}; expected a part of the "
            f"tile's length, 0 to {MAX_TILE_OVERLAP}"
        )
    return overlap


def read_labels(where: Path, parameters: Mapping[str, str], folder: Path | None) -> LabelSet:
    """From ``labels.txt``, or without a ``folder`` from the parameter ``classes`` alone.

    Raises:
        InvalidModel: the message names the file and the field.
    """
    source = where if folder is None else folder / LABELS_FILE
    try:
        declared = _parse_classes(parameters["classes"]) if "classes" in parameters else None
        names = declared if folder is None else _read_names(folder / LABELS_FILE)
        palette = parameters.get("palette")
        colors = parse_palette(palette) if palette else default_palette(len(names or ()))
        most = largest_id(len(names or ()))
        ignore_label = _parse_ignore_label(parameters.get("ignore_label", str(most)), most)
    except OSError as error:
        raise InvalidModel(f"{source}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{where}: parameters: {error}") from None
    if names is None:
        raise InvalidModel(
            f"{where}: no parameter classes, a JSON array of the names of the classes"
        )
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InvalidModel(f"{source}: {len(names)} classes; a label map holds 1 to {MAX_CLASSES}")
    if declared not in (None, names):
        raise InvalidModel(
            f"{where}: parameters.classes and {LABELS_FILE} differ; "
            f"{LABELS_FILE} is the source: {', '.join(names[:5])}..."
        )
    if len(colors) != len(names):
        raise InvalidModel(f"{where}: palette has {len(colors)} colours for {len(names)} classes")
    return LabelSet(names, colors, ignore_label)


def _parse_classes(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes is {text[:40]!r}; expected a JSON array of the classes' names")
    return tuple(names)


def _parse_ignore_label(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > most:
        raise ValueError(
            f"ignore_label is {text[:40]!r}; expected 0 to {most}, as the label map's pixels are"
        )
    return int(text)


def _read_names(file: Path) -> tuple[str, ...]:
    try:
        text = read_text(file, regular=True)
    except FileNotFoundError:
        raise InvalidModel(f"{file} is missing: one class name a line") from None
    except ValueError as error:
        raise InvalidModel(str(error)) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
