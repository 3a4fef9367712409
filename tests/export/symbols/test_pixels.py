"""What a network sees: its own pixels where it is known, else what is asked for, never a guess."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from export import cli
from export.errors import ExportError
from export.onnx_import.network import InputFormat
from export.onnx_import.verify import normalise
from export.repository.triton import read_config
from export.symbols.graph import Graph, write_symbol
from export.symbols.networks import IMAGENET, PRESETS, Pixels, choose_pixels, pixels_of
from export.symbols.params import Parameters, write_params

SIZE = (16, 16)


def test_networks_bring_their_own_pixels() -> None:
    assert pixels_of("icnet") == IMAGENET
    xception = pixels_of("deeplabv3plus")
    assert [(x / 255 - xception.mean[0]) / xception.std[0] for x in (0, 255)] == [-1.0, 1.0]
    assert pixels_of("deeplabv3plus", "resnet50") == IMAGENET
    msra = pixels_of("deeplab_msra")
    assert msra.bgr
    # Blue 104 and red 122 are zero.
    assert msra.mean[2] == pytest.approx(104 / 255)
    assert (1 - msra.mean[0]) / msra.std[0] == pytest.approx(255 - 122)
    assert choose_pixels(msra, None, None, None) == msra


def test_options_beat_them() -> None:
    found = choose_pixels(pixels_of("deeplab_msra"), "0,0.5,1", "1,2,3", False)
    assert found == Pixels((0.0, 0.5, 1.0), (1.0, 2.0, 3.0), bgr=False)
    assert choose_pixels(pixels_of("deeplab_msra"), None, None, None, "unit") == PRESETS["unit"]
    assert choose_pixels(None, None, None, True, "imagenet").bgr
    assert choose_pixels(None, "0,0,0", "1,1,1", None) == PRESETS["unit"]


@pytest.mark.parametrize(
    ("mean", "std"),
    [("1,2", None), ("a,b,c", None), (None, "1,0,1"), ("nan,0,0", None), (None, "1,inf,1")],
)
def test_wrong_numbers_are_refused(mean: str | None, std: str | None) -> None:
    with pytest.raises(ExportError, match="three"):
        choose_pixels(IMAGENET, mean, std, None)


@pytest.mark.parametrize(("mean", "std"), [(None, None), ("0,0,0", None), (None, "1,1,1")])
def test_what_nobody_says_is_asked_for(mean: str | None, std: str | None) -> None:
    with pytest.raises(ExportError, match=r"--pixels imagenet .* or with --mean and --std"):
        choose_pixels(None, mean, std, True)


def test_a_name_stands_alone() -> None:
    with pytest.raises(ExportError, match="--pixels unit stands for --mean and --std"):
        choose_pixels(None, "0,0,0", None, None, "unit")
    with pytest.raises(ExportError, match="--pixels half is not a valid name: expected imagenet"):
        choose_pixels(None, None, None, None, "half")


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("unit", [0, 0, 0], [1, 1, 1]),
        ("byte", [0, 0, 0], [255, 255, 255]),
        ("signed", [-1, -1, -1], [1, 1, 1]),
        ("imagenet", [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
         [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]),
        ("caffe", [-104.00698793, -116.66876762, -122.67891434],
         [150.99301207, 138.33123238, 132.32108566]),
    ],
)  # fmt: skip
def test_what_the_names_stand_for(name: str, black: list[float], white: list[float]) -> None:
    form = InputFormat.of(PRESETS[name], channels_last=True)
    for value, expected in ((0, black), (255, white)):
        seen = normalise(np.full((1, 1, 3), value, np.uint8), form)
        np.testing.assert_allclose(seen.ravel(), expected, rtol=1e-5)
    assert f"({name})" in str(form.pixels)


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)

    def call(*arguments: object) -> Result:
        given = [*arguments, "--no-verify", "--repository", tmp_path / "models"]
        return CliRunner().invoke(app, list(map(str, given)))

    return call


@pytest.fixture
def network(
    tmp_path: Path,
    make_network: Callable[[int, int], Graph],
    make_params: Callable[[Graph, int, int], Parameters],
) -> Path:
    """A folder with the symbol and the parameters of somebody's network."""
    folder = tmp_path / "network"
    (folder / "checkpoint-0003").mkdir(parents=True)
    graph = make_network(*SIZE)
    write_symbol(graph, folder / "network-symbol.json")
    for name in ("best.params", "checkpoint-0003/last.params"):
        write_params(make_params(graph, *SIZE), folder / name)
    return folder


def provenance(tmp_path: Path, name: str = "network") -> str:
    parameters = read_config(tmp_path / "models" / name).parameters
    return str(parameters["provenance"].string_value)


@pytest.mark.parametrize("form", ["onnx", "mxnet"])
def test_a_symbol_of_ones_own_is_asked_about(
    run: Run, network: Path, tmp_path: Path, form: str
) -> None:
    given = ["--symbol", network / "network-symbol.json", "--params", network / "best.params",
             "--format", form]  # fmt: skip
    for arguments in (given, ["--model", "mine", *given[2:]]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "nothing says what pixels the network was trained on" in result.stderr
        assert "--pixels imagenet" in result.stderr
    assert not (tmp_path / "models").exists()
    result = run(*given, "--pixels", "signed", "--name", "network")
    assert result.exit_code == 0, result.output
    told = "sees RGB mean 0.5,0.5,0.5 std 0.5,0.5,0.5 (signed)"
    assert f"{told}: as the options say" in result.stderr
    assert told in provenance(tmp_path)


def test_random_weights_see_what_they_like(run: Run, network: Path) -> None:
    result = run("--symbol", network / "network-symbol.json")
    assert result.exit_code == 0, result.output
    assert "(imagenet): assumed: random weights were trained on nothing" in result.stderr


@pytest.mark.parametrize("params", ["best.params", "checkpoint-0003/last.params"])
def test_what_lies_beside_the_parameters_says_so(
    run: Run, network: Path, tmp_path: Path, params: str
) -> None:
    """A training run's options; from any of its checkpoints."""
    (network / "options.json").write_text(
        json.dumps({"model": "icnet_fast_seg", "backbone": "resnet50", "lr": 0.1})
    )
    given = ["--symbol", network / "network-symbol.json", "--params", network / params]
    result = run(*given)
    assert result.exit_code == 0, result.output
    assert "(caffe): icnet_fast_seg is trained so, and options.json beside" in result.stderr
    assert "sees BGR" in provenance(tmp_path)
    result = run(*given, "--model", "icnet")
    assert "(imagenet): icnet is trained so" in result.stderr


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"model": "mine", "backbone": "resnet50"}', '{"model": ["icnet"]}',
                '{"model": "icnet", "backbone": 3}'],
)  # fmt: skip
def test_other_programs_files_say_nothing(run: Run, network: Path, content: str) -> None:
    (network / "options.json").write_text(content)
    result = run("--symbol", network / "network-symbol.json", "--params", network / "best.params")
    assert result.exit_code == 1
    assert "nothing says what pixels" in result.stderr


def test_imported_weights_bring_theirs(run: Run, network: Path) -> None:
    """As ``--pretrained FOLDER`` does; and where only the file is named."""
    (network / "best.params").rename(network / "network.params")
    (network / "weights.json").write_text(
        json.dumps(
            {"model": "icnet_fast_seg", "backbone": "resnet50", "classes": 5, "width": 1.0,
             "aux": False, "output_stride": 16, "size": SIZE, "origin": "a test", "dataset": None}
        )
    )  # fmt: skip
    result = run("--pretrained", network)
    assert result.exit_code == 0, result.output
    assert "(caffe): icnet_fast_seg is trained so" in result.stderr
    result = run(
        "--symbol", network / "network-symbol.json", "--params", network / "network.params"
    )
    assert "(caffe): icnet_fast_seg is trained so, and weights.json beside" in result.stderr
