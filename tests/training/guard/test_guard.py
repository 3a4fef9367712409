"""Steps that must not be taken: found, undone, told and kept, by both trainers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.poisoned import BrokenLoader, PoisonedLoader, poison

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

import training.run  # noqa: E402
from export.symbols.params import read_params  # noqa: E402
from training.guard.guard import (  # noqa: E402
    MOST_REPRODUCTIONS,
    Finding,
    NonFiniteStep,
    Symptoms,
    TrainingStopped,
    choose_finding,
)
from training.guard.replay import replay  # noqa: E402
from training.loader import Batch, Loader  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.run import Run  # noqa: E402
from training.runs.checkpoint import RunFolder  # noqa: E402
from training.runs.log import read_records  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

CLASSES, HEIGHT, WIDTH = 11, 64, 96
ITERATIONS = 3
FIRST = "icnet_conv1_conv0_weight"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, write_scenes) -> Path:
    lengths = {"train": 2 * ITERATIONS, "val": 2}
    root: Path = write_scenes(tmp_path_factory.mktemp("scenes"), lengths)
    return root


@pytest.fixture(scope="module")
def mxnet(run_script, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the MXNet trainer found and did, with its network's symbol."""
    folder = tmp_path_factory.mktemp("non_finite")
    (folder / "said.txt").write_text(run_script("non_finite", folder, scenes, ROOT))
    return folder


def make_learner(mxnet: Path, *more: str) -> TorchLearner:
    flags = f"--trainer torch --no-cuda --crop-size {HEIGHT}x{WIDTH} --base-size {WIDTH}"
    recipe = "--batch-size 2 --epochs 1 --lr 0.01 --dataset camvid --scale-range 1,1"
    symbol = ["--symbol", str(mxnet / "network-symbol.json")]
    learner = TorchLearner(
        parse_options([*flags.split(), *recipe.split(), *symbol, *more]), CLASSES
    )
    learner.read_parameters(mxnet / "start.params")
    return learner


def good_batch(mxnet: Path) -> Batch:
    with np.load(mxnet / "batch.npz") as file:
        images, labels = (np.concatenate([file[name]] * 2) for name in ("images", "labels"))
        return Batch(images, labels, ("a.png", "b.png", "c.png", "d.png"))


def copy_states(learner: TorchLearner) -> list[torch.Tensor]:
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    tensors = [*learner.module.state_dict().values(), *moments]
    if learner.average is not None:
        tensors += [*learner.average.values.values(), torch.tensor(learner.average.steps)]
    return [tensor.clone() for tensor in tensors if tensor is not None]


def refuse(learner: TorchLearner, batch: Batch) -> Finding:
    """The finding; nothing has moved."""
    before = copy_states(learner)
    with pytest.raises(NonFiniteStep) as refused:
        learner.step(batch, 0.01)
    after = copy_states(learner)
    assert len(after) == len(before)
    assert all(map(torch.equal, after, before))
    return refused.value.finding


BAD: dict[str, Callable[[Batch], Batch]] = {
    "nan": lambda batch: poison(batch, "b.png"),
    # The variance overflows, and what is divided by it is zero: loss and gradients are finite.
    "large": lambda batch: replace(batch, images=batch.images * np.float32(1e25)),
    "huge": lambda batch: replace(batch, images=batch.images * np.float32(1e30)),
    "weight": lambda batch: batch,
}
EXPECTED = {
    "nan": ("input", "data"),
    "large": ("running statistic", "icnet_conv1_batchnorm0_running_var"),
    "huge": ("activation", "icnet_conv1_conv0_fwd"),
    "weight": ("parameter", FIRST),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_mxnet_names_the_place_and_nothing_moves(mxnet: Path, case: str) -> None:
    found = json.loads((mxnet / "findings.json").read_text())[case]
    assert (found["quantity"], found["name"]) == EXPECTED[case]
    # With an infinite weight the states from before are no numbers either, but the same.
    assert found["moved"] is False


@pytest.mark.parametrize("more", [(), ("--ema", "0.9", "--optimizer", "adam"),
                                  ("--accumulate", "2", "--clip-grad", "1")])  # fmt: skip
@pytest.mark.parametrize("case", EXPECTED)
def test_torch_names_the_same_place_and_nothing_moves(
    mxnet: Path, case: str, more: tuple[str, ...]
) -> None:
    learner = make_learner(mxnet, *more)
    learner.start(np.ones(CLASSES, np.float32))
    learner.step(good_batch(mxnet), 0.01)
    with torch.no_grad():
        learner.module.weights[FIRST] *= {"huge": 1e30, "weight": 1e39}.get(case, 1.0)
    finding = refuse(learner, BAD[case](good_batch(mxnet)))
    assert (finding.quantity, finding.name) == EXPECTED[case]
    if case in ("nan", "large"):
        assert np.isfinite(learner.step(good_batch(mxnet), 0.01))


def test_a_skipped_step_leaves_no_trace(mxnet: Path) -> None:
    """The next step is the one that would have been taken without it, dropout aside."""
    weights = []
    for bad in (False, True):
        learner = make_learner(mxnet)
        learner.start(np.ones(CLASSES, np.float32))
        learner.step(good_batch(mxnet), 0.01)
        if bad:
            refuse(learner, BAD["nan"](good_batch(mxnet)))
        learner.begin_step(1, 0)
        learner.step(good_batch(mxnet), 0.01)
        weights.append(copy_states(learner))
    assert all(map(torch.equal, *weights))


def test_the_first_finding_in_a_steps_order_counts() -> None:
    both = Symptoms(("early_weight", "late_weight"), ("mean",))
    activation = Finding("activation", "conv")
    assert choose_finding(activation, False, both) == activation
    assert choose_finding(None, False, both).quantity == "loss"
    assert choose_finding(None, True, both) == Finding("gradient", "late_weight")
    assert choose_finding(None, True, Symptoms((), ("mean",))).name == "mean"
    assert choose_finding(None, True, Symptoms((), ())).quantity == "gradient"


@pytest.fixture
def fit(mxnet: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(kind: type[Loader], *more: str) -> RunFolder:
        monkeypatch.setattr(training.run, "Loader", kind)
        flags = ("--root", str(scenes), "--save-dir", str(tmp_path), *more)
        learner = make_learner(mxnet, *flags)
        Run(learner.options, learner).fit()
        return RunFolder(learner.options.run)

    return run


def check_reproduction(run: RunFolder) -> Path:
    (zipped,) = (run.path / "non-finite").iterdir()
    with zipfile.ZipFile(zipped) as archive:
        assert sorted(archive.namelist()) == [
            "batch.npz", "incident.json", "network-symbol.json", "network.params", "options.json",
            "trainer.states",
        ]  # fmt: skip
        incident = json.loads(archive.read("incident.json"))
    assert (incident["quantity"], incident["name"]) == ("input", "data")
    assert sum(name.endswith("003.png") for name in incident["files"]) == 1
    assert zipped.name == f"epoch-1-iteration-{incident['iteration']}.zip"
    return zipped


@pytest.mark.parametrize("trainer", ["gluon", "torch"])
def test_skipping_goes_on(mxnet: Path, fit, trainer: str, capfd: pytest.CaptureFixture) -> None:
    if trainer == "gluon":
        run = RunFolder(mxnet / "camvid" / "icnet" / "skipped")
    else:
        run = fit(PoisonedLoader, "--on-nan", "skip")
        said = capfd.readouterr().err
        assert "step skipped: epoch 1 iteration" in said
        assert "003.png" in said
    (record,) = read_records(run.log)
    assert record.skipped_steps == 1
    assert np.isfinite(record.loss)
    assert run.read_state().epochs_done == 1
    parameters = read_params(run.last)
    assert all(np.isfinite(parameters.find(name)).all() for name in parameters.names())
    check_reproduction(run)


def test_stopping_is_the_default_and_names_all_there_is(mxnet: Path, fit, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped) as stopped:
        fit(PoisonedLoader)
    run = RunFolder(tmp_path / "camvid" / "icnet" / "default")
    zipped = check_reproduction(run)
    for said in (str(stopped.value), (mxnet / "said.txt").read_text()):
        assert "iteration" in said
        assert "loss nan, first not finite: input data; files " in said
        assert "003.png" in said
        assert "--on-nan skip leaves such steps out" in said
    assert f"python -m training.guard.replay {zipped}" in str(stopped.value)
    # What was done before it is kept, and the run goes on without it where it is told to.
    before = int(zipped.stem.rpartition("-")[2]) - 1
    assert run.read_state().place == (0, before)
    assert before > 0
    fit(PoisonedLoader, "--resume", str(run.path), "--on-nan", "skip")
    (record,) = read_records(run.log)
    assert record.skipped_steps == 1


def test_a_reproduction_is_refused_again(fit, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped):
        fit(PoisonedLoader, "--ema", "0.9")
    zipped = check_reproduction(RunFolder(tmp_path / "camvid" / "icnet" / "default"))
    again = replay(zipped)
    assert isinstance(again, NonFiniteStep)
    assert again.finding == Finding("input", "data")


def test_something_else_is_no_reproduction(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(ValueError, match="not a reproduction"):
        replay(tmp_path / "x.zip")


def test_too_many_skips_in_a_row_stop(fit, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="more than --max-skips 1 in a row"):
        fit(BrokenLoader, "--on-nan", "skip", "--max-skips", "1")
    # The limit is on what is in a row: with a larger one the epoch ends.
    run = fit(BrokenLoader, "--on-nan", "skip", "--no-val", "--epochs", "2")
    assert [record.skipped_steps for record in read_records(run.log)] == [ITERATIONS] * 2
    assert len(list((run.path / "non-finite").iterdir())) == MOST_REPRODUCTIONS
