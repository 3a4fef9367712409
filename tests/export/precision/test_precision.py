"""``--precision`` from the command line, and the gate in front of the repository."""

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from export import cli, pipeline
from export.errors import AccuracyLost, InvalidImages
from export.passes.build import build_model
from export.precision.gate import Comparison, Gate, Limits, Scores, pass_gate
from export.precision.images import (
    DatasetSplit,
    ImageFiles,
    Selection,
    calibration_source,
    find_images,
    validation_source,
)
from export.precision.served_graph import serve_graph
from export.symbols.graph import write_symbol
from export.symbols.params import write_params
from serving.engines.onnxruntime import OnnxEngine
from serving.models.repository import read_model
from tests.support.precision_model import scene, write_image, write_scenes

SIZE = (64, 96)
CLASSES = 11


@pytest.fixture
def network(make_network, make_params):
    graph = make_network(*SIZE, CLASSES)
    return graph, make_params(graph, *SIZE)


@pytest.fixture
def model(network):
    return build_model(*network, *SIZE)


@pytest.fixture
def export(tmp_path, network):
    """Exports the small network with further arguments, into tmp_path / "repository"."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_symbol(network[0], folder / "network-symbol.json")
    write_params(network[1], folder / "best.params")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)

    def call(*arguments):
        given = ["--model", "tiny", "--params", folder / "best.params", "--no-verify"]
        given += ["--pixels", "imagenet"]
        given += ["--repository", tmp_path / "repository"]
        return CliRunner().invoke(app, [*map(str, given), *map(str, arguments)])

    return call


@pytest.fixture
def photos(tmp_path):
    return write_scenes(tmp_path / "photos")


@pytest.fixture
def camvid(tmp_path, model):
    """CamVid's layout with the float32 network's own answers as the truth: its mIoU is 1."""
    root = tmp_path / "camvid"
    with serve_graph(model) as served:
        for split, seeds in (("train", range(6)), ("val", range(10, 14))):
            for seed in seeds:
                image = scene(seed)
                write_image(root / split / "images" / f"{seed}.png", image)
                write_image(root / split / "labels" / f"{seed}.png", served.labels(image))
    return root


def error(result):
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("precision", "least"), [("fp16", "95"), ("int8", "80")])
def test_exports_a_model_that_the_engine_serves(export, photos, tmp_path, precision, least):
    result = export("--precision", precision, "--calibration", photos, "--min-agreement", least)
    assert result.exit_code == 0, result.output
    assert f"tiny_{precision} version 1, 11 classes, 64x96, {precision}" in result.stdout
    assert "of the labels equal those of fp32; 2 images of photos, held out" in result.stderr
    read = read_model(tmp_path / "repository" / f"tiny_{precision}")
    parameters = {key: value.string_value for key, value in read.config.parameters.items()}
    assert "family" not in parameters
    assert "equal those of fp32" in parameters["accuracy"]
    assert f"64x96 {precision}" in parameters["provenance"]
    stored = {p.key: p.value for p in onnx.load(str(read.graph(1))).metadata_props}
    assert stored["accuracy"] == parameters["accuracy"]
    engine = OnnxEngine(read.graph(1), instances=1, threads=1, max_batch_size=2)
    assert engine.spec.precision == precision
    assert engine.run(np.stack([scene(0)[:64, :96]] * 2)).logits.shape[:2] == (2, CLASSES)


def test_a_dataset_calibrates_and_judges(export, camvid, tmp_path):
    given = ["--dataset", "camvid", "--root", camvid, "--precision", "int8"]
    result = export(*given, "--max-miou-drop", 100, "--calibration-images", 4)
    assert result.exit_code == 0, result.output
    parameters = read_model(tmp_path / "repository" / "tiny_int8").config.parameters
    assert "(fp32: mIoU 100.00 %" in parameters["accuracy"].string_value
    assert "4 images of camvid val" in parameters["accuracy"].string_value
    assert "calibrated on 4 images of camvid train" in parameters["provenance"].string_value


def test_fp32_is_scored_where_a_root_is_given(export, camvid, tmp_path):
    result = export("--dataset", "camvid", "--root", camvid, "--accuracy", "as published")
    assert result.exit_code == 0, result.output
    accuracy = read_model(tmp_path / "repository" / "tiny").config.parameters["accuracy"]
    assert accuracy.string_value.startswith("as published; mIoU 100.00 %, pixel accuracy 100.00 %")


def test_the_gate_refuses_and_leaves_the_repository(export, camvid, tmp_path):
    given = ["--dataset", "camvid", "--root", camvid, "--precision", "int8", "--name", "net"]
    assert export(*given, "--max-miou-drop", 100).exit_code == 0
    before = files(tmp_path / "repository")
    line = error(export(*given, "--max-miou-drop", 0))
    assert "points of mIoU are lost (100.00 % to " in line
    assert "--force" in line
    assert files(tmp_path / "repository") == before
    result = export(*given, "--max-miou-drop", 0, "--force")
    assert result.exit_code == 0, result.output
    assert "forced: " in result.stderr
    read = read_model(tmp_path / "repository" / "net")
    assert read.graph(2).is_file()
    assert "; forced: " in read.config.parameters["provenance"].string_value


def test_the_gate_judges_photos_without_labels(export, photos, tmp_path):
    line = error(export("--precision", "int8", "--calibration", photos, "--min-agreement", 100))
    assert "less than --min-agreement 100" in line
    assert not (tmp_path / "repository").exists()


def test_search_prints_its_tries(export, photos, tmp_path):
    result = export(
        "--precision", "int8", "--calibration", photos, "--min-agreement", 80, "--search"
    )
    assert result.exit_code == 0, result.output
    for word in ("int8 recipes", "entropy", "minmax", "→", "passes"):
        assert word in result.stderr
    provenance = read_model(tmp_path / "repository" / "tiny_int8").config.parameters["provenance"]
    assert "of 11 recipes: " in provenance.string_value


def test_fp16_without_images_is_not_judged(export, tmp_path):
    result = export("--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert "not judged: no images were named" in result.stderr
    assert "accuracy" not in read_model(tmp_path / "repository" / "tiny_fp16").config.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "expected one of fp32, fp16, int8"),
        (["--precision", "fp16", "--search"], "add --precision int8"),
        (["--precision", "int8"], "--calibration DIR"),
        (["--precision", "int8", "--dataset", "citys"], "--calibration DIR"),
        (["--precision", "int8", "--dataset", "camvid", "--root", "absent"], "no CamVid split"),
        (["--precision", "int8", "--calibration", "absent"], "absent holds no images"),
        (["--precision", "fp16", "--dataset", "camvid", "--root", "absent"], "--root"),
    ],
)
def test_refuses_with_a_remedy_before_the_work(export, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pipeline, "build_model", None)
    assert message in error(export(*arguments))
    assert not (tmp_path / "repository").exists()


def test_a_damaged_photo_is_named(export, photos):
    (photos / "00.png").write_bytes(b"no image")
    assert "00.png" in error(export("--precision", "int8", "--calibration", photos))


def test_logits_that_overflow_are_refused(export, network, tmp_path, photos):
    network[1].arguments["large_bn_gamma"][:] = 1e7
    write_params(network[1], tmp_path / "run" / "best.params")
    line = error(export("--precision", "fp16", "--calibration", photos))
    assert "overflow" in line


def test_a_folder_is_split_into_calibration_and_judging(photos):
    paths = find_images(photos)
    calibrating = calibration_source(photos, None, None)
    judging = validation_source(photos, None, None)
    assert len(calibrating) == 8
    assert judging.paths == (paths[4], paths[9])
    assert not set(judging.paths) & set(calibrating.paths)


def test_few_photos_do_both(tmp_path):
    folder = write_scenes(tmp_path / "few", 3)
    assert len(calibration_source(folder, None, None)) == 3
    assert len(validation_source(folder, None, None)) == 3


def test_a_selection_is_spread_evenly(photos):
    source = ImageFiles("photos", find_images(photos))
    picked = Selection(source, 4)
    assert len(picked) == 4
    np.testing.assert_array_equal(picked[0][0], source[0][0])
    np.testing.assert_array_equal(picked[3][0], source[9][0])
    assert len(Selection(source, 99)) == len(Selection(source, None)) == 10


def test_labels_of_another_dataset_are_refused(camvid, make_network, make_params):
    graph = make_network(*SIZE, 2)
    small = build_model(graph, make_params(graph, *SIZE), *SIZE)
    with pytest.raises(InvalidImages, match="camvid val"):
        Gate(small, DatasetSplit("camvid", "val", camvid), classes=2)


def test_the_same_graph_loses_nothing(model, photos):
    gate = Gate(model, ImageFiles("photos", find_images(photos)), CLASSES)
    found = gate.compare(model)
    assert len(gate) == 10
    assert (found.agreement, found.drop, found.loss) == (1.0, None, 0.0)


def test_limits():
    def found(before, after, agreement=0.9):
        return Comparison(agreement, Scores(1, before, 1.0), Scores(1, after, 1.0))

    limits = Limits(max_miou_drop=0.5, min_agreement=98)
    assert limits.excess(found(0.5, 0.496)) is None
    assert limits.excess(found(0.5, 0.52)) is None
    assert "0.60 points" in limits.excess(found(0.5, 0.494))
    assert limits.excess(found(None, None, 0.99)) is None
    assert "97.00 %" in limits.excess(found(None, None, 0.97))
    assert pass_gate(found(0.5, 0.4), limits, force=True)
    with pytest.raises(AccuracyLost, match="--search"):
        pass_gate(found(0.5, 0.4), limits, force=False)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_mask_alone_is_enough(export, photos, tmp_path, precision):
    given = ["--precision", precision, "--calibration", photos, "--min-agreement", 80]
    result = export(*given, "--head", "mask")
    assert result.exit_code == 0, result.output
    graph = read_model(tmp_path / "repository" / f"tiny_{precision}").graph(1)
    engine = OnnxEngine(graph, instances=1, threads=1, max_batch_size=1)
    assert engine.spec.precision == precision
    assert engine.run(scene(0)[None, :64, :96]).mask.shape == (1, *SIZE)


def test_a_dataset_without_validation_split_cannot_judge(export, camvid, tmp_path, monkeypatch):
    home = tmp_path / ".mxnet" / "datasets" / "camvid"
    home.parent.mkdir(parents=True)
    camvid.rename(home)
    (home / "val").rename(home / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no validation split" in error(export("--dataset", "camvid", "--precision", "int8"))
