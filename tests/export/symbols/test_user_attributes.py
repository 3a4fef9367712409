"""What people noted at the nodes of old symbols: kept apart from the operators' own attributes, and
written as MXNet expects it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from export import cli
from export.symbols import mxnet_operators
from export.symbols.graph import parse_symbol, read_symbol, write_symbol
from export.symbols.params import Parameters, write_params

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command()(cli.export)
LOADED = """
import json, sys
from pathlib import Path
from export.mxnet_import import mx
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    try:
        found = mx.sym.load(str(path)).attr_dict()
    except Exception as error:
        found = {"refused": str(error)}
    path.with_suffix(".txt").write_text(json.dumps(found))
"""
NOTES = {
    "speeds": {"weight_lr_mult": "10", "bias_lr_mult": "20", "bias_wd_mult": "0"},
    "placement": {"ctx_group": "dev2", "mirror_stage": "True", "force_mirroring": "True"},
    "hidden": {"__lr_mult__": "3", "__profiler_scope__": "net:", "__mood__": "angry"},
    "own_speed": {"lr_mult": "0.1", "wd_mult": "0"},
}
# These MXNet itself refuses on an operator, in every version.
REFUSED = {
    "words": {"mood": "angry", "stage": "3"},
    "nobody": {"nosuch_lr_mult": "4"},
}


def document(notes: dict[str, str], form: str = "param", **own: str) -> dict[str, object]:
    """A classifier of one convolution; ``form`` is where the file has an operator's attributes."""
    settings = {"kernel": "(1,1)", "num_filter": "3", **own}
    convolution: dict[str, object] = {"op": "Convolution", "name": "fc",
                                      "inputs": [[0, 0], [1, 0], [2, 0]]}  # fmt: skip
    if form == "param":
        convolution |= {"param": settings, "attr": notes, "backward_source_id": -1}
    else:
        convolution[form] = {**settings, **notes}
    weight: dict[str, object] = {"op": "null", "name": "fc_weight", "inputs": []}
    if form == "param":
        weight |= {"param": {}, "attr": notes}
    nodes = [{"op": "null", "name": "data", "inputs": []}, weight,
             {"op": "null", "name": "fc_bias", "inputs": []}, convolution]  # fmt: skip
    versions = {"attrs": 10300, "attr": 901}
    known = {"attrs": {"mxnet_version": ["int", versions[form]]}} if form in versions else {}
    return {"nodes": nodes, "arg_nodes": [0, 1, 2], "heads": [[3, 0]], **known}


def write_classifier(folder: Path, notes: dict[str, str], **own: str) -> list[str]:
    """Writes symbol and parameters; returns the options of an export that name them."""
    (folder / "net-symbol.json").write_text(json.dumps(document(notes, **own)))
    weights = {"fc_weight": np.ones((3, 3, 1, 1), np.float32), "fc_bias": np.zeros(3, np.float32)}
    write_params(Parameters(weights, {}), folder / "net.params")
    return ["--symbol", str(folder / "net-symbol.json"), "--params", str(folder / "net.params"),
            "--size", "16x16", "--pixels", "imagenet",
            "--repository", str(folder / "models")]  # fmt: skip


@pytest.mark.parametrize("form", ["param", "attr", "attrs"])
@pytest.mark.parametrize("notes", [*NOTES, *REFUSED])
def test_the_operator_keeps_its_own_alone(notes: str, form: str) -> None:
    given = (NOTES | REFUSED)[notes]
    graph = parse_symbol(json.dumps(document(given, form)).encode(), "net.json")
    node = graph.nodes[3]
    assert dict(node.attrs) == {"kernel": "(1,1)", "num_filter": "3"}
    kept = [key for n in graph.nodes for key in n.user_attrs]
    assert len(kept) >= len(given)
    assert all(key.startswith("__") and key.endswith("__") for key in node.user_attrs)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, run_mxnet) -> Path:
    """What MXNet finds in old files, and in what is written of them."""
    folder = tmp_path_factory.mktemp("notes")
    for form in ("param", "attr"):
        for name, notes in (NOTES | REFUSED).items():
            path = folder / f"{form}-{name}-old.json"
            path.write_text(json.dumps(document(notes, form)))
            write_symbol(read_symbol(path), folder / f"{form}-{name}-new.json")
    run_mxnet("-c", LOADED, folder)
    return folder


@pytest.mark.parametrize("form", ["param", "attr"])
@pytest.mark.parametrize("name", [*NOTES, *REFUSED])
def test_mxnet_loads_what_is_written(name: str, form: str, loaded: Path) -> None:
    old, new = (
        json.loads((loaded / f"{form}-{name}-{age}.txt").read_text()) for age in ("old", "new")
    )
    assert "refused" not in new
    assert ("refused" in old) == (name in REFUSED)
    if name in NOTES:
        assert new == old


@pytest.mark.parametrize("checked", [True, False])
def test_exports_as_mxnet_model(tmp_path: Path, run_mxnet, checked: bool) -> None:
    """The symbol that is written is loaded and run by MXNet, also where nothing is compared."""
    options = write_classifier(tmp_path, NOTES["speeds"] | REFUSED["words"])
    options += ["--format", "mxnet", *([] if checked else ["--no-verify"])]
    done = CliRunner().invoke(APP, options)
    assert done.exit_code == 0, done.output
    assert "run once by MXNet" in done.output
    folder = tmp_path / "models" / "net_mxnet" / "1"
    read = parse_symbol((folder / "network-symbol.json").read_bytes(), "written")
    assert next(n for n in read.nodes if n.name == "fc").user_attrs == {
        "__mood__": "angry", "__stage__": "3"
    }  # fmt: skip


@pytest.mark.parametrize(
    "options", [[], ["--format", "mxnet"], ["--format", "mxnet", "--no-verify"]]
)
def test_mxnets_reason_is_shown_and_nothing_written(
    tmp_path: Path, run_mxnet, options: list[str]
) -> None:
    given = write_classifier(tmp_path, {}, cudnn_tune="sometimes")
    done = CliRunner().invoke(APP, [*given, *options])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "MXNet did not run the symbol: Invalid Input: 'sometimes', valid values are" in said
    assert 'in operator Convolution(name="fc"' in said
    assert not list((tmp_path / "models").rglob("*.json"))


REASONS = """
from export.mxnet_import import mx, mxnet_reason
x = mx.sym.var("data")
pooled = mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2))
for attempt in (
    lambda: mx.sym.Convolution(x, kernel=(5, 5), num_filter=4).infer_shape(data=(1, 3, 2, 2)),
    lambda: (x + pooled).infer_shape(data=(1, 3, 4, 4)),
    lambda: mx.sym.load_json("{}"),
    lambda: mx.sym.Activation(x, name="act"),
):
    try:
        attempt()
    except mx.base.MXNetError as error:
        print("reason:", mxnet_reason(error))
"""


def test_reasons_are_one_line_that_says_what_is_wrong(run_mxnet) -> None:
    lines = run_mxnet("-c", REASONS).splitlines()
    kernel, shapes, field, missing = (
        line.removeprefix("reason: ") for line in lines if line.startswith("reason: ")
    )
    assert "kernel size exceed input" in kernel
    assert "expected [1,3,4,4], got [1,3,2,2]" in shapes
    assert 'Missing field "arg_nodes"' in field
    assert missing.startswith("Required parameter act_type")
    assert "in operator Activation(" in missing


def test_the_list_of_operators_is_mxnets_own(run_mxnet) -> None:
    printed = run_mxnet("-m", "export.symbols.mxnet_operators")
    assert printed == mxnet_operators.TABLE.read_text("utf-8")
