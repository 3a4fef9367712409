"""Files of published datasets: photos and masks paired by name, and the pixels that they store.

EXIF orientation is not applied: published masks belong to the stored pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from export.datasets import IGNORE_LABEL, Sample, SegmentationDataset
from serving.geometry import Size, scale

__all__ = ["IGNORE_LABEL", "ImageFiles", "Sample", "SegmentationDataset", "check_label_range"]


@runtime_checkable
class ImageFiles(Protocol):
    """A dataset whose images are files: ``pairs[i]`` is (image, label)."""

    @property
    def pairs(self) -> Sequence[tuple[Path, Path]]: ...


def check_label_range(label: npt.NDArray[np.uint8], num_classes: int, name: str) -> None:
    """Raises ValueError, naming the file, where a label is neither a class nor 255.

    A class beyond the network's outputs is not harmless: it never gets a probability, and its
    loss grows until it is infinite.
    """
    counts = np.bincount(label.reshape(-1), minlength=256)
    bad = [value for value in np.flatnonzero(counts).tolist() if num_classes <= value < 255]
    if bad:
        raise ValueError(
            f"{name}: labels {bad} are outside 0..{num_classes - 1} (ignored: {IGNORE_LABEL}); "
            f"the dataset has more classes than the network has outputs, or the mask is in colour"
        )


# What the server decodes.
PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NAMED_FILES = 5

Pair = tuple[Path, Path]


def pair_files(photos: Path, masks: Path) -> tuple[Pair, ...]:
    """(photo, mask) of every name in two folders, in alphabetical order; other files are left.

    Raises:
        FileNotFoundError: nothing there, or files without a partner, or with two; they are named.
    """
    found = _by_stem(photos, PHOTO_SUFFIXES)
    drawn = _by_stem(masks, (".png",))
    unpaired = sorted(set(found) ^ set(drawn))
    if unpaired or not found:
        raise FileNotFoundError(
            f"{photos} and {masks} do not pair up: {len(found)} images, {len(drawn)} labels"
            + (f", without a partner: {name_some(unpaired)}" if unpaired else "")
        )
    return tuple((found[stem], drawn[stem]) for stem in sorted(found))


def list_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files of a folder that end so, in any case; hidden ones are left."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            yield path


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_files(folder, suffixes):
        if path.stem in found:
            raise FileNotFoundError(
                f"{found[path.stem]} and {path.name} would share one partner; rename one of them"
            )
        found[path.stem] = path
    return found


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED_FILES
    return ", ".join(names[:NAMED_FILES]) + (f" and {more} more" if more > 0 else "")


Pixels = npt.NDArray[np.uint8]
UNTURNED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_photo(path: Path) -> Pixels:
    """uint8 ``[H,W,3]`` RGB; gray photos are repeated. Raises ValueError, naming the file."""
    image = cv2.imread(str(path), UNTURNED) if path.is_file() else None
    if image is None:
        raise ValueError(f"cannot read {path}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_ids(path: Path) -> Pixels:
    """uint8 ``[H,W]``: the values of an 8-bit gray PNG, or the indices of a coloured one.

    Raises:
        ValueError: no image, or one in true colours; the file is named.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(
                    f"{path}: a PNG of mode {image.mode}; masks are indexed or 8-bit gray"
                )
            return np.array(image, np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def resize_pair(image: Pixels, label: Pixels, height: int, width: int) -> Sample:
    """An image linearly, by the server's code, and its label by nearest neighbour.

    The exact one: OpenCV's other takes the pixel before, up to half a pixel beside the image's.
    """
    label = np.ascontiguousarray(label)
    ids = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return scale(np.ascontiguousarray(image), Size(height, width)), np.asarray(ids, np.uint8)


def check_size(image: Pixels, label: Pixels, mask: Path) -> Sample:
    """Both, if they have one size; else ValueError, naming the mask."""
    if label.shape != image.shape[:2]:
        raise ValueError(f"{mask}: shape {label.shape} does not fit image {image.shape}")
    return image, label
