import json

import onnx
import pytest
import typer
from typer.testing import CliRunner

from export import cli, pipeline
from export.symbols.graph import write_symbol
from export.symbols.params import write_params
from serving.models.repository import read_model

SIZE = (32, 64)


@pytest.fixture
def run(tmp_path):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)
    runner = CliRunner()

    def call(*arguments):
        repository = ["--repository", str(tmp_path / "repository")]
        return runner.invoke(app, [*map(str, arguments), *repository])

    return call


@pytest.fixture
def run_folder(tmp_path, make_network, make_params):
    """What a training run leaves: the symbol at its crop size, and the best parameters."""
    folder = tmp_path / "run"
    folder.mkdir()
    graph = make_network(*SIZE)
    write_symbol(graph, folder / "network-symbol.json")
    write_params(make_params(graph, *SIZE), folder / "best.params")
    return folder


def error(result):
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_exports_a_run_folder_at_another_size(run, run_folder, tmp_path):
    result = run("--model", "tiny", "--params", run_folder / "best.params", "--size", "64x48",
                 "--accuracy", "1 %", "--provenance", "a test", "--no-verify",
                 "--pixels", "signed")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "tiny version 1, 5 classes, 64x48" in result.stdout
    model = read_model(tmp_path / "repository" / "tiny")
    assert model.labels.names == tuple(f"class {i}" for i in range(5))
    stored = onnx.load(str(model.graph(1)))
    metadata = {p.key: p.value for p in stored.metadata_props}
    assert json.loads(metadata["classes"]) == list(model.labels.names)
    assert metadata["accuracy"] == "1 %"
    assert metadata["provenance"].startswith("a test; symbol network-symbol.json; parameters best")
    assert metadata["provenance"] == model.config.parameters["provenance"].string_value


def test_own_labels_and_random_weights(run, run_folder, tmp_path):
    labels = tmp_path / "classes.txt"
    labels.write_text("road #804080\nC# code #000001\nsky #4682b4\ncar #00008e\nbus #003c64\n\n")
    result = run("--symbol", run_folder / "network-symbol.json", "--labels", labels,
                 "--head", "mask", "--no-verify")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "random weights" in result.stderr
    model = read_model(tmp_path / "repository" / "network")
    assert model.labels.names[1] == "C# code"
    assert model.labels.colors[2] == (70, 130, 180)
    assert [o.name for o in model.config.output] == ["mask"]


def test_says_that_the_comparison_was_skipped(run, run_folder, monkeypatch):
    monkeypatch.setattr(pipeline, "mxnet_installed", lambda: False)
    result = run("--symbol", run_folder / "network-symbol.json")
    assert "MXNet is not installed" in result.stderr


def test_compares_with_mxnet(run, run_folder, run_mxnet):
    result = run("--symbol", run_folder / "network-symbol.json",
                 "--params", run_folder / "best.params", "--pixels", "imagenet")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "of MXNet 1.9" in result.stderr


def test_a_known_dataset_names_the_classes(run, run_folder):
    result = run("--symbol", run_folder / "network-symbol.json", "--dataset", "citys")
    assert "the network has 5 classes, the labels name 19" in error(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model"),
        (["--model", "x", "--size", "big"], "HEIGHTxWIDTH"),
        (["--model", "x", "--dataset", "nowhere"], "--labels"),
        (["--model", "x", "--dataset", "folder"], "--root DIR"),
        (["--model", "x", "--dataset", "folder", "--root", "absent"], "absent/labels.txt"),
        (["--model", "nothing"], "give one with --symbol"),
        (["--symbol", "absent.json"], "absent.json"),
        (["--model", "icnet", "--dataset", "citys", "--size", "100x100"], "96x96"),
        (["--model", "icnet", "--dataset", "citys", "--params", "absent.params"], "absent.params"),
        (
            ["--pretrained", "absent", "--backbone", "resnet18", "--aux", "--width", "1"],
            "absent determines the network and its weights; leave --backbone, --width, --aux out",
        ),
        (["--pretrained", "absent", "--output-stride", "8"], "leave --output-stride out"),
        (["--symbol", "absent.json", "--width", "0.5"], "leave --width out"),
        (["--model", "psp", "--output-stride", "8"], "leave --output-stride out"),
        (["--model", "icnet", "--aux"], "icnet has no auxiliary head (pspnet, fcn, deeplabv3 have"),
        (["--model", "icnet", "--head", "confidence"], "neither mask nor logits"),
        (
            ["--model", "icnet", "--dataset", "citys", "--head", "mask,planes"],
            "expected one or more of mask, confidence, logits",
        ),
    ],
)
def test_errors_are_one_line_with_a_remedy(run, arguments, message):
    assert message in error(run(*arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\na\n", "each name once"),
        ("", "at least one"),
        ("a #12345\nb #000000", "line 1"),
        ("a #123456\nb", "1 colours for 2"),
        ("a\n\nb", "line 2"),
    ],
)
def test_damaged_labels_are_refused(run, run_folder, tmp_path, content, message):
    labels = tmp_path / "classes.txt"
    labels.write_text(content)
    assert message in error(
        run("--symbol", run_folder / "network-symbol.json", "--labels", labels)
    )  # fmt: skip


def test_a_failed_export_leaves_no_repository(run, run_folder, tmp_path):
    error(run("--symbol", run_folder / "network-symbol.json", "--size", "30x30"))
    assert not (tmp_path / "repository").exists()
