"""Multi-Human Parsing v1, 19 classes with the background, 4980 photos of several persons.

::

    ROOT/images/NNNN.jpg                       or ROOT/LV-MHP-v1
    ROOT/annotations/NNNN_PP_II.png            person II of PP, values 0..18
    ROOT/{train_list,test_list}.txt            4000 and 980 names

The published list names the training photos; its last quarter (1000) is kept for validation, all of
it: GluonCV's loses one. A photo's persons are merged in the order of their numbers and the first
keeps a pixel, where GluonCV takes the order of the folder's listing. Photos are scaled to a short
edge of 768 pixels and a long one that is a multiple of 8, as there.

Source: Li et al., "Multiple-Human Parsing in the Wild", arXiv 1705.07206. The images are for
research only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.datasets import Sample
from training.datasets.files import (
    Pixels,
    check_present,
    check_size,
    check_split,
    read_ids,
    read_names,
    read_photo,
    resize_pair,
)

SHORT_EDGE = 768
STEP = 8
TRAINING_SHARE = 0.75
LISTS = {"train": "train_list.txt", "val": "train_list.txt", "test": "test_list.txt"}
TOP = "LV-MHP-v1"


class MHPv1:
    """A split of MHP v1; ``short_edge`` None keeps the photos' own size."""

    def __init__(
        self, root: Path, split: str = "train", short_edge: int | None = SHORT_EDGE
    ) -> None:
        check_split("MHP v1", split, LISTS)
        root = Path(root)
        self.root = root / TOP if (root / TOP).is_dir() else root
        self.short_edge = short_edge
        if not (self.root / "images").is_dir() or not (self.root / "annotations").is_dir():
            raise FileNotFoundError(
                f"no MHP v1 under {root}: expected images/NNNN.jpg, annotations/NNNN_PP_II.png, "
                f"train_list.txt and test_list.txt; name the folder with --root"
            )
        self.photos = tuple(self.root / "images" / name for name in self._names(split))
        check_present(list(self.photos))
        self._persons = self._find_persons()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        photo = self.photos[index]
        masks = self._persons[photo.stem]
        image, label = check_size(read_photo(photo), merge_persons(masks), masks[0])
        if self.short_edge is None:
            return image, label
        return _resize(image, label, self.short_edge)

    def name(self, index: int) -> str:
        return str(self.photos[index])

    def _names(self, split: str) -> tuple[str, ...]:
        path = self.root / LISTS[split]
        names = read_names(path)
        if split != "test":
            first = round(TRAINING_SHARE * len(names))
            names = names[:first] if split == "train" else names[first:]
        if not names:
            raise ValueError(f"{path} names no photo for {split!r}")
        return names

    def _find_persons(self) -> dict[str, tuple[Path, ...]]:
        """Returns masks by the photo's name, in the order of the persons' numbers.

        Raises:
            FileNotFoundError: a photo without all the masks that their names promise.
        """
        found: dict[str, list[Path]] = {}
        for path in sorted((self.root / "annotations").glob("*_*_*.png")):
            found.setdefault(path.name.split("_")[0], []).append(path)
        for photo in self.photos:
            masks = found.get(photo.stem, [])
            promised = int(masks[0].stem.split("_")[1]) if masks else 1
            if len(masks) != promised:
                raise FileNotFoundError(
                    f"{photo}: {len(masks)} of {promised} masks {photo.stem}_*.png are in "
                    f"{self.root / 'annotations'}"
                )
        return {photo.stem: tuple(found[photo.stem]) for photo in self.photos}


def merge_persons(masks: tuple[Path, ...]) -> Pixels:
    """Returns one map, uint8 ``[H,W]``: the first person that is not background keeps a pixel.

    Raises:
        ValueError: a mask that cannot be read, or is of another size than the first.
    """
    merged = read_ids(masks[0])
    for path in masks[1:]:
        person = read_ids(path)
        if person.shape != merged.shape:
            raise ValueError(f"{path}: shape {person.shape}, but {masks[0].name} {merged.shape}")
        merged = np.where(merged == 0, person, merged)
    return merged


def _resize(image: Pixels, label: Pixels, short_edge: int) -> Sample:
    height, width = label.shape
    ratio = short_edge / min(height, width)
    long_edge = max(STEP, round(max(height, width) * ratio / STEP) * STEP)
    if width < height:
        return resize_pair(image, label, long_edge, short_edge)
    return resize_pair(image, label, short_edge, long_edge)
