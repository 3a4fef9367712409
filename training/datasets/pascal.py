"""Pascal VOC 2012: 21 classes, 1464 training and 1449 validation images; and with SBD's masks.

::

    ROOT/VOC2012/{JPEGImages/*.jpg, SegmentationClass/*.png}     or ROOT/VOCdevkit/VOC2012, or ROOT
    ROOT/VOC2012/ImageSets/Segmentation/{train,val,trainval}.txt

``train`` reads ``train.txt``. GluonCV's reads ``trainval.txt``, so its local validation scores are
of images that were trained on; ``trainval`` is a split of its own here.

``pascal_aug`` adds the masks of SBD: 10582 training images, VOC's 1449 for validation.

::

    ROOT/VOCaug/dataset/{img/*.jpg, cls/*.mat, train.txt, val.txt}       SBD as published
    ROOT/VOC2012/SegmentationClassAug/*.png             or: the same masks as images, VOC's included

Its training images are VOC's ``train`` and all of SBD's, less those of VOC's ``val``: nothing is
scored that was trained on. GluonCV's ``pascal_aug`` does not leave them out.

Sources: Everingham et al., "The Pascal Visual Object Classes Challenge", 2015; Hariharan et al.,
"Semantic contours from inverse detectors", ICCV 2011. The images have terms of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.datasets.files import (
    PairedFiles,
    Pixels,
    check_present,
    check_split,
    read_ids,
    read_names,
)

SPLITS = ("train", "val", "trainval")
LISTS = Path("ImageSets") / "Segmentation"
SBD = Path("VOCaug") / "dataset"


class PascalVOC(PairedFiles):
    """A split of Pascal VOC; the border (255) is ignored."""

    def __init__(self, root: Path, split: str = "train") -> None:
        self.root = find_voc(Path(root))
        names = read_split(self.root, split)
        self.pairs = tuple(
            (self.root / "JPEGImages" / f"{name}.jpg",
             self.root / "SegmentationClass" / f"{name}.png")
            for name in names
        )  # fmt: skip
        check_present([path for pair in self.pairs for path in pair])


def find_voc(root: Path) -> Path:
    """Returns the folder with ``JPEGImages`` and ``ImageSets``. Raises FileNotFoundError."""
    for folder in (root / "VOC2012", root / "VOCdevkit" / "VOC2012", root):
        if (folder / LISTS).is_dir() and (folder / "JPEGImages").is_dir():
            return folder
    raise FileNotFoundError(
        f"no Pascal VOC under {root}: expected VOC2012/JPEGImages/*.jpg, "
        f"VOC2012/SegmentationClass/*.png and VOC2012/ImageSets/Segmentation/{{train,val}}.txt; "
        f"name the folder with --root, or get it with: segserve dataset prepare pascal_voc"
    )


def read_split(voc: Path, split: str) -> tuple[str, ...]:
    """Returns the names of a split's images, in the order of its list file.

    Raises:
        ValueError: a split without masks, or an empty list.
        FileNotFoundError: no list file.
    """
    check_split("Pascal VOC", split, SPLITS)
    path = voc / LISTS / f"{split}.txt"
    names = read_names(path)
    if not names:
        raise ValueError(f"{path} names no image")
    return names


class PascalAug(PairedFiles):
    """A split of the augmented Pascal VOC: ``train`` has SBD's masks too, ``val`` is VOC's own."""

    def __init__(self, root: Path, split: str = "train") -> None:
        check_split("pascal_aug", split, ("train", "val"))
        root = Path(root)
        self.root = find_voc(root)
        pairs = PascalVOC(root, split).pairs
        if split == "train":
            held = {*read_split(self.root, "val"), *(photo.stem for photo, _ in pairs)}
            pairs += tuple(pair for pair in _added(root, self.root) if pair[1].stem not in held)
        self.pairs = pairs

    def read_mask(self, path: Path) -> Pixels:
        return read_sbd(path) if path.suffix == ".mat" else read_ids(path)


def read_sbd(path: Path) -> Pixels:
    """Returns the class ids of SBD's ``cls/*.mat``, uint8 ``[H,W]``. Raises ValueError, naming the
    file.
    """
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
    """Returns SBD's (photo, mask), in alphabetical order."""
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
