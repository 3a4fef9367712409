"""Published datasets with a few rendered scenes, each in its own layout and with its own ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets.cityscapes import LABEL_IDS
from training.datasets.synthetic import render_scene

HEIGHT, WIDTH = 64, 96


def write_citys(root: Path, lengths: dict[str, int]) -> Path:
    """``leftImg8bit`` and ``gtFine`` with labelIds, the scenes' classes as Cityscapes' first."""
    table = np.zeros(256, np.uint8)
    table[:11] = LABEL_IDS[:11]
    for split, length in lengths.items():
        for index in range(length):
            image, label = _scene(split, index)
            stem = f"{split}/town/town_{index:06}"
            _save(root / f"leftImg8bit/{stem}_leftImg8bit.png", image)
            _save(root / f"gtFine/{stem}_gtFine_labelIds.png", table[label])
    return root


def write_mhp(root: Path, length: int) -> Path:
    """Two persons a photo: where the scene has its first six classes, and where the others. Three
    quarters of the ``length`` photos are trained on."""
    names = [f"{index:04}.jpg" for index in range(1, length + 1)]
    for index, name in enumerate(names):
        image, label = _scene("train", index)
        stem = name.removesuffix(".jpg")
        _save(root / "images" / name, image)
        for person, part in ((1, label < 6), (2, label >= 6)):
            # Up to 18, the class that the published network had no output for.
            mask = np.where(part, np.minimum(2 * label.astype(int), 18), 0).astype(np.uint8)
            _save(root / f"annotations/{stem}_02_{person:02}.png", mask)
    (root / "train_list.txt").write_text("\n".join(names) + "\n")
    (root / "test_list.txt").write_text(names[0] + "\n")
    return root


def write_pascal_aug(root: Path, lengths: dict[str, int]) -> Path:
    """``VOC2012``, its masks, and as augmented ones those of the training images."""
    voc = root / "VOC2012"
    for split, length in lengths.items():
        names = [f"{split}_{index}" for index in range(length)]
        listed = voc / f"ImageSets/Segmentation/{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
        for index, name in enumerate(names):
            image, label = _scene(split, index)
            _save(voc / f"JPEGImages/{name}.jpg", image)
            for folder in ("SegmentationClass", "SegmentationClassAug"):
                _save(voc / f"{folder}/{name}.png", label)
    return root


def _scene(split: str, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    scene = render_scene(500 * (split == "val") + index, HEIGHT, WIDTH)
    return scene.image, np.where(scene.label < 11, scene.label, 0).astype(np.uint8)


def _save(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
