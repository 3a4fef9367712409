"""Your own photos and masks.

::

    ROOT/labels.txt                   one class a line: a name, or name<TAB>#rrggbb
    ROOT/images/{train,val}/*.jpg     also .png, .webp, .bmp
    ROOT/masks/{train,val}/*.png      the photo's name

Without the folders ``train`` and ``val`` a fifth of the photos is kept for validation, chosen by
their names: a photo stays on its side whichever others come or go.

A mask is an indexed or 8-bit gray PNG whose values are class ids (the line numbers of
``labels.txt``, from 0; 255 is ignored), or an RGB PNG in exactly the colours of ``labels.txt``
(#e0e0c0 is ignored).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from export.datasets import IGNORE_LABEL, Sample
from serving.errors import SegserveError
from serving.imaging.decode import decode, probe
from serving.palette import IGNORE_COLOR, LabelSet, format_palette, parse_labels, read_labels
from serving.parsing import read_text
from training.datasets.files import PHOTO_SUFFIXES, Pair, PairedFiles, list_files, pair_files

LABELS_FILE = "labels.txt"
SPLITS = ("train", "val")
VALIDATION_SHARE = 0.2
MAX_MEGAPIXELS = 200.0
# EXIF's orientations from here on turn a photo by a quarter.
QUARTER_TURNS = 5

Pixels = npt.NDArray[np.uint8]


class FolderDataset(PairedFiles):
    """A split; photos are decoded as the server decodes them, EXIF orientation included."""

    def __init__(self, root: Path, split: str = "train") -> None:
        self.root = Path(root)
        self.labels = read_folder_labels(self.root)
        self.split = split
        self.pairs = find_pairs(self.root, split)

    def __getitem__(self, index: int) -> Sample:
        photo, mask = self.pairs[index]
        data = photo.read_bytes()
        try:
            image = decode(data, max_megapixels=MAX_MEGAPIXELS)
        except SegserveError as error:
            raise ValueError(f"{photo}: {error}") from error
        label = self._read_mask(mask)
        if label.shape != image.shape[:2]:
            turned = probe(data).orientation >= QUARTER_TURNS
            raise ValueError(
                f"{mask}: {label.shape[0]}x{label.shape[1]}, but {photo.name} is "
                f"{image.shape[0]}x{image.shape[1]}"
                + (", upright by its EXIF orientation: turn the mask too" if turned else "")
            )
        return image, label

    def _read_mask(self, path: Path) -> Pixels:
        try:
            with Image.open(path) as opened:
                opened.load()
                image = opened
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error
        if image.mode in ("RGB", "RGBA"):
            return self._ids_of_colors(np.asarray(image)[..., :3], path)
        if image.mode not in ("P", "L", "1"):
            raise ValueError(
                f"{path}: a PNG of mode {image.mode}; a mask is indexed, 8-bit gray or RGB"
            )
        ids = np.array(image, np.uint8)
        self._check_range(ids, path)
        if image.mode == "P":
            self._check_palette(ids, image, path)
        return ids

    def _check_range(self, ids: Pixels, path: Path) -> None:
        bad = (ids >= len(self.labels.names)) & (ids != IGNORE_LABEL)
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise ValueError(
                f"{path}: label {ids[row, column]} at row {row}, column {column} "
                f"({int(bad.sum())} such pixels); {LABELS_FILE} has the classes 0 to "
                f"{len(self.labels.names) - 1}, and {IGNORE_LABEL} is ignored"
            )

    def _check_palette(self, ids: Pixels, image: Image.Image, path: Path) -> None:
        """Raises ValueError if an editor that saves "indexed" has reordered the palette: colours
        right, ids wrong.
        """
        palette = image.getpalette() or []
        for index in np.unique(ids).tolist():
            color = tuple(palette[3 * index : 3 * index + 3])
            meant = self._own_ids.get(color, index) if index != IGNORE_LABEL else index
            if meant != index:
                name = self.labels.names[meant]
                raise ValueError(
                    f"{path}: index {index} has the colour of class {meant} ({name}) in its "
                    f"palette; indices are the class ids: renumber them, or save the mask as RGB"
                )

    def _ids_of_colors(self, pixels: Pixels, path: Path) -> Pixels:
        codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        known, ids = self._color_table
        place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        unknown = known[place] != codes
        if unknown.any():
            row, column = np.argwhere(unknown)[0].tolist()
            color = format_palette([tuple(pixels[row, column].tolist())])
            raise ValueError(
                f"{path}: colour {color} at row {row}, column {column} ({int(unknown.sum())} such "
                f"pixels) is not in {self.root / LABELS_FILE}; ignored pixels are "
                f"{format_palette([IGNORE_COLOR])}"
            )
        return np.asarray(ids[place], np.uint8)

    @cached_property
    def _own_ids(self) -> dict[tuple[int, ...], int]:
        """Returns the class ids by the colours that the file itself gives; empty if it gives no
        colours."""
        _, colors = parse_labels(read_text(self.root / LABELS_FILE))
        return {color: index for index, color in enumerate(colors)}

    @cached_property
    def _color_table(self) -> tuple[npt.NDArray[np.uint32], Pixels]:
        """Returns the codes 0xRRGGBB in ascending order, and their ids."""
        by_color = {IGNORE_COLOR: IGNORE_LABEL}
        by_color |= {color: index for index, color in enumerate(self.labels.colors)}
        codes = {r << 16 | g << 8 | b: index for (r, g, b), index in by_color.items()}
        known = sorted(codes)
        return np.array(known, np.uint32), np.array([codes[code] for code in known], np.uint8)


def read_folder_labels(root: Path) -> LabelSet:
    """Returns names and colours of ``ROOT/labels.txt``.

    Raises:
        FileNotFoundError: there is none; the message says what belongs in it.
        ValueError: it is not a list of classes, or two of them share a colour.
    """
    file = root / LABELS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: one class a line, its name, or name<TAB>#rrggbb; "
            f"the first line is class 0"
        )
    labels = read_labels(file)
    if len(set(labels.colors)) != len(labels.colors):
        twice = next(color for color in labels.colors if labels.colors.count(color) > 1)
        raise ValueError(f"{file}: two classes have the colour {format_palette([twice])}")
    return labels


def find_pairs(root: Path, split: str) -> tuple[Pair, ...]:
    """Returns (photo, mask) of a split, by its folder or by the hashes of the names.

    Raises:
        FileNotFoundError: another layout, or files without a partner; the message says which.
        ValueError: no such split, or too few photos to split.
    """
    images, masks = root / "images", root / "masks"
    if not images.is_dir() or not masks.is_dir():
        raise FileNotFoundError(
            f"{root} does not contain photos and masks: expected images/train/*.jpg with "
            f"masks/train/*.png, the same for val, or images/*.jpg with masks/*.png; "
            f"name the folder with --root"
        )
    folders = [path for path in (images / name for name in SPLITS) if path.is_dir()]
    loose = next(list_files(images, PHOTO_SUFFIXES), None)
    if folders and loose is not None:
        raise ValueError(f"{loose} is beside {folders[0]}: move it into train or val")
    if folders or (images / split).is_dir():
        for folder in (images / split, masks / split):
            if not folder.is_dir():
                raise FileNotFoundError(f"no split {split!r}: {folder} is missing")
        return pair_files(images / split, masks / split)
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} in {images}: photos are split into train and val")
    pairs = pair_files(images, masks)
    if len(pairs) < len(SPLITS):
        raise ValueError(
            f"{images} contains one photo: expected two or more, for training and validation"
        )
    kept = validation_stems(tuple(photo.stem for photo, _ in pairs))
    return tuple(pair for pair in pairs if (pair[0].stem in kept) == (split == "val"))


def validation_stems(stems: tuple[str, ...]) -> frozenset[str]:
    """Returns the names drawn for validation: a fifth on average, at least one, never all."""
    order = sorted(stems, key=_draw)
    below = sum(_draw(stem) < VALIDATION_SHARE for stem in order)
    return frozenset(order[: min(max(below, 1), len(order) - 1)])


def _draw(stem: str) -> float:
    """Returns a number in [0, 1) that depends on nothing but the name."""
    digest = hashlib.sha256(stem.encode()).digest()
    return float(int.from_bytes(digest[:6], "big")) / float(1 << 48)
