"""Cityscapes, 19 classes, 2975 training and 500 validation images of 2048x1024.

::

    ROOT/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
    ROOT/gtFine/{train,val}/CITY/*_gtFine_labelIds.png       or *_gtFine_labelTrainIds.png

Source: Cordts et al., "The Cityscapes Dataset", arXiv 1604.01685; ids of its cityscapesScripts.
The images need a login and have terms of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.datasets import IGNORE_LABEL
from training.datasets.files import Pair, PairedFiles, Pixels, name_some, read_ids

# The published ids of classes 0 to 18; all others are ignored.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LAST_LABEL_ID = 33
PHOTO_ENDING = "_leftImg8bit.png"
LABEL_ID_ENDING = "_gtFine_labelIds.png"
TRAIN_ID_ENDING = "_gtFine_labelTrainIds.png"


def _make_table() -> Pixels:
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))
    return table


TRAIN_IDS = _make_table()


class Cityscapes(PairedFiles):
    """A split of Cityscapes; ``labelIds`` are mapped to the 19 training ids, everything else is
    ignored.
    """

    def __init__(self, root: Path, split: str = "train") -> None:
        self.root = Path(root)
        self.pairs = find_pairs(self.root, split)

    def read_mask(self, path: Path) -> Pixels:
        return _to_train_ids(read_ids(path), path)


def find_pairs(root: Path, split: str) -> tuple[Pair, ...]:
    """Returns (photo, mask) of a split, sorted by city and name.

    Raises:
        FileNotFoundError: another layout, or files without a partner; they are named.
    """
    photos, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    found = _by_key(photos, PHOTO_ENDING)
    drawn = _by_key(masks, LABEL_ID_ENDING) or _by_key(masks, TRAIN_ID_ENDING)
    if not found or not drawn:
        raise FileNotFoundError(
            f"no Cityscapes split {split!r} under {root}: expected "
            f"leftImg8bit/{split}/CITY/*{PHOTO_ENDING} with gtFine/{split}/CITY/*{LABEL_ID_ENDING} "
            f"(or *{TRAIN_ID_ENDING}); name the folder with --root"
        )
    unpaired = sorted(set(found) ^ set(drawn))
    if unpaired:
        raise FileNotFoundError(
            f"{photos} and {masks} do not pair up: {len(found)} images, {len(drawn)} labels, "
            f"without a partner: {name_some(unpaired)}"
        )
    return tuple((found[key], drawn[key]) for key in sorted(found))


def _by_key(folder: Path, ending: str) -> dict[str, Path]:
    """Returns files by ``CITY/name`` without the ending."""
    return {
        f"{path.parent.name}/{path.name.removesuffix(ending)}": path
        for path in folder.glob(f"*/*{ending}")
    }


def _to_train_ids(ids: Pixels, mask: Path) -> Pixels:
    if mask.name.endswith(TRAIN_ID_ENDING):
        return ids
    # 255 is -1, the license plates.
    wrong = (ids > LAST_LABEL_ID) & (ids != IGNORE_LABEL)
    if wrong.any():
        raise ValueError(
            f"{mask}: {int(ids[wrong][0])} is not a Cityscapes id: expected 0..{LAST_LABEL_ID}"
        )
    return np.asarray(TRAIN_IDS[ids], np.uint8)
