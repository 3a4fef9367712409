"""Files of published datasets: photos and masks paired by name, and the pixels that they store.

EXIF orientation is not applied: published masks belong to the stored pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from export.datasets import IGNORE_LABEL, Sample
from serving.imaging.geometry import Size, scale
from serving.parsing import read_text

Pair = tuple[Path, Path]
Pixels = npt.NDArray[np.uint8]

# What the server decodes.
PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NAMED_FILES = 5
UNTURNED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


@runtime_checkable
class ImageFiles(Protocol):
    """A dataset whose images are files: ``pairs[i]`` is (image, label)."""

    @property
    def pairs(self) -> Sequence[tuple[Path, Path]]: ...


class PairedFiles:
    """A split of photos and masks: ``pairs[i]`` is (photo, mask).

    A dataset finds its pairs; it overrides ``read_mask`` where masks do not hold the class ids.
    """

    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        photo, mask = self.pairs[index]
        label = self.read_mask(mask)
        return check_size(read_photo(photo), label, mask)

    def name(self, index: int) -> str:
        return str(self.pairs[index][1])

    def read_mask(self, path: Path) -> Pixels:
        """Returns the class ids of a mask, uint8 ``[H,W]``. Raises ValueError, naming the file."""
        return read_ids(path)


def check_split(dataset: str, split: str, known: Collection[str]) -> None:
    """Raises ValueError for a split that a dataset does not have; the message lists the known."""
    if split not in known:
        raise ValueError(f"no split {split!r} of {dataset}; known: {', '.join(known)}")


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


def pair_files(photos: Path, masks: Path) -> tuple[Pair, ...]:
    """Returns (photo, mask) of every name in two folders, in alphabetical order; other files are
    skipped.

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
    """Yields the files of a folder with one of these suffixes, in any case; hidden files are
    skipped.
    """
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
    """Returns the first names, and how many more there are."""
    more = len(names) - NAMED_FILES
    return ", ".join(names[:NAMED_FILES]) + (f" and {more} more" if more > 0 else "")


def read_photo(path: Path) -> Pixels:
    """Returns a photo, uint8 ``[H,W,3]`` RGB; gray ones are repeated. Raises ValueError, naming the
    file.
    """
    image = cv2.imread(str(path), UNTURNED) if path.is_file() else None
    if image is None:
        raise ValueError(f"cannot read {path}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_ids(path: Path) -> Pixels:
    """Returns the values of an 8-bit gray PNG, or the indices of an indexed one, uint8 ``[H,W]``.

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
    """Resizes an image linearly, with the server's code, and its label by nearest neighbour.

    The exact one: OpenCV's other takes the pixel before, up to half a pixel beside the image's.
    """
    label = np.ascontiguousarray(label)
    ids = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return scale(np.ascontiguousarray(image), Size(height, width)), np.asarray(ids, np.uint8)


def check_size(image: Pixels, label: Pixels, mask: Path) -> Sample:
    """Returns both if they have one size. Raises ValueError, naming the mask."""
    if label.shape != image.shape[:2]:
        raise ValueError(f"{mask}: shape {label.shape} does not fit image {image.shape}")
    return image, label


def read_names(path: Path) -> tuple[str, ...]:
    """Returns the names in a list file, one a line; empty lines are skipped. Raises
    FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: one name a line")
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())


def check_present(paths: list[Path]) -> None:
    """Raises FileNotFoundError, naming some of the files that do not exist."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} files are missing: {name_some(missing)}")
