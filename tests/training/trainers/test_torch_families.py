"""Both trainers take the same two steps with every family of networks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.passes.build import build_model  # noqa: E402
from export.symbols.graph import Entry, Graph, Node, read_symbol  # noqa: E402
from export.symbols.networks import IMAGENET  # noqa: E402
from export.symbols.params import Parameters, read_params  # noqa: E402
from training.datasets.synthetic import render_scene  # noqa: E402
from training.loader import Batch  # noqa: E402
from training.options import TrainOptions, parse_options  # noqa: E402
from training.trainers.network_symbol import frozen_parameters, trained_heads  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402
from training.transforms import normalize  # noqa: E402

CLASSES, HEIGHT, WIDTH = 11, 64, 96
RATES = (0.0005, 0.0005)


@dataclass(frozen=True)
class Family:
    """Flags of the network; maps that carry a loss, and where the first of them lies."""

    flags: str
    losses: int
    size: tuple[int, int]


FAMILIES = {
    "icnet": Family("--model icnet --backbone resnet18", 3, (16, 24)),
    "icnet_two_pass": Family("--model icnet_two_pass --backbone resnet18", 3, (16, 24)),
    "pspnet": Family("--model psp --backbone resnet18 --aux", 2, (8, 12)),
    "fcn": Family("--model fcn --backbone resnet18", 1, (8, 12)),
    "deeplabv2": Family("--model deeplabv2 --backbone resnet50", 1, (9, 13)),
    "deeplabv3": Family("--model deeplabv3 --backbone resnet18 --aux", 2, (8, 12)),
    "deeplabv3plus": Family("--model deeplabv3plus --output-stride 8", 1, (16, 24)),
    "deeplab_msra": Family("--model deeplab_msra --backbone resnet50", 1, (64, 96)),
    "deeplab_msra_dcn": Family("--model deeplab_msra_dcn --backbone resnet50", 1, (64, 96)),
}


def flags_of(name: str, *more: str) -> list[str]:
    recipe = (
        f"--crop-size {HEIGHT}x{WIDTH} --base-size {WIDTH} --width 0.25 --no-cuda --batch-size 2"
        " --weight-decay 0.0001 --head-lr-mult 2 --no-wd"
    )
    return [*FAMILIES[name].flags.split(), *recipe.split(), *more]


def torch_options(name: str, folder: Path) -> TrainOptions:
    symbol = folder / name / "network-symbol.json"
    return parse_options(flags_of(name, "--trainer", "torch", "--symbol", str(symbol)))


def make_batch() -> Batch:
    scenes = [render_scene(seed, HEIGHT, WIDTH) for seed in (3, 4)]
    images = np.stack([normalize(scene.image, IMAGENET) for scene in scenes]).astype(np.float32)
    return Batch(images, np.stack([scene.label for scene in scenes]), ("a", "b"))


@pytest.fixture(scope="module")
def steps(run_script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXNet's steps of all families."""
    folder = tmp_path_factory.mktemp("families")
    batch = make_batch()
    np.savez(folder / "batch.npz", images=batch.images, labels=batch.labels, classes=CLASSES,
             rates=RATES)  # fmt: skip
    run_script("two_steps", folder, json.dumps({name: flags_of(name) for name in FAMILIES}))
    return folder


def length(parameters: Parameters, other: Parameters) -> float:
    """Of the difference, all weights as one vector."""
    apart = [parameters.find(n) - other.find(n) for n in parameters.arguments]
    return float(np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in apart)))


def as_float32(parameters: Parameters) -> Parameters:
    return Parameters(
        {name: array.astype(np.float32) for name, array in parameters.arguments.items()},
        {name: array.astype(np.float32) for name, array in parameters.auxiliary.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_both_trainers_take_the_same_steps(name: str, steps: Path) -> None:
    told = json.loads((steps / name / "steps.json").read_text())
    learner = TorchLearner(torch_options(name, steps), CLASSES)
    assert (len(learner.map_sizes), learner.map_sizes[0]) == (
        FAMILIES[name].losses, FAMILIES[name].size
    )  # fmt: skip
    learner.read_parameters(steps / name / "before.params")
    learner.start(np.ones(CLASSES, np.float32))
    batch = make_batch()
    if "msra" not in name:  # those are float32 on both sides
        learner.module.double()
        doubled = learner.loss.class_weights.double()
        learner.loss = replace(learner.loss, class_weights=doubled)
        batch = replace(batch, images=batch.images.astype(np.float64))
    losses = [learner.step(batch, rate) for rate in RATES]
    assert losses == pytest.approx(told["losses"], rel=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-3

    weights = learner.module.weights
    rates = {id(w): g["rate"] for g in learner.optimizer.param_groups for w in g["params"]}
    assert {n: rates[id(w)] for n, w in weights.items() if w.requires_grad} == told["rates"]

    learner.write_parameters(steps / name / "torch.params")
    before, theirs, ours = (
        read_params(steps / name / f"{part}.params") for part in ("before", "after", "torch")
    )
    assert sorted(ours.names()) == sorted(theirs.names())
    for frozen in set(ours.arguments) - set(told["rates"]):
        np.testing.assert_array_equal(ours.find(frozen), before.find(frozen))
    # The file is float32: steps are no longer than some 10,000 roundings of the weights.
    assert length(ours, theirs) <= 1e-3 * length(theirs, before)

    graph = read_symbol(steps / name / "network-symbol.json")
    for parameters in (ours, theirs):
        model = build_model(graph, as_float32(parameters), HEIGHT, WIDTH)
        assert {output.name for output in model.graph.output} >= {"mask"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"deeplabv2"}))
def test_every_network_is_traced_as_one_graph(name: str, steps: Path) -> None:
    """What ``--compile`` needs; dropout draws the same, and statistics move the same.

    DeepLabV2 has no operator that others have not.
    """
    modules = [TorchLearner(torch_options(name, steps), CLASSES).module for _ in range(2)]
    images = torch.from_numpy(make_batch().images)
    # One function traced for more networks than a process may: each starts anew.
    torch.compiler.reset()
    traced = torch.compile(modules[1].train(), backend="eager", fullgraph=True, dynamic=False)
    torch.manual_seed(1)
    expected = modules[0].train()(images)
    torch.manual_seed(1)
    for one, other in zip(expected, traced(images), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(modules[0].buffers(), modules[1].buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_number_of_loss_weights_is_refused(tmp_path: Path) -> None:
    """Of a symbol that is given only the trainer knows the number."""
    nodes = (
        Node("null", "data"),
        Node("null", "w"),
        Node(
            "Convolution", "score", (Entry(0), Entry(1)),
            {"kernel": "(1, 1)", "num_filter": str(CLASSES), "no_bias": "True"},
        ),
        Node("_contrib_BilinearResize2D", "full", (Entry(2),), {"height": "64", "width": "96"}),
    )  # fmt: skip
    from export.symbols.graph import write_symbol

    graph = Graph(nodes, (Entry(3), Entry(2)))
    assert trained_heads(graph) == (Entry(2),)
    assert not frozen_parameters(graph)
    path = tmp_path / "symbol.json"
    write_symbol(graph, path)
    flags = ["--trainer", "torch", "--symbol", str(path), "--crop-size", "64x96", "--no-cuda"]
    with pytest.raises(ValueError, match=r"1 maps with losses, --loss-weights gives 3"):
        TorchLearner(parse_options(flags), CLASSES)
    TorchLearner(parse_options([*flags, "--loss-weights", "1"]), CLASSES)


@pytest.mark.parametrize(
    ("flags", "backbone", "weights"),
    [
        ("--model icnet", "resnet50", (1.0, 0.4, 0.4)),
        ("--model pspnet --aux --aux-weight 0.5", "resnet50", (1.0, 0.5)),
        ("--model fcn", "resnet50", (1.0,)),
        ("--model deeplabplus", "xception65", (1.0,)),
        ("--model deeplab_msra_dcn --aux", "resnet101", (1.0,)),
    ],
)
def test_defaults_follow_the_network(flags: str, backbone: str, weights: tuple) -> None:
    options = parse_options(flags.split())
    assert (options.backbone, options.loss_weights) == (backbone, weights)


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--model", "unet"])
    assert "unknown --model unet; known: icnet, " in capsys.readouterr().err
