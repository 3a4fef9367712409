"""ADE20K, scene parsing challenge: 150 classes, 20210 training and 2000 validation images.

::

    ROOT/ADEChallengeData2016/images/{training,validation}/*.jpg         or ROOT itself
    ROOT/ADEChallengeData2016/annotations/{training,validation}/*.png

Masks hold 0 for "other", which is ignored, and class + 1.

Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.datasets.files import (
    PairedFiles,
    Pixels,
    check_split,
    pair_files,
    read_ids,
)

FOLDERS = {"train": "training", "val": "validation"}
TOP = "ADEChallengeData2016"


class ADE20K(PairedFiles):
    """A split of ADE20K; label 0 becomes 255, every other label one less."""

    def __init__(self, root: Path, split: str = "train") -> None:
        check_split("ADE20K", split, FOLDERS)
        root = Path(root)
        self.root = root / TOP if (root / TOP).is_dir() else root
        photos, masks = (self.root / part / FOLDERS[split] for part in ("images", "annotations"))
        if not photos.is_dir() or not masks.is_dir():
            raise FileNotFoundError(
                f"no ADE20K split {split!r} under {root}: expected "
                f"{TOP}/images/{FOLDERS[split]}/*.jpg with {TOP}/annotations/{FOLDERS[split]}/"
                f"*.png; name the folder with --root, or get it with: segserve dataset prepare "
                f"ade20k"
            )
        self.pairs = pair_files(photos, masks)

    def read_mask(self, path: Path) -> Pixels:
        # 0 wraps around to 255.
        return np.subtract(read_ids(path), 1, dtype=np.uint8)
