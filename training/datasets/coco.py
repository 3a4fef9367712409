"""COCO 2017 with Pascal VOC's 21 classes.

::

    ROOT/{train2017,val2017}/*.jpg
    ROOT/annotations/instances_{train2017,val2017}.json

Instances are painted in the file's order, and the first one keeps a pixel; the categories that VOC
does not have are background. Images with 1000 labelled pixels or fewer are left out, as in GluonCV;
which ones these are is kept in ``annotations/voc21_*.json``, for counting them takes minutes.

Source: Lin et al., "Microsoft COCO", arXiv 1405.0312. Needs pycocotools.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.datasets import Sample
from training.datasets.files import Pixels, check_size, check_split, read_photo

if TYPE_CHECKING:
    from pycocotools.coco import COCO

# COCO's category of each of VOC's classes, in VOC's order; 0 is background.
CATEGORIES = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
LEAST_PIXELS = 1000
FOLDERS = {"train": "train2017", "val": "val2017"}


class COCO21:
    """A split of COCO; masks are painted when they are read."""

    def __init__(self, root: Path, split: str = "train") -> None:
        check_split("COCO", split, FOLDERS)
        self.root = Path(root)
        self.folder = self.root / FOLDERS[split]
        self.annotations = self.root / "annotations" / f"instances_{FOLDERS[split]}.json"
        if not self.folder.is_dir() or not self.annotations.is_file():
            raise FileNotFoundError(
                f"no COCO split {split!r} under {root}: expected {FOLDERS[split]}/*.jpg with "
                f"annotations/{self.annotations.name}; name the folder with --root, or get it "
                f"with: segserve dataset prepare coco"
            )
        self._coco = _open(self.annotations)
        self.ids = self._read_kept()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        path = self._photo(index)
        return check_size(read_photo(path), self._paint(self.ids[index]), path)

    def name(self, index: int) -> str:
        return str(self._photo(index))

    def _photo(self, index: int) -> Path:
        return self.folder / str(self._coco.imgs[self.ids[index]]["file_name"])

    def _paint(self, image_id: int) -> Pixels:
        facts = self._coco.imgs[image_id]
        label = np.zeros((int(facts["height"]), int(facts["width"])), np.uint8)
        for instance in self._coco.imgToAnns.get(image_id, ()):
            if instance["category_id"] in CATEGORIES:
                inside = self._coco.annToMask(instance) > 0
                label[inside & (label == 0)] = CATEGORIES.index(instance["category_id"])
        return label

    def _read_kept(self) -> tuple[int, ...]:
        """Returns the ids of the images with enough pixels, from the file or counted now."""
        digest = hashlib.sha256(self.annotations.read_bytes()).hexdigest()
        kept = self.annotations.with_name(f"voc21_{self.folder.name}.json")
        with contextlib.suppress(OSError, ValueError, KeyError):
            saved = json.loads(kept.read_text())
            if saved["sha256"] == digest:
                return tuple(int(number) for number in saved["ids"])
        ids = [
            number
            for number in sorted(self._coco.imgs)
            if np.count_nonzero(self._paint(number)) > LEAST_PIXELS
        ]
        if not ids:
            raise ValueError(f"{self.annotations}: no image has over {LEAST_PIXELS} VOC pixels")
        # A folder that cannot be written is counted again the next time.
        with contextlib.suppress(OSError):
            kept.write_text(json.dumps({"sha256": digest, "ids": ids}))
        return tuple(ids)


def _open(annotations: Path) -> COCO:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise ValueError("COCO needs pycocotools: pip install pycocotools") from error
    try:
        # It prints its progress.
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(annotations))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{annotations}: no COCO annotations: {error}") from error
