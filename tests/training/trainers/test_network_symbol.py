"""Which symbol ``--trainer torch`` trains, and at which size and number of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import ExportError, IllegalSize
from export.symbols.find import PUBLISHED
from export.symbols.graph import Entry, Graph, Node, read_symbol, write_symbol
from export.symbols.shapes import infer_shapes
from training.options import TrainOptions, parse_options
from training.parameters import group_of
from training.trainers.network_symbol import make_symbol, map_sizes, trained_graph, with_outputs

CLASSES, SIZE = 5, (96, 128)
NETWORKS = ("icnet resnet50", "icnet resnet101", "psp resnet50", "psp resnet101 --aux",
            "fcn resnet50", "deeplab resnet50 --aux")  # fmt: skip


@pytest.fixture(autouse=True)
def no_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainers.network_symbol.find_spec", lambda name: None)


def options_of(network: str, *more: str) -> TrainOptions:
    model, backbone, *aux = network.split()
    size = f"{SIZE[0]}x{SIZE[1]}"
    flags = ["--trainer", "torch", "--no-cuda", "--batch-size", "2", "--crop-size", size]
    return parse_options([*flags, "--model", model, "--backbone", backbone, *aux, *more])


@pytest.mark.parametrize("network", NETWORKS)
def test_without_mxnet_a_published_network_is_trained(network: str) -> None:
    options = options_of(network)
    graph = make_symbol(options, CLASSES)
    trained = trained_graph(graph, options)
    assert len(map_sizes(trained, SIZE, CLASSES)) == len(options.loss_weights)
    assert infer_shapes(graph, *SIZE).of(graph.heads[0]) == (1, CLASSES, *SIZE)
    # The backbone learns at the run's own rate, the head at its multiple.
    learnt = {node.name for node in graph.nodes if node.is_variable} - {"data"}
    rates = {name: group_of(name, 10.0, False).rate for name in learnt}
    assert {name for name, rate in rates.items() if rate == 1} == {
        name for name in learnt if "_resnetv1s_" in name
    }
    assert set(rates.values()) == {1.0, 10.0}


def test_it_takes_a_step() -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")
    from training.loader import Batch
    from training.trainers.torch_trainer import TorchLearner

    learner = TorchLearner(options_of("icnet resnet50"), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    random = np.random.default_rng(1)
    images = random.standard_normal((2, 3, *SIZE)).astype(np.float32)
    labels = random.integers(0, CLASSES, (2, *SIZE)).astype(np.uint8)
    learner.begin_step(0, 0)
    assert np.isfinite(learner.step(Batch(images, labels, ("a", "b")), 0.01))


@pytest.mark.parametrize("network", ["icnet resnet18", "deeplabplus xception65"])
def test_others_need_mxnet_and_the_published_are_named(network: str) -> None:
    with pytest.raises(ValueError, match=r"icnet resnet50.*pspnet resnet101.* --symbol FILE"):
        make_symbol(options_of(network), CLASSES)
    with pytest.raises(ValueError, match="of full width"):
        make_symbol(options_of("icnet resnet50", "--width", "0.5"), CLASSES)


def test_a_given_symbol_is_moved_to_the_runs_size(tmp_path: Path) -> None:
    given = PUBLISHED / "icnet_resnet50_citys.json.gz"
    options = options_of("icnet resnet50", "--symbol", str(given))
    moved = make_symbol(options, 19)
    assert infer_shapes(moved, *SIZE).of(moved.heads[0]) == (1, 19, *SIZE)
    with pytest.raises(IllegalSize, match="the nearest is 96x96"):
        make_symbol(options_of("icnet resnet50", "--symbol", str(given), "--crop-size", "100"), 19)
    # Its classes are not changed: 18 outputs and 19 classes were Multi-Human Parsing's NaN.
    with pytest.raises(ValueError, match="19 outputs, the dataset 5 classes"):
        map_sizes(trained_graph(moved, options), SIZE, CLASSES)
    # Without the full-size output it tells no size, but fits its own.
    part = moved.pruned(moved.heads[1:])
    write_symbol(part, tmp_path / "part.json")
    flags = ("--symbol", str(tmp_path / "part.json"))
    assert make_symbol(options_of("icnet resnet50", *flags), 19) == read_symbol(
        tmp_path / "part.json"
    )
    with pytest.raises(ExportError, match="is not known"):
        make_symbol(options_of("icnet resnet50", *flags, "--crop-size", "64x96"), 19)


def test_scores_of_no_convolution_are_refused() -> None:
    nodes = (Node("null", "data"), Node("Activation", "act", (Entry(0),), {"act_type": "relu"}))
    with pytest.raises(ValueError, match=r"act \(Activation\) do not come from a convolution"):
        with_outputs(Graph(nodes, (Entry(1),)), CLASSES)
