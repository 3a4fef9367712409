"""Pascal VOC 2012, 21 classes, 1464 training and 1449 validation images.

::

    ROOT/VOC2012/{JPEGImages/*.jpg, SegmentationClass/*.png}     or ROOT/VOCdevkit/VOC2012, or ROOT
    ROOT/VOC2012/ImageSets/Segmentation/{train,val,trainval}.txt

``train`` reads ``train.txt``. GluonCV's reads ``trainval.txt``, so its local validation scores are
of images that were trained on; ``trainval`` is a split of its own here.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge", 2015. The images have terms
of their own.
"""

from __future__ import annotations

from pathlib import Path

from serving.parsing import read_text
from training.datasets.base import Sample
from training.datasets.pairs import name_some
from training.datasets.pixels import check_size, read_ids, read_photo

SPLITS = ("train", "val", "trainval")
LISTS = Path("ImageSets") / "Segmentation"


class PascalVOC:
    """One split; the border (255) is ignored."""

    def __init__(self, root: Path, split: str = "train") -> None:
        self.root = find_voc(Path(root))
        names = read_split(self.root, split)
        self.pairs = tuple(
            (self.root / "JPEGImages" / f"{name}.jpg",
             self.root / "SegmentationClass" / f"{name}.png")
            for name in names
        )  # fmt: skip
        check_present([path for pair in self.pairs for path in pair])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        photo, mask = self.pairs[index]
        return check_size(read_photo(photo), read_ids(mask), mask)

    def name(self, index: int) -> str:
        return str(self.pairs[index][1])


def find_voc(root: Path) -> Path:
    """The folder that holds ``JPEGImages`` and ``ImageSets``. Raises FileNotFoundError."""
    for folder in (root / "VOC2012", root / "VOCdevkit" / "VOC2012", root):
        if (folder / LISTS).is_dir() and (folder / "JPEGImages").is_dir():
            return folder
    raise FileNotFoundError(
        f"no Pascal VOC under {root}: expected VOC2012/JPEGImages/*.jpg, "
        f"VOC2012/SegmentationClass/*.png and VOC2012/ImageSets/Segmentation/{{train,val}}.txt; "
        f"name the folder with --root, or get it with: segserve dataset prepare pascal_voc"
    )


def read_split(voc: Path, split: str) -> tuple[str, ...]:
    """Names of a split's images, as its list file has them.

    Raises:
        ValueError: a split without masks, or an empty list.
        FileNotFoundError: no list file.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r} of Pascal VOC; known: {', '.join(SPLITS)}")
    path = voc / LISTS / f"{split}.txt"
    names = read_names(path)
    if not names:
        raise ValueError(f"{path} names no image")
    return names


def read_names(path: Path) -> tuple[str, ...]:
    """One name a line, whichever line ends; empty lines are left. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: one name a line")
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())


def check_present(paths: list[Path]) -> None:
    """Raises FileNotFoundError, naming some of the files that are not there."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} files are missing: {name_some(missing)}")
