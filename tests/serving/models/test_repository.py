"""A repository folder, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.batching.queue import Scheduling
from serving.errors import InvalidModel
from serving.models.repository import list_models, read_model
from tests.support.band_model import CLASSES, write_model


def test_a_good_folder_is_read(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path))
    assert model.name == "bands"
    assert model.versions == (1,)
    assert model.labels.names == CLASSES
    assert model.labels.ignore_label == 255
    assert (model.max_batch_size, model.instances, model.scheduling) == (4, 1, Scheduling())
    assert model.graph(1) == tmp_path / "bands" / "1" / "model.onnx"


def test_models_are_listed_by_name_and_other_folders_ignored(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        write_model(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    assert [path.name for path in list_models(tmp_path)] == ["ant", "zebra"]
    with pytest.raises(InvalidModel, match="--repository"):
        list_models(tmp_path / "elsewhere")


def test_geometry_and_family_are_parameters(tmp_path: Path) -> None:
    plain = read_model(write_model(tmp_path))
    assert (plain.resize, plain.tile_overlap, plain.family) == ("stretch", 0.25, "bands")
    folder = write_model(tmp_path, "tiled", resize="tile", tile_overlap="0.4", family="f")
    tiled = read_model(folder)
    assert (tiled.resize, tiled.tile_overlap, tiled.family) == ("tile", 0.4, "f")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("resize", "crop", "known: stretch, letterbox, tile"),
        ("tile_overlap", "0.6", "0 to 0.5"),
        ("tile_overlap", "many", "'many'"),
    ],
)
def test_other_geometry_is_refused(tmp_path: Path, name: str, value: str, text: str) -> None:
    folder = write_model(tmp_path, **{name: value})
    with pytest.raises(InvalidModel, match=f"{name}.*{text}"):
        read_model(folder)


def test_batching_and_instances_mean_what_they_mean_in_triton(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    config = folder / "config.pbtxt"
    text = config.read_text().replace(
        "dynamic_batching { }", "dynamic_batching { max_queue_delay_microseconds: 1500 }"
    )
    config.write_text(text + "instance_group { kind: KIND_CPU count: 2 }\n")
    model = read_model(folder)
    assert (model.scheduling.delay_s, model.instances) == (0.0015, 2)


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (2, 10)),
        ("version_policy { all { } }", (1, 2, 10)),
        ("version_policy { specific { versions: [1, 10] } }", (1, 10)),
    ],
)
def test_version_policy_chooses(tmp_path: Path, policy: str, versions: tuple[int, ...]) -> None:
    folder = write_model(tmp_path)
    for version in (2, 10):
        (folder / str(version)).mkdir()
        (folder / str(version) / "model.onnx").touch()
    with (folder / "config.pbtxt").open("a") as file:
        file.write(policy)
    assert read_model(folder).versions == versions


@pytest.mark.parametrize(
    ("addition", "text"),
    [
        ("no_such_field: 1", "no_such_field"),
        ('name: "other"', "the folder is 'bands'"),
        ("sequence_batching { }", "sequence_batching"),
        ("instance_group { kind: KIND_MODEL }", "KIND_CPU or KIND_GPU"),
        ("instance_group { passive: true }", r"instance_group\.passive"),
        ('model_repository_agents { agents { name: "x" } }', "model_repository_agents"),
        ("version_policy { specific { versions: [7] } }", "7"),
        ('parameters { key: "resize" value { string_value: "crop" } }', "stretch"),
        ('parameters { key: "classes" value { string_value: "[\\"a\\"]" } }', "differ"),
        ('parameters { key: "palette" value { string_value: "#000000" } }', "8 classes"),
        ('parameters { key: "palette" value { string_value: "red" } }', "palette"),
        ('input { name: "mask2" data_type: TYPE_UINT8 dims: 1 }', "one input"),
        ('output { name: "mask" data_type: TYPE_INT64 dims: 1 }', "TYPE_INT64"),
    ],
)
def test_what_is_not_served_is_refused_by_name(tmp_path: Path, addition: str, text: str) -> None:
    folder = write_model(tmp_path)
    with (folder / "config.pbtxt").open("a") as file:
        file.write(addition)
    with pytest.raises(InvalidModel, match=text):
        read_model(folder)


def test_other_platforms_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("onnxruntime_onnx", "tensorrt_plan"))
    with pytest.raises(InvalidModel, match="tensorrt_plan"):
        read_model(folder)


def test_a_folder_without_versions_or_labels_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "labels.txt").unlink()
    with pytest.raises(InvalidModel, match=r"labels\.txt is missing"):
        read_model(folder)
    (folder / "labels.txt").write_text("\n".join(f"c{i}" for i in range(256)))
    with pytest.raises(InvalidModel, match="mask is TYPE_UINT8; expected TYPE_UINT16 for 256"):
        read_model(folder)
    (folder / "labels.txt").write_text("\n".join(f"c{i}" for i in range(65_536)))
    with pytest.raises(InvalidModel, match="65536 classes; a label map holds 1 to 65535"):
        read_model(folder)
    (folder / "1" / "model.onnx").unlink()
    with pytest.raises(InvalidModel, match=r"expected 1/model\.onnx"):
        read_model(folder)
