"""Published datasets, each as a tiny tree in its own layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from export.datasets import IGNORE_LABEL
from training.datasets import IN_FOLDERS, default_root, open_dataset
from training.datasets.cityscapes import TRAIN_IDS
from training.datasets.cli import dataset
from training.datasets.mhp import MHPv1

MHP_SAMPLE = Path(__file__).resolve().parents[3].parent / "shared/datasets/mhp_v1_sample"


def write(path: Path, pixels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([i // 3 for i in range(768)])
    image.save(path)


def photo(path: Path, height: int = 6, width: int = 8) -> None:
    write(path, np.full((height, width, 3), (250, 0, 0), np.uint8))


def ids(*values: int, height: int = 6, width: int = 8) -> np.ndarray:
    label = np.zeros((height, width), np.uint8)
    label.reshape(-1)[: len(values)] = values
    return label


def check(*arguments: str | Path) -> Result:
    app = Typer()
    app.command()(dataset)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check", *map(str, arguments)])


def write_citys(root: Path, split: str, ending: str, values: tuple[int, ...]) -> None:
    for name in ("b_000001", "a_000000"):
        stem = f"{name[0]}town/{name}"
        photo(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png")
        write(root / f"gtFine/{split}/{stem}_gtFine_{ending}.png", ids(*values))


def write_voc(root: Path, lists: dict[str, list[str]]) -> Path:
    voc = root / "VOC2012"
    for split, names in lists.items():
        path = voc / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
        for name in names:
            photo(voc / f"JPEGImages/{name}.jpg")
            write(voc / f"SegmentationClass/{name}.png", ids(1, 20, 255), palette=True)
    return voc


def stems(name: str, split: str, root: Path) -> list[str]:
    opened = open_dataset(name, split, root)
    return [Path(opened.name(index)).stem for index in range(len(opened))]


def test_cityscapes_ids_become_the_19_classes(tmp_path: Path) -> None:
    write_citys(tmp_path, "train", "labelIds", (7, 8, 11, 33, 0, 29, 255))
    write_citys(tmp_path, "val", "labelTrainIds", (0, 1, 18, 255))
    image, label = open_dataset("cityscapes", "train", tmp_path)[0]
    assert image[3, 4].tolist() == [250, 0, 0]
    assert label.reshape(-1)[:7].tolist() == [0, 1, 2, 18, 255, 255, 255]
    assert open_dataset("citys", "val", tmp_path)[1][1].reshape(-1)[:4].tolist() == [0, 1, 18, 255]
    assert stems("citys", "train", tmp_path)[0].startswith("a_000000")
    assert sorted(set(TRAIN_IDS.tolist())) == [*range(19), IGNORE_LABEL]
    result = check("citys", "--root", tmp_path)
    assert result.exit_code == 0, result.output
    assert "4 pairs, no problems" in result.output


def test_wrong_cityscapes_files_are_named(tmp_path: Path) -> None:
    assert (
        "expected leftImg8bit/train/CITY/*_leftImg8bit.png"
        in check("citys", "--root", tmp_path).output
    )
    write_citys(tmp_path, "train", "labelIds", (34,))
    assert "34 is not a Cityscapes id" in check("citys", "--root", tmp_path).output
    (tmp_path / "gtFine/train/atown/a_000000_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="without a partner: atown/a_000000"):
        open_dataset("citys", "train", tmp_path)


def test_voc_trains_on_train_alone(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["t1", "t2"], "val": ["v1"], "trainval": ["t1", "t2", "v1"]})
    assert stems("voc", "train", tmp_path) == ["t1", "t2"]
    assert stems("pascal_voc", "val", tmp_path) == ["v1"]
    assert len(open_dataset("pascal_voc", "trainval", tmp_path)) == 3
    assert stems("voc", "val", tmp_path / "VOC2012") == ["v1"]
    label = open_dataset("pascal_voc", "train", tmp_path)[0][1]
    assert label.reshape(-1)[:4].tolist() == [1, 20, 255, 0], "indices, not colours"
    assert "3 pairs, no problems" in check("pascal_voc", "--root", tmp_path).output


@pytest.mark.parametrize("form", ["mat", "png"])
def test_the_augmented_set_holds_no_validation_image(tmp_path: Path, form: str) -> None:
    voc = write_voc(tmp_path, {"train": ["t1"], "val": ["v1"]})
    for name in ("t1", "v1", "s2", "s1"):
        mask = ids(5, 6)
        if form == "png":
            photo(voc / f"JPEGImages/{name}.jpg")
            write(voc / f"SegmentationClassAug/{name}.png", mask)
            continue
        sbd = tmp_path / "VOCaug/dataset"
        photo(sbd / f"img/{name}.jpg")
        (sbd / "cls").mkdir(exist_ok=True)
        # As published: a struct with the field Segmentation.
        savemat = pytest.importorskip("scipy.io").savemat
        savemat(sbd / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask}})
        with (sbd / ("val.txt" if name == "s2" else "train.txt")).open("a") as file:
            file.write(f"{name}\r\n")
    assert stems("pascal_aug", "train", tmp_path) == ["t1", "s1", "s2"]
    assert stems("pascal_aug", "val", tmp_path) == ["v1"]
    opened = open_dataset("pascal_aug", "train", tmp_path)
    assert opened[0][1].reshape(-1)[:2].tolist() == [1, 20], "VOC's own mask where there is one"
    assert opened[1][1].reshape(-1)[:2].tolist() == [5, 6]
    assert "4 pairs, no problems" in check("pascal_aug", "--root", tmp_path).output


def test_voc_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "expected VOC2012/JPEGImages" in check("pascal_aug", "--root", tmp_path).output
    voc = write_voc(tmp_path, {"train": ["t1"], "val": ["v1"]})
    with pytest.raises(FileNotFoundError, match="SegmentationClassAug"):
        open_dataset("pascal_aug", "train", tmp_path)
    (voc / "JPEGImages/t1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 files are missing: .*t1\.jpg"):
        open_dataset("pascal_voc", "train", tmp_path)
    with pytest.raises(ValueError, match="no split 'test'"):
        open_dataset("pascal_voc", "test", tmp_path)


def test_ade20k_ignores_other(tmp_path: Path) -> None:
    for part, values in (("training", (0, 1, 150)), ("validation", (0, 1, 151))):
        photo(tmp_path / f"ADEChallengeData2016/images/{part}/x.jpg")
        write(tmp_path / f"ADEChallengeData2016/annotations/{part}/x.png", ids(*values))
    label = open_dataset("ade20k", "train", tmp_path)[0][1]
    assert label.reshape(-1)[:3].tolist() == [255, 0, 149]
    result = check("ade", "--root", tmp_path)
    assert result.exit_code == 1
    assert "validation/x.png: labels [150] are outside 0..149" in result.output
    assert "expected ADEChallengeData2016/images" in check("ade", "--root", tmp_path / "no").output


def test_coco_is_painted_with_vocs_classes(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    right = [[20, 0, 60, 0, 60, 40, 20, 40]]
    for folder in ("train2017", "val2017"):
        for number in (1, 2):
            photo(tmp_path / folder / f"{number}.jpg", 40, 60)
        facts = {
            "images": [
                {"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2)
            ],
            "categories": [{"id": n, "name": str(n)} for n in (1, 17, 90)],
            "annotations": [
                {"id": i, "image_id": n, "category_id": c, "iscrowd": 0, "segmentation": outline}
                for i, (n, c, outline) in enumerate(
                    [(1, 17, square), (1, 1, right), (2, 90, square)], start=1
                )
            ],
        }  # fmt: skip
        path = tmp_path / f"annotations/instances_{folder}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts))
    opened = open_dataset("coco", "val", tmp_path)
    assert len(opened) == 1, "a toothbrush is no class of VOC"
    label = opened[0][1]
    assert (label[5, 10], label[5, 30], label[5, 50]) == (8, 8, 15), "the first one keeps a pixel"
    kept = json.loads((tmp_path / "annotations/voc21_val2017.json").read_text())
    assert kept["ids"] == [1]
    assert len(open_dataset("coco", "val", tmp_path)) == 1
    assert "2 pairs, no problems" in check("coco", "--root", tmp_path).output


def write_mhp(root: Path, names: list[str], ending: str) -> None:
    for name in names:
        write(root / f"images/{name}.jpg", np.full((10, 14), 90, np.uint8))
        # Written in the wrong order: the persons' numbers decide.
        write(root / f"annotations/{name}_02_02.png", ids(4, 4, 0, height=10, width=14))
        write(root / f"annotations/{name}_02_01.png", ids(0, 18, 2, height=10, width=14))
    (root / "train_list.txt").write_bytes(ending.join(f"{n}.jpg" for n in names).encode())


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_mhp_keeps_every_photo_and_merges_persons_in_order(tmp_path: Path, ending: str) -> None:
    names = [f"{n:04}" for n in (4, 1, 3, 2)]
    write_mhp(tmp_path, names, ending)
    splits = [stems("mhp", split, tmp_path) for split in ("train", "val")]
    assert splits == [names[:3], names[3:]], "no photo is lost, the last line's neither"
    image, label = MHPv1(tmp_path, "val", short_edge=None)[0]
    assert image.shape == (10, 14, 3)
    assert len(set(image[2, 2].tolist())) == 1, "gray"
    assert label.reshape(-1)[:3].tolist() == [4, 18, 2]
    image, label = open_dataset("mhpv1", "train", tmp_path)[0]
    assert image.shape == (768, 1072, 3)
    assert sorted(set(label.reshape(-1).tolist())) == [0, 2, 4, 18]
    assert "4 pairs, no problems" in check("mhpv1", "--root", tmp_path).output


def test_mhp_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert "expected images/NNNN.jpg" in check("mhp", "--root", tmp_path).output
    write_mhp(tmp_path, ["0001", "0002"], "\n")
    (tmp_path / "annotations/0001_02_01.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0001\.jpg: 1 of 2 masks 0001_\*\.png"):
        open_dataset("mhp", "train", tmp_path)


def test_the_last_quarter_is_validated_and_none_is_lost(tmp_path: Path) -> None:
    """A tenth of the published 4000; GluonCV's slices lose the first that is validated."""
    names = [f"{n:04}" for n in range(400)]
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    for name in names:
        (tmp_path / f"images/{name}.jpg").touch()
        (tmp_path / f"annotations/{name}_01_01.png").touch()
    (tmp_path / "train_list.txt").write_text("\n".join(f"{n}.jpg" for n in names))
    train, val = (stems("mhp", split, tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (300, 100)
    assert train + val == names


def test_a_photo_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Some published photos end early; GluonCV reads them too."""
    write_mhp(tmp_path, ["0001", "0002"], "\n")
    path = tmp_path / "images/0001.jpg"
    path.write_bytes(path.read_bytes()[:-4])
    assert MHPv1(tmp_path, "train", short_edge=None)[0][0].shape == (10, 14, 3)


@pytest.mark.skipif(not MHP_SAMPLE.is_dir(), reason="the MHP sample is not on this machine")
def test_the_published_mhp_photo_is_read() -> None:
    opened = open_dataset("mhpv1", "train", MHP_SAMPLE)
    image, label = opened[0]
    assert image.shape == (768, 1080, 3)
    assert set(np.unique(label).tolist()) <= set(range(19))
    assert MHPv1(MHP_SAMPLE, short_edge=None)[0][1].shape == (710, 1000)
    assert {2, 4, 11} <= set(np.unique(label).tolist())


def test_a_mask_in_true_colours_is_refused(tmp_path: Path) -> None:
    voc = write_voc(tmp_path, {"train": ["t1"], "val": ["v1"]})
    photo(voc / "SegmentationClass/t1.png")
    result = check("voc", "--root", tmp_path)
    assert result.exit_code == 1
    assert "t1.png: a PNG of mode RGB; masks are indexed or 8-bit gray" in result.output


def test_default_folders_are_gluoncvs() -> None:
    assert default_root("pascal_aug").parts[-3:] == (".mxnet", "datasets", "voc")
    assert default_root("mhp").name == "mhp"
    assert default_root("cityscapes").name == "citys"


def write_all(root: Path) -> dict[str, Path]:
    """A training and a validation pair of every dataset with mask files: by name, one mask."""
    for split in ("train", "val"):
        write_citys(root / "citys", split, "labelIds", (7, 8))
    voc = write_voc(root / "voc", {"train": ["t1"], "val": ["v1"]})
    photo(voc / "JPEGImages/x1.jpg")
    write(voc / "SegmentationClassAug/x1.png", ids(1))
    for split in ("training", "validation"):
        photo(root / f"ade/images/{split}/a.jpg")
        write(root / f"ade/annotations/{split}/a.png", ids(150))
    for split in ("train", "val"):
        photo(root / f"camvid/{split}/a.png")
        write(root / f"camvid/{split}annot/a.png", ids(10, 11))
    for number in range(1, 5):
        photo(root / f"mhp/images/{number:04}.jpg")
        write(root / f"mhp/annotations/{number:04}_01_01.png", ids(18))
    (root / "mhp/train_list.txt").write_text("".join(f"{n:04}.jpg\n" for n in range(1, 5)))
    (root / "mhp/test_list.txt").write_text("0001.jpg\n")
    return {
        "citys": root / "citys/gtFine/train/atown/a_000000_gtFine_labelIds.png",
        "pascal_voc": voc / "SegmentationClass/v1.png",
        "pascal_aug": voc / "SegmentationClassAug/x1.png",
        "ade20k": root / "ade/annotations/training/a.png",
        "camvid": root / "camvid/trainannot/a.png",
        "mhpv1": root / "mhp/annotations/0001_01_01.png",
    }


OF_MASKS = ("citys", "pascal_voc", "pascal_aug", "ade20k", "camvid", "mhpv1")


def test_every_dataset_is_checked_below() -> None:
    assert {*OF_MASKS, "coco"} == set(IN_FOLDERS)


@pytest.mark.parametrize("name", OF_MASKS)
def test_the_check_names_wrong_labels_and_sizes(tmp_path: Path, name: str) -> None:
    mask = write_all(tmp_path)[name]
    # The folder that holds it, as --root names it.
    root = tmp_path / Path(str(mask.relative_to(tmp_path)).split("/")[0])
    result = check(name, "--root", root)
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output
    for spoilt in (ids(200), ids(1, height=7)):
        write(mask, spoilt)
        result = check(name, "--root", root)
        assert result.exit_code == 1, result.output
        # MHP's labels are those of all persons of a photo.
        assert any(part in result.output.replace("\n", "") for part in (mask.name, "0001.jpg"))
    if name == "pascal_aug":
        # The masks themselves say which photos are added.
        return
    mask.unlink()
    result = check(name, "--root", root)
    assert result.exit_code == 1
    assert mask.stem[:4] in result.output
