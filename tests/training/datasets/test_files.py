"""Pixels of a dataset's files: colours in RGB, ids as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.datasets.files import check_size, read_ids, read_photo


def colours(height: int = 5, width: int = 7) -> np.ndarray:
    """Red grows to the right, green downwards, blue is the same everywhere."""
    red, green = np.meshgrid(np.arange(width) * 30, np.arange(height) * 40)
    return np.stack([red, green, np.full_like(red, 9)], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_photo_is_red_green_blue(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(colours()).save(path)
    found = read_photo(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, colours())


def test_a_gray_photo_is_repeated_and_orientation_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    gray = colours()[..., 0]
    Image.fromarray(gray).save(path, exif=exif)
    found = read_photo(path)
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, 2))


def test_ids_are_those_of_gray_and_indexed_files(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [7, 19, 3]], np.uint8)
    for mode in ("L", "P"):
        image = Image.fromarray(ids)
        if mode == "P":
            image.putpalette(bytes(255 - k // 3 for k in range(768)))
        image.save(tmp_path / f"{mode}.png")
        np.testing.assert_array_equal(read_ids(tmp_path / f"{mode}.png"), ids)
    Image.fromarray(ids > 2).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_ids(tmp_path / "1.png"), ids > 2)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken, colour, absent = (tmp_path / name for name in ("broken.png", "colour.png", "absent"))
    broken.write_bytes(b"no image")
    Image.fromarray(colours()).save(colour)
    for read, path, text in (
        (read_photo, broken, r"cannot read .*broken\.png"),
        (read_photo, absent, "cannot read .*absent"),
        (read_ids, broken, r"cannot read .*broken\.png"),
        (read_ids, absent, "cannot read .*absent"),
        (read_ids, colour, r"colour\.png: a PNG of mode RGB"),
    ):
        with pytest.raises(ValueError, match=text):
            read(path)


def test_a_mask_must_have_its_photos_size(tmp_path: Path) -> None:
    image, label = colours(), np.zeros((5, 7), np.uint8)
    assert check_size(image, label, tmp_path)[1] is label
    with pytest.raises(ValueError, match=r"m\.png: shape \(7, 5\) does not fit image \(5, 7, 3\)"):
        check_size(image, label.T, tmp_path / "m.png")
