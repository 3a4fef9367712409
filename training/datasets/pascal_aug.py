"""Pascal VOC 2012 with the masks of SBD: 10582 training images, VOC's 1449 for validation.

::

    ROOT/VOC2012/...                                    as training/datasets/pascal_voc.py has it
    ROOT/VOCaug/dataset/{img/*.jpg, cls/*.mat, train.txt, val.txt}       SBD as published
    ROOT/VOC2012/SegmentationClassAug/*.png             or: the same masks as images, VOC's included

Training images are VOC's ``train`` and all of SBD's, less those of VOC's ``val``: nothing is scored
that was trained on. GluonCV's ``pascal_aug`` does not leave them out.

Source: Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.datasets.base import Sample
from training.datasets.pascal_voc import (
    PascalVOC,
    check_present,
    find_voc,
    read_names,
    read_split,
)
from training.datasets.pixels import Pixels, check_size, read_ids, read_photo

SBD = Path("VOCaug") / "dataset"


class PascalAug:
    """``train`` is the augmented set, ``val`` VOC's own."""

    def __init__(self, root: Path, split: str = "train") -> None:
        if split not in ("train", "val"):
            raise ValueError(f"no split {split!r} of pascal_aug; known: train, val")
        root = Path(root)
        self.root = find_voc(root)
        pairs = PascalVOC(root, split).pairs
        if split == "train":
            held = {*read_split(self.root, "val"), *(photo.stem for photo, _ in pairs)}
            pairs += tuple(pair for pair in _added(root, self.root) if pair[1].stem not in held)
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        photo, mask = self.pairs[index]
        label = read_sbd(mask) if mask.suffix == ".mat" else read_ids(mask)
        return check_size(read_photo(photo), label, mask)

    def name(self, index: int) -> str:
        return str(self.pairs[index][1])


def read_sbd(path: Path) -> Pixels:
    """Class ids of SBD's ``cls/*.mat``, uint8 ``[H,W]``. Raises ValueError, naming the file."""
    # Only here: no other dataset needs it.
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(
            "SBD's .mat files need scipy; install it with: pip install 'segserve[training]'"
        ) from error
    try:
        content = loadmat(str(path), squeeze_me=True, struct_as_record=False)
        return np.asarray(content["GTcls"].Segmentation, np.uint8)
    except (OSError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{path}: no SBD mask (GTcls.Segmentation): {error}") from error


def _added(root: Path, voc: Path) -> tuple[tuple[Path, Path], ...]:
    """SBD's (photo, mask), in alphabetical order."""
    sbd, drawn = root / SBD, voc / "SegmentationClassAug"
    if (sbd / "cls").is_dir():
        names = sorted({*read_names(sbd / "train.txt"), *read_names(sbd / "val.txt")})
        pairs = tuple((sbd / "img" / f"{n}.jpg", sbd / "cls" / f"{n}.mat") for n in names)
    elif drawn.is_dir():
        masks = sorted(drawn.glob("*.png"))
        pairs = tuple((voc / "JPEGImages" / f"{mask.stem}.jpg", mask) for mask in masks)
    else:
        raise FileNotFoundError(
            f"no augmented masks under {root}: expected {SBD}/{{img/*.jpg,cls/*.mat,train.txt,"
            f"val.txt}}, or {drawn.name}/*.png in {voc}; "
            f"get them with: segserve dataset prepare pascal_aug"
        )
    check_present([path for pair in pairs for path in pair])
    return pairs
