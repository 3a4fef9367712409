"""Photos and masks of one's own: layouts, kinds of masks, and what each mistake is told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from serving.palette import IGNORE_COLOR
from training.datasets import FolderDataset, dataset_labels, open_dataset
from training.datasets.folder import validation_stems

NAMES = ("road", "tree", "sky")
COLORS = ((128, 64, 128), (0, 128, 0), (0, 0, 255))
LABELS = "road\t#804080\ntree\t#008000\nsky\t#0000ff\n"
IDS = np.array([[0, 1, 2, 255], [2, 2, 1, 0], [1, 0, 255, 2]], np.uint8)


def save(path: Path, pixels: npt.NDArray[np.uint8], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_pair(root: Path, place: str, mask: npt.NDArray[np.uint8] = IDS) -> Path:
    """``place`` as in ``train/a``; returns the mask's path."""
    (root / "labels.txt").write_text(LABELS)
    photo = np.full((*mask.shape[:2], 3), (200, 100, 50), np.uint8)
    save(root / "images" / f"{place}.jpg", photo)
    return save(root / "masks" / f"{place}.png", mask)


def colored(ids: npt.NDArray[np.uint8] = IDS) -> npt.NDArray[np.uint8]:
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLORS)] = COLORS
    table[255] = IGNORE_COLOR
    return table[ids]


def write_indexed(path: Path, ids: npt.NDArray[np.uint8], colors: list[tuple[int, ...]]) -> None:
    image = Image.fromarray(ids)
    # In full: a PNG of few colours would be saved with few bits, and lose 255.
    filled = [*colors, *[(5, 5, 5)] * (256 - len(colors))]
    image.putpalette([value for color in filled for value in color])
    image.save(path)


def test_split_folders_are_read(tmp_path: Path) -> None:
    for place in ("train/b", "train/a", "val/c", "test/d"):
        write_pair(tmp_path, place)
    dataset = open_dataset("folder", "train", tmp_path)
    assert [Path(dataset.name(i)).name for i in range(len(dataset))] == ["a.png", "b.png"]
    image, label = dataset[0]
    assert image.shape == (3, 4, 3)
    assert image.dtype == label.dtype == np.uint8
    assert abs(int(image[0, 0, 0]) - 200) < 12, "red comes first"
    assert label.tolist() == IDS.tolist()
    assert len(FolderDataset(tmp_path, "val")) == len(FolderDataset(tmp_path, "test")) == 1
    assert dataset_labels("folder", tmp_path).names == NAMES
    assert dataset_labels("folder", tmp_path).colors == COLORS


def test_without_split_folders_names_decide(tmp_path: Path) -> None:
    for index in range(40):
        write_pair(tmp_path, f"photo{index:02}")
    sides = {
        split: {photo.stem for photo, _ in FolderDataset(tmp_path, split).pairs}
        for split in ("train", "val")
    }
    assert not sides["train"] & sides["val"]
    assert len(sides["train"] | sides["val"]) == 40
    assert 2 <= len(sides["val"]) <= 16
    for index in range(40, 60):
        write_pair(tmp_path, f"photo{index:02}")
    grown = {photo.stem for photo, _ in FolderDataset(tmp_path, "val").pairs}
    assert grown & (sides["train"] | sides["val"]) == sides["val"], "none has changed sides"
    with pytest.raises(ValueError, match="no split 'test'"):
        FolderDataset(tmp_path, "test")


def test_about_a_fifth_is_validation_and_few_photos_are_still_split() -> None:
    chosen = validation_stems(tuple(f"image_{index}" for index in range(5000)))
    assert 900 < len(chosen) < 1100
    for count in range(2, 12):
        stems = tuple(f"{count}_{index}" for index in range(count))
        assert 1 <= len(validation_stems(stems)) < count


@pytest.mark.parametrize(
    "kind", ["gray", "indexed", "indexed in the classes' colours", "rgb", "rgba"]
)
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    mask = write_pair(tmp_path, "train/a")
    if kind.startswith("indexed"):
        palette = list(COLORS) if "colours" in kind else [(9, 9, 9), (8, 8, 8), (7, 7, 7)]
        write_indexed(mask, IDS, palette)
    elif kind == "rgb":
        save(mask, colored())
    elif kind == "rgba":
        save(mask, np.dstack([colored(), np.full(IDS.shape, 255, np.uint8)]))
    assert FolderDataset(tmp_path)[0][1].tolist() == IDS.tolist()


def test_a_bilevel_mask_has_two_classes(tmp_path: Path) -> None:
    mask = write_pair(tmp_path, "train/a")
    Image.fromarray(IDS == 1).save(mask)
    assert FolderDataset(tmp_path)[0][1].tolist() == (IDS == 1).astype(int).tolist()


def test_colours_without_a_list_are_the_default_ones(tmp_path: Path) -> None:
    mask = write_pair(tmp_path, "train/a")
    (tmp_path / "labels.txt").write_text("road\ntree\nsky\n")
    table = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
    save(mask, table[IDS % 3])
    assert FolderDataset(tmp_path)[0][1].tolist() == (IDS % 3).tolist()


def test_an_unknown_colour_is_named_with_its_place(tmp_path: Path) -> None:
    pixels = colored()
    pixels[2, 1] = (1, 2, 3)
    mask = write_pair(tmp_path, "train/a", pixels)
    with pytest.raises(ValueError, match=r"colour #010203 at row 2, column 1 \(1 such") as caught:
        FolderDataset(tmp_path)[0]
    assert str(mask) in str(caught.value)
    assert "labels.txt" in str(caught.value)


def test_a_label_out_of_range_is_named_with_its_place(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[1, 2] = ids[2, 2] = 3
    mask = write_pair(tmp_path, "train/a", ids)
    with pytest.raises(
        ValueError, match=r"label 3 at row 1, column 2 \(2 such .* 0 to 2"
    ) as caught:
        FolderDataset(tmp_path)[0]
    assert str(mask) in str(caught.value)


def test_a_palette_in_another_order_is_refused(tmp_path: Path) -> None:
    """Some editors sort the colours when they save: the picture looks right, the ids are wrong."""
    mask = write_pair(tmp_path, "train/a")
    write_indexed(mask, IDS, [COLORS[2], COLORS[1], COLORS[0]])
    with pytest.raises(ValueError, match=r"index 0 has the colour of class 2 \(sky\)"):
        FolderDataset(tmp_path)[0]


def test_other_kinds_of_masks_are_refused(tmp_path: Path) -> None:
    mask = write_pair(tmp_path, "train/a")
    Image.fromarray(IDS.astype(np.uint16) * 300).save(mask)
    with pytest.raises(ValueError, match=r"a\.png: a PNG of mode I;16"):
        FolderDataset(tmp_path)[0]
    mask.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        FolderDataset(tmp_path)[0]


def test_another_size_is_named(tmp_path: Path) -> None:
    mask = write_pair(tmp_path, "train/a")
    save(mask, IDS[:2])
    with pytest.raises(ValueError, match=r"a\.png: 2x4, but a\.jpg is 3x4$"):
        FolderDataset(tmp_path)[0]


def test_a_turned_photo_is_upright_and_its_mask_must_be_too(tmp_path: Path) -> None:
    mask = write_pair(tmp_path, "train/a")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images/train/a.jpg", np.zeros((3, 4, 3), np.uint8), exif=exif)
    with pytest.raises(ValueError, match=r"3x4, but a\.jpg is 4x3, upright by its EXIF"):
        FolderDataset(tmp_path)[0]
    save(mask, np.ascontiguousarray(IDS.T))
    assert FolderDataset(tmp_path)[0][0].shape == (4, 3, 3)


def test_a_broken_photo_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    photo = tmp_path / "images/train/a.jpg"
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a\.jpg: .*JPEG"):
        FolderDataset(tmp_path)[0]


@pytest.mark.parametrize("alone", ["images/train/x.jpg", "masks/train/x.png"])
def test_a_missing_partner_is_named(tmp_path: Path, alone: str) -> None:
    write_pair(tmp_path, "train/a")
    save(tmp_path / alone, IDS)
    with pytest.raises(FileNotFoundError, match=r"without a partner: x$"):
        FolderDataset(tmp_path)


def test_two_photos_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    save(tmp_path / "images/train/a.png", np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"a\.jpg and a\.png would share"):
        FolderDataset(tmp_path)


def test_other_layouts_are_told_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"labels\.txt is missing: one class a line"):
        FolderDataset(tmp_path)
    (tmp_path / "labels.txt").write_text(LABELS)
    with pytest.raises(FileNotFoundError, match=r"expected images/train/\*\.jpg"):
        FolderDataset(tmp_path)
    write_pair(tmp_path, "train/a")
    with pytest.raises(FileNotFoundError, match=r"no split 'val'.*images/val is missing"):
        FolderDataset(tmp_path, "val")
    write_pair(tmp_path, "b")
    with pytest.raises(ValueError, match=r"b\.jpg is beside .*train"):
        FolderDataset(tmp_path)
    with pytest.raises(ValueError, match="--root"):
        open_dataset("folder", "train")
    with pytest.raises(ValueError, match="--root"):
        dataset_labels("folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road\t#80408\ntree\n", "line 1: '#80408' is not a valid colour"),
        ("road\t#804080\ntree\n", "1 colours for 2 classes"),
        ("road\t#804080\ntree\t#804080\n", "two classes have the colour #804080"),
        ("road\nroad\n", "each name once"),
        ("\n", "at least one"),
    ],
)
def test_a_wrong_list_of_classes_is_explained(tmp_path: Path, text: str, message: str) -> None:
    write_pair(tmp_path, "train/a")
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.txt: .*" + message):
        FolderDataset(tmp_path)


def test_photos_are_decoded_as_the_server_decodes_them(tmp_path: Path) -> None:
    write_pair(tmp_path, "train/a")
    (tmp_path / "images/train/a.jpg").unlink()
    gray = io.BytesIO()
    Image.fromarray(IDS.astype(np.uint16) * 257).save(gray, "PNG")
    (tmp_path / "images/train/a.PNG").write_bytes(gray.getvalue())
    assert FolderDataset(tmp_path)[0][0].tolist() == np.dstack([IDS] * 3).tolist()
