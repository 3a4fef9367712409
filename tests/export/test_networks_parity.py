"""Every network of ``training.networks``, from its symbol to ONNX Runtime, against MXNet."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest

from benchmarks.studies.parity import NETWORKS, compare, read_rows, write_rows
from export.errors import IllegalSize, TracingFailed
from export.passes.build import build_model, prune_heads
from export.symbols.find import NetworkSpec, trace_symbol
from export.symbols.graph import Graph, read_symbol, write_symbol
from export.symbols.params import random_params
from export.symbols.sizes import retarget, size_rule
from export.verify import Verification
from tests.support.engine_parity import check_parity, needs_openvino
from tests.support.traced_networks import Wanted, trace_networks

SIZE = (64, 96)
CLASSES = 7
# Half of the width or less: what is computed is the same, in a third of the time.
SMALL = {
    name: replace(NETWORKS[name], width=0.5)
    for name in (
        "pspnet_resnet50_aux",
        "pspnet_resnet101",
        "fcn_resnet50",
        "deeplabv3_resnet101",
        "deeplabv3plus_xception65_os16",
        "deeplabv3plus_xception65_os8",
        "deeplab_msra_resnet101",
        "deeplab_msra_dcn_resnet101",
    )
}
XCEPTION = NetworkSpec("deeplabv3plus", "xception65", 0.25)
DEFORMABLE = NetworkSpec("deeplab_msra_dcn", "resnet50", 0.25)
AWKWARD = [
    (NetworkSpec("fcn", "resnet18", 0.25, aux=True), (45, 70)),
    (XCEPTION, (65, 97)),
    (DEFORMABLE, (45, 70)),
    (NetworkSpec("pspnet", "resnet18", 0.25), (40, 56)),
    (NetworkSpec("icnet_fast_seg", "resnet18", 0.25), SIZE),
    (NetworkSpec("icnet_two_pass", "resnet18", 0.25), SIZE),
    (NetworkSpec("icnet_paper", "resnet50", 0.25), (193, 225)),
    (NetworkSpec("deeplabv2", "resnet50", 0.25), (65, 97)),
    (NetworkSpec("deeplabv3plus", "resnet18", 0.25), (65, 96)),
]
MOVED = [(XCEPTION, (64, 96)), (XCEPTION, (96, 48)), (DEFORMABLE, SIZE)]


@pytest.fixture(scope="module")
def symbols(tmp_path_factory, run_mxnet) -> dict[Wanted, Graph]:
    """The symbols of all networks here, made in one process."""
    wanted = [*((network, SIZE) for network in SMALL.values()), *AWKWARD, *MOVED]
    return trace_networks(run_mxnet, tmp_path_factory.mktemp("symbols"), wanted, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_equals_mxnet(name, symbols):
    found = compare(symbols[SMALL[name], SIZE], *SIZE)
    assert found.within_bounds, str(found)
    assert found.classes_seen > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size"), AWKWARD, ids=lambda value: getattr(value, "model", None)
)
def test_equals_mxnet_at_awkward_sizes(network, size, symbols):
    found = compare(symbols[network, size], *size)
    assert found.within_bounds, str(found)


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "size"),
    [*((network, SIZE) for network in SMALL.values()), *AWKWARD],
    ids=lambda value: getattr(value, "model", None),
)
def test_openvino_equals_onnx_runtime(network, size, symbols, tmp_path):
    graph = symbols[network, size]
    parameters = random_params(graph, *size, neutral=False)
    path = tmp_path / "model.onnx"
    onnx.save(build_model(graph, parameters, *size), str(path))
    check_parity(path, batch_sizes=(1, 3))


def test_symbols_move_to_other_sizes(symbols):
    """A symbol of one size equals, moved, the symbol made at the other."""
    moved = retarget(symbols[XCEPTION, (64, 96)], 96, 48)
    assert moved == symbols[XCEPTION, (96, 48)]
    assert size_rule(moved).height_multiple == 16
    with pytest.raises(IllegalSize, match="nearest is 64x96"):
        retarget(moved, 60, 100)


def test_msra_fits_every_size_and_needs_no_label(symbols):
    graph = symbols[DEFORMABLE, SIZE]
    assert size_rule(graph) is None
    assert retarget(graph, 40, 50) == graph
    # What --params would read: no label among the parameters.
    parameters = random_params(graph, 40, 50, neutral=False)
    assert "softmax_label" not in parameters.names()
    model = build_model(graph, parameters, 40, 50)
    assert model.opset_import[0].version == 19
    assert model.ir_version == 9
    onnx.checker.check_model(model, full_check=True)


def test_the_auxiliary_head_goes(symbols):
    graph = symbols[SMALL["pspnet_resnet50_aux"], SIZE]
    assert len(graph.heads) == 2
    assert [name for name in graph.variables() if "_aux_" in name]
    assert not [name for name in prune_heads(graph).variables() if "_aux_" in name]


def test_old_json_gives_the_same_graph(symbols, tmp_path):
    """Pairs for inputs and ``attr`` for ``attrs``, as MXNet 0.9 wrote them."""
    graph = symbols[DEFORMABLE, SIZE]
    write_symbol(graph, tmp_path / "new.json")
    document = json.loads((tmp_path / "new.json").read_text())
    for node in document["nodes"]:
        node["inputs"] = [entry[:2] for entry in node["inputs"]]
        node["backward_source_id"] = -1
        if "attrs" in node:
            node["attr"] = node.pop("attrs")
    document["heads"] = [head[:2] for head in document["heads"]]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert read_symbol(tmp_path / "old.json") == graph


@pytest.mark.usefixtures("run_mxnet")
def test_an_illegal_size_names_the_nearest():
    reason = r"^pspnet .* of 8, not 715x1003; the nearest is 712x1000$"
    with pytest.raises(TracingFailed, match=reason):
        trace_symbol(NETWORKS["pspnet_resnet50"], 19, (715, 1003))


def test_the_table_keeps_what_was_measured_before(tmp_path):
    page = tmp_path / "parity.md"
    page.write_text("# Parity\n\nWords.\n\n<!-- measured -->\n<!-- end -->\n\nMore.\n")
    first = {("fcn_resnet50", "352x480"): "| fcn_resnet50 | 352x480 | 1e-6 | 100% | 3 |"}
    write_rows(page, first)
    assert read_rows(page) == first
    second = {("icnet_resnet50", "712x1000"): "| icnet_resnet50 | 712x1000 | refused | | |"}
    write_rows(page, {**read_rows(page), **second})
    lines = page.read_text().splitlines()
    assert lines.index(second["icnet_resnet50", "712x1000"]) < lines.index(*first.values())
    assert (lines[0], lines[-1]) == ("# Parity", "More.")


def test_what_is_beyond_the_stated_bounds_says_so():
    inside = Verification(3, 1.0, 1e-4, 0.9999, "1.9.1", 5)
    assert inside.within_bounds
    assert "bounds" not in str(inside)
    for outside in (replace(inside, relative=1.1e-4), replace(inside, agreement=0.99989)):
        assert not outside.within_bounds
        assert str(outside).endswith("3 images (bounds: 0.0001, 99.99%)")
