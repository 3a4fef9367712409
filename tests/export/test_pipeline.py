"""The export as one call from Python."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import export.symbols.shapes
from export.errors import ExportError, InvalidLabels, UnsupportedPrecision
from export.pipeline import ExportRequest, Target, Written, export_symbol
from export.precision.lower import PrecisionOptions
from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol, write_symbol
from export.symbols.params import write_params
from export.verify import mxnet_installed
from serving.models.repository import read_model

SIZE = (32, 64)


@pytest.fixture
def run_folder(tmp_path: Path, make_network, make_params) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    graph = make_network(*SIZE)
    write_symbol(graph, folder / "network-symbol.json")
    write_params(make_params(graph, *SIZE), folder / "best.params")
    return folder


def test_a_request_becomes_a_version(run_folder: Path, tmp_path: Path) -> None:
    target = Target(tmp_path / "models", name="net", family="nets", max_batch_size=2)
    request = ExportRequest(
        "tiny",
        params=run_folder / "best.params",
        size=(64, 48),
        check=False,
        target=target,
        pixels="unit",
    )
    written = export_symbol(request)
    assert written == Written(
        tmp_path / "models" / "net" / "1", "model.onnx", 5, (64, 48), "fp32", ("mask", "logits"),
        ("sees RGB mean 0,0,0 std 1,1,1 (unit): as the options say",
         "classes without names; name them with --dataset or --labels", "not compared with MXNet"),
    )  # fmt: skip
    model = read_model(tmp_path / "models" / "net")
    assert (model.family, model.max_batch_size) == ("nets", 2)
    session = onnxruntime.InferenceSession(str(written.folder / written.file))
    mask, logits = session.run(["mask", "logits"], {"image": np.zeros((3, 64, 48, 3), np.uint8)})
    assert mask.shape == (3, 64, 48)
    assert logits.shape == (3, 5, 32, 24)
    assert export_symbol(request).folder.name == "2"


def test_what_was_written_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    written = export_symbol(
        ExportRequest(symbol=run_folder / "network-symbol.json", check=False, heads=("mask",),
                      target=Target(tmp_path / "models"))
    )  # fmt: skip
    assert str(written) == (
        f"{tmp_path}/models/network/1/model.onnx: network version 1, 5 classes, 32x64, fp32, mask"
    )


def test_a_model_of_the_repository_in_another_precision(run_folder: Path, tmp_path: Path) -> None:
    target = Target(tmp_path / "models")
    export_symbol(ExportRequest("tiny", params=run_folder / "best.params", check=False,
                                pixels="unit", target=target))  # fmt: skip
    half = export_symbol(
        ExportRequest(existing="tiny", precision=PrecisionOptions("fp16"), target=target)
    )
    assert half.folder == tmp_path / "models" / "tiny_fp16" / "1"
    assert half.precision == "fp16"
    assert half.notes == ("not judged: no images were named",)


def test_no_family_unless_asked_for(run_folder: Path, tmp_path: Path) -> None:
    """Models of one name's beginning, network or dataset are not the same network."""
    target = Target(tmp_path / "models")
    export = partial(ExportRequest, params=run_folder / "best.params", check=False, pixels="unit")
    names = ("net", "icnet", "net-symbol", "net.v2")
    for name in names:
        export_symbol(export("icnet", target=replace(target, name=name)))
    families = {read_model(target.repository / name).family for name in names}
    assert families == set(names)
    # The same weights in another precision: the family that their model was given, or none.
    half = PrecisionOptions("fp16")
    export_symbol(ExportRequest(existing="net", precision=half, target=target))
    assert read_model(target.repository / "net_fp16").family == "net_fp16"
    # A next version without a family keeps it: people may have edited it.
    grouped = replace(target, name="net", family="nets")
    assert export_symbol(export("icnet", target=grouped)).folder.name == "2"
    assert export_symbol(export("icnet", target=replace(target, name="net"))).folder.name == "3"
    export_symbol(
        ExportRequest(existing="net", precision=half, target=replace(target, name="half"))
    )
    assert [read_model(target.repository / name).family for name in ("net", "half")] == ["nets"] * 2


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (ExportRequest("tiny", heads=("confidence",)), ExportError, "neither mask nor logits"),
        (ExportRequest(), ExportError, "name the network"),
        (ExportRequest("icnet", precision=PrecisionOptions("fp8")), UnsupportedPrecision, "fp8"),
        (ExportRequest("icnet", dataset="kitti"), InvalidLabels, "unknown dataset 'kitti'"),
        (ExportRequest(existing="a", size=(1, 1)), ExportError, "leave --size out"),
        (ExportRequest("icnet", std=(1, 1, 0)), ExportError, "above 0"),
    ],
)
def test_requests_that_fit_nothing_are_refused(
    request_: ExportRequest, error: type[ExportError], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        export_symbol(request_)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_the_normalisation_are_numbers(run_folder: Path, tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    written = export_symbol(
        ExportRequest("tiny", params=run_folder / "best.params", mean=mean, std=std, bgr=True,
                      check=False, target=Target(tmp_path / "models"))
    )  # fmt: skip
    config = read_model(written.folder.parent).config
    provenance = config.parameters["provenance"].string_value
    assert "sees BGR mean 0.1,0.2,0.3 std 0.4,0.5,0.6" in provenance


def test_nothing_is_printed_unless_asked(run_folder: Path, tmp_path: Path, capsys) -> None:
    export_symbol(
        ExportRequest("tiny", params=run_folder / "best.params", check=False, pixels="unit",
                      target=Target(tmp_path / "models"))
    )  # fmt: skip
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("file_format", ["onnx", "mxnet"])
def test_shapes_are_inferred_once_a_form_of_the_graph(
    file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The symbol at its size, its first output alone, and that cut at the logits."""
    seen: Counter[int] = Counter()
    kept = []
    propagate = export.symbols.shapes._propagate

    def count(graph, height, width):
        kept.append(graph)  # or another one gets its id
        seen[id(graph)] += 1
        return propagate(graph, height, width)

    monkeypatch.setattr(export.symbols.shapes, "_propagate", count)
    path = PUBLISHED / "icnet_resnet50_citys.json.gz"
    assert len(read_symbol(path).heads) > 1
    export_symbol(
        ExportRequest(symbol=path, size=(64, 96), check=mxnet_installed(), file_format=file_format,
                      target=Target(tmp_path))
    )  # fmt: skip
    assert set(seen.values()) == {1}
    assert len(seen) <= 3


def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/export.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith(
        "my_models/icnet/1/model.onnx: icnet version 1, 19 classes, 256x512, fp32"
    )
    assert read_model(tmp_path / "my_models" / "icnet").max_batch_size == 8
