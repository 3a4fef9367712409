"""``--freeze-bn``, ``--freeze`` and ``--class-weights`` in both trainers; the static loss scale."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from training.class_weights import weigh_classes  # noqa: E402
from training.guard.guard import NonFiniteStep  # noqa: E402
from training.loader import Batch  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.parameters import frozen_names  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

NORMS = ("gamma", "beta", "running_mean", "running_var", "moving_mean", "moving_var")
SMALL = "--crop-size 64x64 --no-cuda --batch-size 2 --width 0.25 --weight-decay 0.1"
RATE = 0.0005
CLASS_WEIGHTS = "0.26,0.18,4.56,0.14,0.91,0.38,9.64,1.84,0.68,6.25,7.36"


@dataclass(frozen=True)
class Case:
    """Flags, and the beginnings of the names that they hold; the batch norms of ``held`` too."""

    flags: str
    held: tuple[str, ...]


CASES = {
    "norms": Case("--backbone resnet18 --freeze-bn", ()),
    "depth": Case(
        f"--backbone resnet18 --freeze 2 --class-weights {CLASS_WEIGHTS}",
        ("icnet_conv1_", "icnet_batchnorm0_", "icnet_layer1_"),
    ),
    "names": Case(
        "--backbone resnet18 --freeze icnet_layer3,sub1", ("icnet_layer3_", "icnet_sub1_")
    ),
    "msra": Case(
        "--model deeplab_msra --backbone resnet50 --freeze conv1,bn_conv1,res2,bn2",
        ("conv1_", "bn_conv1_", "res2", "bn2"),
    ),
    "xception": Case(
        "--model deeplabv3plus --output-stride 16 --freeze 3",
        ("entry_flow_conv1_", "entry_flow_block1_", "entry_flow_block2_"),
    ),
}


@dataclass(frozen=True)
class Told:
    """What MXNet did; ``symbol`` as it is written, without what ``--freeze`` says."""

    symbol: Path
    before: Path
    loss: float
    moved: frozenset[str]
    learnt: frozenset[str]
    momenta: int


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(2)
    images = random.standard_normal((2, 3, 64, 64)).astype(np.float32)
    return Batch(images, random.integers(0, 11, (2, 64, 64)).astype(np.uint8), ("a", "b"))


@pytest.fixture(scope="module")
def told(batch: Batch, run_script, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    folder = tmp_path_factory.mktemp("frozen")
    np.savez(folder / "batch.npz", images=batch.images, labels=batch.labels)
    flags = {name: [*case.flags.split(), *SMALL.split()] for name, case in CASES.items()}
    run_script("frozen_norms", folder, json.dumps(flags))
    found = {}
    for name in CASES:
        path = folder / name / "network-symbol.json"
        if name != "msra":  # MSRA's own batch norms all keep their statistics
            # MXNet wrote the flag into its symbol: a symbol without it has to do as well.
            text = path.read_text()
            assert '"use_global_stats": "True"' in text
            path.write_text(text.replace('"use_global_stats": "True"', '"axis": "1"'))
        one = json.loads((folder / name / "told.json").read_text())
        found[name] = Told(
            path, folder / name / "before.params", one["loss"], frozenset(one["moved"]),
            frozenset(one["learnt"]), one["momenta"],
        )  # fmt: skip
    return found


def learner(symbol: Path, *flags: str) -> TorchLearner:
    options = parse_options([*SMALL.split(), "--trainer", "torch", "--symbol", str(symbol), *flags])
    made = TorchLearner(options, 11)
    made.start(weigh_classes([], 11, 0.0, options.class_weights))
    return made


def step_twice(made: TorchLearner, batch: Batch) -> tuple[float, set[str]]:
    """The first loss, and the names of what moved."""
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    losses = [made.step(batch, RATE) for _ in range(2)]
    after = made.module.state_dict()
    return losses[0], {
        name.removeprefix("weights.") for name in before
        if not torch.equal(before[name], after[name])
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_trainers_hold_the_same(name: str, told: dict[str, Told], batch: Batch) -> None:
    """Weight decay and momentum act on all others."""
    case, by_mxnet = CASES[name], told[name]
    made = learner(by_mxnet.symbol, *case.flags.split())
    made.read_parameters(by_mxnet.before)
    loss, moved = step_twice(made, batch)
    assert loss == pytest.approx(by_mxnet.loss, rel=1e-3)
    assert moved == by_mxnet.moved
    assert len(moved) > 20
    weights = made.module.weights
    learnt = {name for name, weight in weights.items() if weight.requires_grad}
    optimized = {id(w) for group in made.optimizer.param_groups for w in group["params"]}
    assert learnt == by_mxnet.learnt
    assert learnt == {name for name, weight in weights.items() if weight.grad is not None}
    assert optimized == {id(weights[name]) for name in learnt}
    assert by_mxnet.momenta == len(learnt) == len(made.optimizer.state)
    assert not [name for name in moved if case.held and name.startswith(case.held)]
    norms = [name for name in moved if name.endswith(NORMS)]
    assert bool(norms) == (name not in ("norms", "msra"))


@pytest.mark.slow
def test_without_the_flag_they_learn(told: dict[str, Told], batch: Batch) -> None:
    symbol = told["depth"].symbol
    _, moved = step_twice(learner(symbol), batch)
    held = frozen_names(moved, ("conv1", "batchnorm0", "layer1"))
    assert {name for name in held if name.endswith("running_mean")}
    assert {name for name in held if name.endswith("weight")}
    assert moved - held == told["depth"].moved


@pytest.mark.slow
def test_class_weights_count_in_both_trainers(told: dict[str, Told], batch: Batch) -> None:
    """The case's loss equals MXNet's above; here that it is not the unweighted one."""
    made = learner(told["depth"].symbol, *CASES["depth"].flags.split()[:4])
    made.read_parameters(told["depth"].before)
    assert abs(made.step(batch, RATE) - told["depth"].loss) > 0.01


@pytest.mark.slow
def test_a_static_loss_scale_stays_and_does_not_hide_overflows(
    told: dict[str, Told], batch: Batch
) -> None:
    symbol = told["norms"].symbol
    half = "--dtype", "float16", "--freeze-bn"
    static = learner(symbol, *half, "--loss-scale", "128")
    assert step_twice(static, batch)[1]
    assert static.scaler.get_scale() == 128.0
    too_large = learner(symbol, *half, "--loss-scale", "1e36")
    with pytest.raises(NonFiniteStep):
        too_large.step(batch, 0.01)
    assert too_large.scaler.get_scale() == pytest.approx(1e36)
