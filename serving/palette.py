"""Class names and colours of known datasets, and the palettes made of them.

The data files in ``labels/`` (``id, name, r, g, b``) also serve export and training. The rows of
``citys`` are Cityscapes' train ids, in the colours of its own scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from serving.parsing import read_text

Color = tuple[int, int, int]

# Ids are bytes, or two of them where there are more classes; the largest is the ignored one.
MAX_BYTE_CLASSES = 255
MAX_CLASSES = 65_535
LabelMap: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

# The one table of datasets' other names: GluonCV's, and those that people write in full.
ALIASES = {"ade": "ade20k", "cityscapes": "citys", "mhp": "mhpv1", "voc": "pascal_voc"}
# Datasets without classes of their own, and whose classes they have.
LABELLED_AS = {"coco": "pascal_voc", "pascal_aug": "pascal_voc", "synthetic": "camvid"}

# Pascal VOC draws its void label so; it is neither black (no class) nor a white background.
IGNORE_COLOR: Color = (224, 224, 192)


@dataclass(frozen=True)
class LabelSet:
    """The classes of a dataset: ``names[i]`` and ``colors[i]`` (RGB, 0-255) belong to id i."""

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_label: int = 255


def datasets() -> tuple[str, ...]:
    """Returns the datasets that :func:`load_labels` knows, without the aliases, in alphabetical
    order."""
    names = (entry.name for entry in files("serving.labels").iterdir())
    return tuple(sorted(name.removesuffix(".tsv") for name in names if name.endswith(".tsv")))


def label_type(classes: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Returns the type of a label map's pixels: uint8, with more than 255 classes uint16."""
    return np.dtype(np.uint8 if classes <= MAX_BYTE_CLASSES else np.uint16)


def largest_id(classes: int) -> int:
    """Returns the largest value of such a label map, which is ignored by default."""
    return int(np.iinfo(label_type(classes)).max)


def canonical_name(dataset: str) -> str:
    """Returns a dataset's one name: ``mhpv1`` for ``mhp``; other names stay as they are."""
    return ALIASES.get(dataset, dataset)


@cache
def load_labels(dataset: str) -> LabelSet:
    """Returns the classes of ``dataset``, by its name or by one of :data:`ALIASES`.

    Those of :data:`LABELLED_AS` have the classes of another dataset.

    Raises:
        ValueError: no such dataset; the message lists the known names.
    """
    name = canonical_name(dataset)
    name = LABELLED_AS.get(name, name)
    if name not in datasets():
        known = ", ".join((*datasets(), *sorted((*ALIASES, *LABELLED_AS))))
        raise ValueError(f"unknown dataset {dataset!r}; known are {known}")
    lines = files("serving.labels").joinpath(f"{name}.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return LabelSet(
        names=tuple(row[1] for row in rows),
        colors=tuple((int(row[2]), int(row[3]), int(row[4])) for row in rows),
    )


def read_labels(path: Path) -> LabelSet:
    """Reads one class a line, ``name`` or ``name #rrggbb``; all lines or none have a colour.

    Without colours they are those of :func:`default_palette`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is something else; the message names the file and the line.
    """
    text = read_text(path)
    try:
        names, colors = parse_labels(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return LabelSet(names, colors or default_palette(len(names)), largest_id(len(names)))


def parse_labels(text: str) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Names and colours of a file that :func:`read_labels` reads; no colours where it has none.

    Raises:
        ValueError: naming the line.
    """
    names, colors = [], []
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        name, mark, color = line.rpartition("#")
        try:
            colors += list(parse_palette(mark + color.strip())) if mark else []
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        names.append((name if mark else line).strip())
        if not names[-1]:
            raise ValueError(f"line {number} has no class name")
    if len(set(names)) != len(names) or not names:
        raise ValueError("needs at least one class, and each name once")
    if colors and len(colors) != len(names):
        raise ValueError(f"{len(colors)} colours for {len(names)} classes")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} classes: expected at most {MAX_CLASSES}")
    return tuple(names), tuple(colors)


def parse_palette(text: str) -> tuple[Color, ...]:
    """Reads colours written as ``#rrggbb``, separated by white space.

    Raises:
        ValueError: a word that is not such a colour.
    """
    colors = []
    for word in text.split():
        if not re.fullmatch("#[0-9a-fA-F]{6}", word):
            raise ValueError(
                f"{word!r} is not a valid colour; a palette reads like '#804080 #f423e8'"
            )
        red, green, blue = bytes.fromhex(word[1:])
        colors.append((red, green, blue))
    return tuple(colors)


def format_palette(colors: Sequence[Color]) -> str:
    """Writes ``colors`` as :func:`parse_palette` reads them."""
    return " ".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colors)


def plte(colors: Sequence[Color], ignore_label: int) -> bytes:
    """Returns the 768 bytes of a PNG's PLTE chunk, one RGB triple for each of the 256 pixel values.

    Ids without a colour are black; ``ignore_label`` is :data:`IGNORE_COLOR` unless it is itself
    the id of a class. A value outside 0-255 means that nothing is ignored.

    Raises:
        ValueError: more than 256 colours.
    """
    if len(colors) > 256:
        raise ValueError(f"a palette holds at most 256 colours, not {len(colors)}")
    table = bytearray(768)
    if 0 <= ignore_label < 256:
        table[3 * ignore_label : 3 * ignore_label + 3] = bytes(IGNORE_COLOR)
    for index, color in enumerate(colors):
        table[3 * index : 3 * index + 3] = bytes(color)
    return bytes(table)


def default_palette(count: int) -> tuple[Color, ...]:
    """Returns ``count`` distinct colours by Pascal VOC's rule, at most 65,536.

    Bits 0, 1, 2 of the id become the highest bit of red, green and blue, bits 3, 4, 5 the next.

    Raises:
        ValueError: ``count`` outside 0-65536.
    """
    if not 0 <= count <= MAX_CLASSES + 1:
        raise ValueError(f"a palette has 0 to {MAX_CLASSES + 1} colours, not {count}")
    colors = []
    for index in range(count):
        red = green = blue = 0
        for step in range(6):
            bits = index >> (3 * step)
            red |= (bits & 1) << (7 - step)
            green |= (bits >> 1 & 1) << (7 - step)
            blue |= (bits >> 2 & 1) << (7 - step)
        colors.append((red, green, blue))
    return tuple(colors)
