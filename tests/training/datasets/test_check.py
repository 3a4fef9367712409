"""``segserve dataset check``: what is counted, what is a problem, and the exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from training.datasets import open_dataset
from training.datasets.check import check_split
from training.datasets.cli import dataset


def check(*arguments: str | Path) -> Result:
    app = Typer()
    app.command()(dataset)
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["check", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three training photos and a validation one; masks of classes 0 and 1, a fifth ignored."""
    (tmp_path / "labels.txt").write_text("road\n[tree]\nsky\n")
    for place in ("train/a", "train/b", "train/c", "val/d"):
        mask = np.zeros((5, 8), np.uint8)
        mask[:1] = 255
        mask[1:3] = 1
        for folder, pixels, ending in (
            ("images", np.zeros((5, 8, 3), np.uint8), "jpg"), ("masks", mask, "png"),
        ):  # fmt: skip
            path = tmp_path / folder / f"{place}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path


def test_counts(photos: Path) -> None:
    report = check_split(open_dataset("folder", "train", photos), "train", 3)
    assert report.images == 3
    assert report.sizes == (((5, 8), 3),)
    assert report.pixels.tolist() == [48, 48, 0]
    assert report.images_with.tolist() == [3, 3, 0]
    assert report.ignored == 24
    assert report.shares.tolist() == [0.5, 0.5, 0]
    assert (report.problems, report.empty_masks) == ((), ())


def test_a_good_folder_passes(photos: Path) -> None:
    result = check("folder", "--root", photos)
    assert result.exit_code == 0, result.output
    assert "train: 3 pairs; height x width: 5x8 (3)" in result.output
    assert "50.00 % (3)" in result.output
    assert "[tree]" in result.output
    assert "20.00 % of all" in result.output
    assert "warning: train: no pixel of sky" in result.output
    assert "4 pairs, no problems" in result.output


def test_every_damaged_file_is_named_and_the_exit_code_tells(photos: Path) -> None:
    Image.fromarray(np.full((5, 8), 7, np.uint8)).save(photos / "masks/train/a.png")
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(photos / "masks/train/c.png")
    Image.fromarray(np.full((5, 8), 255, np.uint8)).save(photos / "masks/val/d.png")
    result = check("folder", "--root", photos)
    assert result.exit_code == 1
    assert "masks/train/a.png: label 7 at row 0, column 0 (40 such pixels)" in result.output
    assert "masks/train/c.png: 5x9, but c.jpg is 5x8" in result.output
    assert "warning: " in result.output
    assert "masks/val/d.png: every pixel is ignored" in result.output
    assert "train: 3 pairs; height x width: 5x8 (1)" in result.output
    assert "no problems" not in result.output
    assert check("folder", "--root", photos, "--split", "val").exit_code == 0


def test_a_missing_partner_does_not_hide_the_other_split(photos: Path) -> None:
    (photos / "masks/train/b.png").unlink()
    result = check("folder", "--root", photos)
    assert result.exit_code == 1
    assert "without a partner: b" in result.output
    assert "val: 1 pairs" in result.output


def test_a_photo_on_both_sides_is_told(photos: Path) -> None:
    for place, color in (("train/a", 1), ("train/b", 2), ("val/d", 2)):
        pixels = np.full((5, 8, 3), 100 * color, np.uint8)
        Image.fromarray(pixels).save(photos / f"images/{place}.jpg")
    result = check("folder", "--root", photos)
    assert result.exit_code == 0
    lines = [line for line in result.output.splitlines() if "the same photo" in line]
    assert len(lines) == 1
    assert "train/b.jpg" in lines[0]
    assert "val/d.jpg" in lines[0]


def test_without_labels_nothing_is_read(photos: Path) -> None:
    (photos / "labels.txt").unlink()
    result = check("folder", "--root", photos)
    assert result.exit_code == 1
    assert "labels.txt is missing: one class a line" in result.output
    result = check("nowhere")
    assert result.exit_code == 1
    assert "unknown dataset 'nowhere'" in result.output


def test_other_datasets_are_checked_too(tmp_path: Path, write_scenes) -> None:
    scenes = write_scenes(tmp_path / "camvid", {"train": 2, "val": 1})
    result = check("camvid", "--root", scenes)
    assert result.exit_code == 0, result.output
    assert "3 pairs, no problems" in result.output
    wrong = np.full((64, 96), 12, np.uint8)
    Image.fromarray(wrong).save(scenes / "trainannot" / "000.png")
    result = check("camvid", "--root", scenes)
    assert result.exit_code == 1
    assert "trainannot/000.png: labels [12] are outside 0..10" in result.output
    assert "2 pairs, no problems" in check("synthetic", "--limit", "1").output
