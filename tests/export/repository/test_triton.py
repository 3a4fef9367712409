import os

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.datasets import generic_labels
from export.errors import ExportError, IncompatibleModel
from export.passes.build import build_model
from export.repository import triton
from export.repository.triton import ModelFacts, write_model
from serving.models.repository import read_model
from serving.palette import LabelSet

SIZE = (32, 64)


@pytest.fixture
def built(make_network, make_params):
    graph = make_network(*SIZE)
    return build_model(graph, make_params(graph, *SIZE), *SIZE)


def facts(**changes):
    values = {"labels": generic_labels(5), "family": "icnet", "dataset": None,
              "accuracy": None, "provenance": "a test", **changes}  # fmt: skip
    return ModelFacts(**values)


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), ModelConfig())


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_writes_what_the_server_reads(tmp_path, built):
    labels = LabelSet(("road, paved", 'a "b"', "Gehweg ü", "d", "e"), ((1, 2, 3),) * 5)
    folder = write_model(tmp_path, "icnet", built, facts(labels=labels, accuracy="40 %"), None)
    assert folder == tmp_path / "icnet" / "1"
    assert files(tmp_path) == ["icnet", "icnet/1", "icnet/1/model.onnx", "icnet/config.pbtxt",
                               "icnet/labels.txt"]  # fmt: skip
    model = read_model(tmp_path / "icnet")
    assert model.labels == labels
    assert (model.family, model.resize, model.max_batch_size) == ("icnet", "stretch", 4)
    assert model.versions == (1,)
    config = config_of(tmp_path / "icnet")
    assert config.platform == "onnxruntime_onnx"
    assert config.HasField("dynamic_batching")
    assert config.parameters["accuracy"].string_value == "40 %"
    assert config.parameters["palette"].string_value.startswith("#010203 #010203")
    assert "dataset" not in config.parameters
    tensors = {t.name: (t.data_type, list(t.dims)) for t in (*config.input, *config.output)}
    from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_UINT8

    assert tensors == {
        "image": (TYPE_UINT8, [32, 64, 3]),
        "mask": (TYPE_UINT8, [32, 64]),
        "logits": (TYPE_FP32, [5, 16, 32]),
    }
    onnx.checker.check_model(onnx.load(str(folder / "model.onnx")))


def test_without_batching_the_batch_is_a_dimension(tmp_path, built):
    write_model(tmp_path, "icnet", built, facts(), 0)
    config = config_of(tmp_path / "icnet")
    assert list(config.input[0].dims) == [-1, 32, 64, 3]
    assert not config.HasField("dynamic_batching")


def test_the_next_version_keeps_what_people_edited(tmp_path, built):
    write_model(tmp_path, "icnet", built, facts(accuracy="40 %", dataset="camvid"), None)
    file = tmp_path / "icnet" / "config.pbtxt"
    file.write_text(file.read_text() + "instance_group { count: 2 kind: KIND_CPU }\n")
    folder = write_model(tmp_path, "icnet", built, facts(provenance="again"), 8)
    assert folder.name == "2"
    config = config_of(tmp_path / "icnet")
    assert config.instance_group[0].count == 2
    assert config.max_batch_size == 8
    assert config.parameters["provenance"].string_value == "again"
    assert "accuracy" not in config.parameters
    assert read_model(tmp_path / "icnet").versions[-1] == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": LabelSet(tuple("abcde"), generic_labels(5).colors)}, "classes"),
        ({"labels": LabelSet(generic_labels(5).names, ((0, 0, 0),) * 5)}, "palette"),
    ],
)
def test_other_labels_are_no_next_version(tmp_path, built, change, what):
    write_model(tmp_path, "icnet", built, facts(), None)
    before = files(tmp_path)
    with pytest.raises(IncompatibleModel, match=f"{what}.*--name"):
        write_model(tmp_path, "icnet", built, facts(**change), None)
    assert files(tmp_path) == before


def test_another_size_is_no_next_version(tmp_path, built, make_network, make_params):
    write_model(tmp_path, "icnet", built, facts(), None)
    graph = make_network(64, 64)
    other = build_model(graph, make_params(graph, 64, 64), 64, 64)
    with pytest.raises(IncompatibleModel, match="inputs, outputs"):
        write_model(tmp_path, "icnet", other, facts(), None)


def test_other_files_under_the_name_are_left_alone(tmp_path, built):
    (tmp_path / "icnet").mkdir()
    (tmp_path / "icnet" / "notes.txt").write_text("mine")
    with pytest.raises(IncompatibleModel, match="--name"):
        write_model(tmp_path, "icnet", built, facts(), None)
    assert files(tmp_path) == ["icnet", "icnet/notes.txt"]


@pytest.mark.parametrize(
    ("existing", "broken"),
    [(False, "rename"), (False, "fsync"), (True, "rename"), (True, "fsync"), (True, "replace")],
)
def test_an_interrupted_export_leaves_the_repository(
    tmp_path, built, monkeypatch, existing, broken
):
    if existing:
        write_model(tmp_path, "icnet", built, facts(), None)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path, "icnet", built, facts(provenance="new"), None)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == (["icnet"] if existing else [])
    assert not (tmp_path / "icnet" / "2").exists()


@pytest.mark.parametrize("name", ["../icnet", "", ".hidden", "a/b", "a b"])
def test_names_that_leave_the_repository_are_refused(tmp_path, built, name):
    with pytest.raises(ExportError, match="not a valid model name"):
        triton.write_model(tmp_path / "r", name, built, facts(), None)
    assert not (tmp_path / "r").exists()
