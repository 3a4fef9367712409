"""Repositories as people leave them: nothing in a folder stops the start of the other models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import onnx
import pytest
import typer
from onnx import helper
from typer.testing import CliRunner

from serving.commands.models import models
from serving.errors import InvalidModel
from serving.models.embedded import open_onnx_engine
from serving.models.loader import check_graph
from serving.models.repository import ModelFolder, parse_version_folder, read_model
from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from tests.support.contract_graph import make_graph

PHOTO = encode(bands(20, 30))
Entry = dict[str, str]


@contextmanager
def started(repository: Path, **settings: object) -> Iterator[tuple[Server, httpx.Client]]:
    chosen = free_ports(repository).model_copy(update=settings)
    with (
        ServerThread(chosen, serve_fake(FakeEngine(MODEL_SIZE))) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}") as http,
    ):
        yield server, http


def index_of(http: httpx.Client) -> dict[tuple[str, str], Entry]:
    entries = http.post("/v2/repository/index").json()
    return {(entry["name"], entry.get("version", "")): entry for entry in entries}


def add_version(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "model.onnx").touch()


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", 1), ("10", 10), ("999999999", 999999999), ("0", None), ("01", None), ("-1", None),
        ("+1", None), ("1.0", None), ("\u00b2", None), ("\u0661", None), ("1_0", None),
        ("1000000000", None), ("1" * 5000, None), ("1\n", None), (" 1", None), ("", None),
    ],
)  # fmt: skip
def test_versions_are_ascii_digits(name: str, version: int | None) -> None:
    assert parse_version_folder(name) == version


ODD_VERSIONS = ("\u00b2", "\u0661", "01", "-1", "1.0", "0", "1e3", "9" * 20)


def test_odd_version_folders_are_named_and_not_served(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ODD_VERSIONS:
        add_version(repository / "bands", name)
    (repository / "bands" / "2").mkdir()
    with started(repository, strict=True) as (_, http):
        assert http.post("/v2/models/bands/segment", content=PHOTO).status_code == 200
        assert http.get("/v2/models/bands").json()["versions"] == ["1"]
        index = index_of(http)
    assert index["bands", "1"]["state"] == "READY"
    for name in ODD_VERSIONS:
        assert index["bands", name]["state"] == "UNAVAILABLE"
        assert "ASCII digits" in index["bands", name]["reason"]
        assert f"bands/{name} is not a version folder" in caplog.text
    assert "holds no model.onnx" in index["bands", "2"]["reason"]


def test_only_odd_version_folders_are_named_as_the_reason(repository: Path) -> None:
    folder = write_model(repository, "other")
    (folder / "1").rename(folder / "01")
    with pytest.raises(InvalidModel, match=r"other/01 is not a version folder"):
        read_model(folder)


def spoil(folder: Path, how: str) -> None:
    config, labels = folder / "config.pbtxt", folder / "labels.txt"
    text = config.read_text()
    if how == "folder":
        config.unlink()
        config.mkdir()
    elif how == "no config":
        config.unlink()
    elif how == "loop":
        config.unlink()
        config.symlink_to(config)
    elif how == "dangling":
        config.unlink()
        config.symlink_to(folder / "nowhere")
    elif how == "pipe":
        config.unlink()
        os.mkfifo(config)
    elif how == "device":
        config.unlink()
        config.symlink_to("/dev/zero")
    elif how == "huge":
        config.write_text(text + "#" * (5 << 20))
    elif how == "bytes":
        config.write_bytes(bytes(range(256)))
    elif how == "labels folder":
        labels.unlink()
        labels.mkdir()
    elif how == "labels loop":
        labels.unlink()
        labels.symlink_to(labels)
    elif how == "graph elsewhere":
        config.write_text(text + 'default_model_filename: "../../model.onnx"')
    elif how == "whole folder":
        os.rename(folder, folder.with_name("elsewhere"))
        folder.symlink_to(folder)
    else:
        config.write_text(text + how)


SPOILT = {
    "folder": "config.pbtxt.*folder",
    "no config": "has no config.pbtxt",
    "loop": "symbolic links",
    "dangling": "has no config.pbtxt",
    "pipe": "not a regular file",
    "device": "not a regular file",
    "huge": "longer than",
    "bytes": "not UTF-8",
    "labels folder": "labels.txt.*folder",
    "labels loop": "symbolic links",
    "graph elsewhere": "default_model_filename",
    "whole folder": "symbolic links",
    "instance_group { count: 2000000000 }": "instance_group.*1 to 256",
    "instance_group { count: -3 }": "instance_group.*1 to 256",
    "version_policy { specific { } }": "names no version",
    'parameters { key: "ignore_label" value { string_value: "300" } }': "ignore_label.*0 to 255",
    'parameters { key: "ignore_label" value { string_value: "\u0661" } }': "ignore_label",
    f'parameters {{ key: "ignore_label" value {{ string_value: "{"9" * 5000}" }} }}': "ignore_lab",
    'parameters { key: "classes" value { string_value: "{}" } }': "JSON array",
    f'parameters {{ key: "classes" value {{ string_value: "{"[" * 100000}" }} }}': "parameters",
    'parameters { key: "intra_op_thread_count" value { string_value: "\u0661" } }': "threads",
    f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{"9" * 5000}" }} }}':
        "threads",
    "model_warmup { batch_size: 4000000000 }": "model_warmup",
}  # fmt: skip


@pytest.mark.parametrize(("how", "why"), SPOILT.items(), ids=lambda text: text[:60])
def test_a_spoilt_model_is_named_and_stops_no_other(repository: Path, how: str, why: str) -> None:
    spoil(write_model(repository, "spoilt"), how)
    with started(repository) as (server, http):
        assert http.get("/v2/health/ready").status_code == 200
        assert http.post("/v2/models/bands/segment", content=PHOTO).status_code == 200
        entries = [e for (name, _), e in index_of(http).items() if name == "spoilt"]
        assert [entry["state"] for entry in entries] == ["UNAVAILABLE"]
        assert httpx.codes.is_client_error(http.get("/v2/models/spoilt").status_code)
    with pytest.raises(InvalidModel, match=why):
        raise InvalidModel(server.registry.failures["spoilt"])


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines"])
def test_a_name_that_cannot_be_shown_is_escaped(repository: Path, name: bytes) -> None:
    os.rename(os.fsencode(write_model(repository, "odd")), os.fsencode(repository) + b"/" + name)
    with started(repository) as (_, http):
        states = {name: entry["state"] for (name, _), entry in index_of(http).items()}
        assert httpx.get(f"{http.base_url}/metrics").status_code == 200
    shown = name.decode("utf-8", "backslashreplace")
    assert states == {"bands": "READY", shown: "UNAVAILABLE"}


def test_what_a_check_did_not_foresee_stops_no_other(repository: Path) -> None:
    write_model(repository, "other")

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        if folder.name == "other":
            raise KeyError("nobody thought of that")
        return FakeEngine(MODEL_SIZE)

    with ServerThread(free_ports(repository), open_engine) as server:
        assert "nobody thought of that" in server.registry.failures["other"]


def test_the_models_that_loaded_before_one_that_does_not_are_freed(repository: Path) -> None:
    add_version(repository / "bands", "2")
    config = repository / "bands" / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { all { } }")
    write_model(repository, "good")
    engines: dict[tuple[str, int], FakeEngine] = {}

    def open_engine(folder: ModelFolder, version: int, settings: Settings) -> FakeEngine:
        if version == 2:
            raise InvalidModel("version 2 is broken")
        engines[folder.name, version] = FakeEngine(MODEL_SIZE)
        return engines[folder.name, version]

    with ServerThread(free_ports(repository), open_engine) as server:
        assert engines["bands", 1].closed
        assert not engines["good", 1].closed
        assert [model.name for model in server.registry.models()] == ["good"]


def test_the_command_names_them(repository: Path) -> None:
    folder = repository / "bands"
    onnx.save(make_graph(), folder / "1" / "model.onnx")
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(
        config.replace("32, 48", "4, 6").replace("dims: [ 8,", "dims: [ 3,")
    )
    (folder / "labels.txt").write_text("a\nb\nc\n")
    add_version(folder, "01")
    spoil(write_model(repository, "spoilt"), "no config")
    (repository / "scripts").mkdir()
    app = typer.Typer()
    app.command()(models)
    shown = CliRunner().invoke(app, ["--repository", str(repository)], terminal_width=200)
    assert shown.exit_code == 1
    assert "bands/01 is not a version folder" in shown.output
    assert "spoilt is not served" in shown.output
    assert "has no config.pbtxt" in shown.output
    assert "scripts' is not a model" in shown.output


def write_contract_model(repository: Path, changes: dict[str, str], **graph: object) -> ModelFolder:
    """A model whose graph is opened: image [4,6,3], three classes."""
    folder = write_model(repository, "real")
    text = (folder / "config.pbtxt").read_text()
    text = text.replace("32, 48", "4, 6").replace("dims: [ 8,", "dims: [ 3,")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (folder / "config.pbtxt").write_text(text)
    (folder / "labels.txt").write_text("a\nb\nc\n")
    onnx.save(make_graph(**graph), folder / "1" / "model.onnx")
    return read_model(folder)


CONTRADICTIONS = [
    ({"dims: [ 4, 6, 3 ]": "dims: [ 4, 8, 3 ]"}, r"image has dims \[4, 8, 3\].*\[4, 6, 3\]"),
    ({"dims: [ 3, 4, 6 ]": "dims: [ 3, 2, 3 ]"}, r"logits has dims \[3, 2, 3\].*\[3, 4, 6\]"),
    ({"dims: [ 3, 4, 6 ]": "dims: [ 4, 4, 6 ]"}, r"logits has dims \[4, 4, 6\]"),
    ({'"mask" data_type: TYPE_UINT8 dims: [ 4, 6 ]': '"mask" data_type: TYPE_UINT8 dims: [ 6, 4 ]'},
     r"mask has dims \[6, 4\]"),
    ({"dims: [ 4, 6, 3 ]": "dims: [ -1, -1, 3 ]"}, "image has dims.*static"),
    ({"dims: [ 4, 6, 3 ]": "dims: [ 3, 4, 6 ] format: FORMAT_NCHW"}, "NCHW"),
    ({"dims: [ 4, 6, 3 ]": "dims: [ 72 ]"}, r"image has dims \[72\].*\[H, W, 3\]"),
    ({"dims: [ 4, 6, 3 ]": "dims: [ 4, 6, 3 ] reshape { shape: [ 72 ] }"}, "reshape"),
    ({"max_batch_size: 4": "max_batch_size: 0"}, r"max_batch_size is 0.*\[1, 4, 6, 3\]"),
    ({"max_batch_size: 4": "max_batch_size: -1"}, "max_batch_size is -1"),
    ({"max_batch_size: 4": "max_batch_size: 2000000000"}, "max_batch_size is 2000000000"),
    ({"TYPE_FP32": "TYPE_FP16"}, "TYPE_FP16"),
    ({'"logits"': '"scores"'}, "scores"),
    ({'"confidence"': '"mask"'}, "mask is named twice"),
    ({'"image"': '"data"'}, "one input"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_graph_is_refused(
    tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    def load() -> None:
        folder = write_contract_model(tmp_path, changes)
        check_graph(folder, 1, open_onnx_engine(folder, 1, Settings()).spec)

    with pytest.raises(InvalidModel, match=why):
        load()


def write_static(repository: Path, batch: int, **changes: str) -> ModelFolder:
    folder = write_contract_model(repository, changes)
    graph = make_graph()
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(graph, folder.graph(1))
    return folder


def test_a_batch_that_the_graph_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"batch of exactly 1.*max_batch_size is 4"):
        open_onnx_engine(write_static(tmp_path / "one", 1), 1, Settings())
    with pytest.raises(InvalidModel, match="batch of exactly 8"):
        open_onnx_engine(write_static(tmp_path / "eight", 8), 1, Settings())


def test_datatypes_of_the_graph_are_the_contracts(tmp_path: Path) -> None:
    folder = write_contract_model(tmp_path, {})
    graph = make_graph(outputs=("mask",))
    graph.graph.node[-1].attribute[0].i = onnx.TensorProto.INT64
    graph.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ["N", 4, 6])
    )
    onnx.save(graph, folder.graph(1))
    with pytest.raises(InvalidModel, match="mask is INT64; the contract is UINT8"):
        open_onnx_engine(folder, 1, Settings())


def test_metadata_is_true_without_a_batch_and_without_logits(tmp_path: Path) -> None:
    """max_batch_size 0 with whole shapes; outputs that the graph does not give are not shown."""
    whole = {
        "max_batch_size: 4": "max_batch_size: 0",
        "dims: [ 4, 6, 3 ]": "dims: [ 1, 4, 6, 3 ]",
        "dims: [ 4, 6 ]": "dims: [ 1, 4, 6 ]",
        "dims: [ 3, 4, 6 ]": "dims: [ 1, 3, 4, 6 ]",
        "dynamic_batching { }": "",
    }
    write_contract_model(tmp_path, whole, outputs=("mask",))
    with (
        ServerThread(free_ports(tmp_path), open_onnx_engine) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.ports.http}/v2/models/real/") as http,
    ):
        told = httpx.get(str(http.base_url).rstrip("/")).json()
        assert [tensor["name"] for tensor in told["outputs"]] == ["mask"]
        assert [tensor["name"] for tensor in http.get("config").json()["output"]] == ["mask"]
        (image,), (mask,) = told["inputs"], told["outputs"]
        assert image == {"name": "image", "datatype": "UINT8", "shape": [1, 4, 6, 3]}
        data = {"inputs": [{**image, "data": [7] * 72}]}
        (found,) = http.post("infer", json=data).json()["outputs"]
        assert {key: found[key] for key in mask} == mask
        image["shape"][0] = 2
        refused = http.post("infer", json={"inputs": [{**image, "data": [7] * 144}]})
        assert refused.status_code == 400
