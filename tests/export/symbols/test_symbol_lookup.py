"""Symbols that are named, not given: traced where MXNet is installed."""

from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from export import cli, pipeline
from export.errors import SymbolNotFound
from export.symbols.find import NetworkName, find_symbol
from export.symbols.graph import write_symbol
from export.symbols.shapes import infer_shapes

SIZE = (65, 97)


def find(network, size=SIZE):
    return find_symbol(network, None, 7, size).graph


def test_the_auxiliary_head_and_the_output_stride_are_passed_on(run_mxnet):
    assert len(find(NetworkName("fcn", "resnet18", 0.25, "x", aux=True)).heads) == 2
    network = NetworkName("deeplabv3plus", "xception65", 0.25, "x", output_stride=8)
    shapes = infer_shapes(find(network), *SIZE).tensors.values()
    assert min(shape[2] for shape in shapes if shape[2:] != (1, 1)) == 9  # ceil(65 / 8)


def test_other_forms_have_other_files():
    names = {
        NetworkName("a", "b", 1.0, "c").stem,
        NetworkName("a", "b", 0.5, "c").stem,
        NetworkName("a", "b", 1.0, "c", aux=True).stem,
        NetworkName("a", "b", 1.0, "c", output_stride=8).stem,
    }
    assert "a_b_c" in names
    assert len(names) == 4


@pytest.mark.parametrize(
    ("arguments", "backbone"),
    [
        (["deeplabv3plus", "--output-stride", "8"], "xception65"),
        (["deeplabplus"], "xception65"),
        (["deeplab_msra_dcn"], "resnet101"),
        (["pspnet", "--aux"], "resnet50"),
        (["pspnet", "--backbone", "resnet18"], "resnet18"),
    ],
)
def test_each_network_has_its_own_backbone(monkeypatch, arguments, backbone):
    asked = []

    def find(network, params, classes, size):
        asked.append(network)
        raise SymbolNotFound("a test")

    monkeypatch.setattr(pipeline, "find_symbol", find)
    app = typer.Typer()
    app.command()(cli.export)
    given = ["--dataset", "citys", "--width", "0.5", "--model", *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1, result.output
    stride = 8 if "8" in arguments else None
    assert asked == [
        NetworkName(arguments[0], backbone, 0.5, "citys", "--aux" in arguments, stride)
    ]


def test_an_illegal_size_names_the_nearest(run_mxnet):
    with pytest.raises(SymbolNotFound, match="65x97"):
        find(NetworkName("deeplabv3plus", "xception65", 0.25, "x"), (66, 98))


def test_the_symbol_beside_has_the_stride_that_was_asked_for(tmp_path, run_mxnet):
    network = NetworkName("deeplabv3plus", "xception65", 0.25, "x", output_stride=8)
    write_symbol(find(network), tmp_path / "network-symbol.json")
    params = tmp_path / "best.params"
    assert find_symbol(network, params, None, None).source == "network-symbol.json"
    other = replace(network, output_stride=16)
    with pytest.raises(SymbolNotFound, match="another output stride than --output-stride 16"):
        find_symbol(other, params, None, None)
    assert find_symbol(replace(network, output_stride=None), params, None, None)


def test_a_folder_of_ones_own_does_not_shadow_ours(tmp_path, monkeypatch, run_mxnet):
    """Somebody trains in a folder that holds a package called ``training``."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("raise SystemExit('the wrong training')")
    monkeypatch.chdir(tmp_path)
    assert len(find(NetworkName("fcn", "resnet18", 0.25, "x", aux=True)).heads) == 2
