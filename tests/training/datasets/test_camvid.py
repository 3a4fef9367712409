"""CamVid's two layouts, made small; and the real one where it is present."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from export.datasets import IGNORE_LABEL
from training.datasets import open_dataset
from training.datasets.camvid import CamVid

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "datasets" / "camvid"
LAYOUTS = {"flat": ("{}", "{}annot"), "nested": ("{}/images", "{}/labels")}


def write_pair(
    root: Path, layout: str, name: str, split: str = "train", ending: str = "png"
) -> None:
    """A red 6x8 image; its mask has every class, and void, in the first columns."""
    images, labels = (root / folder.format(split) for folder in LAYOUTS[layout])
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    image = np.zeros((6, 8, 3), np.uint8)
    image[..., 2] = 250
    label = np.zeros((6, 8), np.uint8)
    label.reshape(-1)[:12] = np.arange(12)
    assert cv2.imwrite(str(images / f"{name}.{ending}"), image)
    assert cv2.imwrite(str(labels / f"{name}.png"), label)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_both_layouts_are_read(tmp_path: Path, layout: str, ending: str) -> None:
    for name in ("b", "a"):
        write_pair(tmp_path, layout, name, ending=ending)
    dataset = open_dataset("camvid", "train", tmp_path)
    assert len(dataset) == 2
    assert [Path(dataset.name(i)).name for i in range(2)] == ["a.png", "b.png"]
    image, label = dataset[0]
    assert image.shape == (6, 8, 3)
    assert image.dtype == label.dtype == np.uint8
    assert abs(int(image[3, 4, 0]) - 250) < 6, "red comes first"
    assert int(image[3, 4, 2]) < 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_void_is_ignored(tmp_path: Path, layout: str) -> None:
    write_pair(tmp_path, layout, "a")
    label = CamVid(tmp_path)[0][1].reshape(-1)
    assert label[:12].tolist() == [*range(11), IGNORE_LABEL]


def test_splits_are_folders(tmp_path: Path) -> None:
    write_pair(tmp_path, "flat", "a")
    write_pair(tmp_path, "flat", "b", split="val")
    assert len(CamVid(tmp_path, "val")) == 1
    with pytest.raises(FileNotFoundError, match=r"no CamVid split 'test' .*--root"):
        CamVid(tmp_path, "test")


@pytest.mark.parametrize("alone", ["train/x.png", "trainannot/x.png"])
def test_a_file_without_a_partner_is_named(tmp_path: Path, alone: str) -> None:
    write_pair(tmp_path, "flat", "a")
    (tmp_path / alone).write_bytes((tmp_path / "train" / "a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match="without a partner: x"):
        CamVid(tmp_path)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(FileNotFoundError, match="0 images, 0 labels"):
        CamVid(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "flat", "a")
    (tmp_path / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*train/a\.png"):
        CamVid(tmp_path)[0]


@pytest.mark.parametrize("shape", [(6, 7), (6, 8, 3)])
def test_a_mask_that_does_not_fit_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_pair(tmp_path, "flat", "a")
    assert cv2.imwrite(str(tmp_path / "trainannot" / "a.png"), np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"trainannot/a\.png: shape .* does not fit"):
        CamVid(tmp_path)[0]


def test_unknown_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'kitti'; known: ade20k, camvid,"):
        open_dataset("kitti", "train", tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the CamVid images are not on this machine")
def test_the_published_images_are_read() -> None:
    lengths = {split: len(CamVid(REAL, split)) for split in ("train", "val")}
    assert lengths == {"train": 367, "val": 101}
    dataset = CamVid(REAL, "val")
    counts = np.zeros(256, np.int64)
    for index in range(0, len(dataset), 20):
        image, label = dataset[index]
        assert image.shape == (360, 480, 3)
        assert label.shape == (360, 480)
        counts += np.bincount(label.reshape(-1), minlength=256)
    present = set(np.flatnonzero(counts).tolist())
    assert present <= {*range(11), IGNORE_LABEL}
    assert {0, 1, 3, 4, 5, IGNORE_LABEL} <= present, "sky, building, road, pavement, tree, void"
