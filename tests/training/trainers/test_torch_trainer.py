"""The PyTorch trainer computes what MXNet's does, and trains from the symbol alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.symbols.graph import read_symbol  # noqa: E402
from export.symbols.params import read_params  # noqa: E402
from training.loader import Batch  # noqa: E402
from training.options import TrainOptions, parse_options  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

CLASSES, HEIGHT, WIDTH = 11, 64, 96
# float64 on both sides: what differs is the order of sums.
RELATIVE = 1e-6


@pytest.fixture(scope="module")
def step(run_script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MXNet's step: its symbol, weights, gradients, and the batch."""
    folder = tmp_path_factory.mktemp("step")
    random = np.random.default_rng(5)
    labels = random.integers(0, CLASSES, (2, HEIGHT, WIDTH)).astype(np.uint8)
    labels[0, :20] = 255
    images = random.standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    weights = random.uniform(0.5, 2.0, CLASSES).astype(np.float32)
    np.savez(folder / "batch.npz", images=images, labels=labels, weights=weights)
    run_script("one_step", folder)
    return folder


def options(symbol: Path, *more: str) -> TrainOptions:
    flags = f"--trainer torch --symbol {symbol} --crop-size {HEIGHT}x{WIDTH} --base-size {WIDTH}"
    recipe = "--no-cuda --batch-size 2 --epochs 2 --lr 0.02 --head-lr-mult 1 --weight-decay 0"
    return parse_options([*flags.split(), *recipe.split(), *more])


def read(path: Path) -> Mapping[str, npt.NDArray[np.float64]]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def difference(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(np.abs(one - other).max() / max(1e-12, np.abs(one).max()))


def test_one_step_equals_mxnets(step: Path) -> None:
    expected, given = read(step / "step.npz"), read(step / "batch.npz")
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    learner.read_parameters(step / "before.params")
    learner.module.double()
    learner.start(given["weights"].astype(np.float32))
    learner.loss = replace(learner.loss, class_weights=learner.loss.class_weights.double())
    batch = Batch(given["images"].astype(np.float64), given["labels"], ("a", "b"))
    before = {name: w.detach().clone() for name, w in learner.module.weights.items()}
    loss = learner.step(batch, rate=0.5)
    assert loss == pytest.approx(float(expected["loss"].item()), rel=RELATIVE)
    largest = max(float(np.abs(v).max()) for k, v in expected.items() if k.startswith("grad:"))
    names = [name.removeprefix("grad:") for name in expected if name.startswith("grad:")]
    assert sorted(names) == sorted(before)
    for name in names:
        gradient = learner.module.weights[name].grad.numpy()
        wanted = expected[f"grad:{name}"]
        # A gradient that is zero but for rounding is compared on the scale of the others.
        assert np.abs(gradient - wanted).max() <= RELATIVE * max(np.abs(wanted).max(),
                                                                 1e-6 * largest), name  # fmt: skip
        moved = before[name].numpy() - learner.module.weights[name].detach().numpy()
        np.testing.assert_allclose(moved, 0.5 * gradient, rtol=1e-9, atol=1e-12)
    states = [name.removeprefix("state:") for name in expected if name.startswith("state:")]
    assert sorted(states) == sorted(dict(learner.module.named_buffers()))
    for name in states:
        state = learner.module.variable(name).numpy()
        assert difference(expected[f"state:{name}"], state) <= RELATIVE, name


def test_weights_travel_through_the_same_file(step: Path, tmp_path: Path) -> None:
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    learner.read_parameters(step / "before.params")
    learner.write_parameters(tmp_path / "again.params")
    learner.write_symbol(tmp_path / "network-symbol.json")
    one, other = read_params(step / "before.params"), read_params(tmp_path / "again.params")
    assert sorted(one.arguments) == sorted(other.arguments)
    assert sorted(one.auxiliary) == sorted(other.auxiliary)
    for name in one.names():
        np.testing.assert_array_equal(one.find(name), other.find(name))
    assert read_symbol(tmp_path / "network-symbol.json") == read_symbol(
        step / "network-symbol.json"
    )


def test_a_foreign_file_is_refused_by_name(step: Path, tmp_path: Path) -> None:
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    narrow = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    name = next(iter(narrow.module.weights))
    narrow.module.weights[name] = torch.nn.Parameter(torch.zeros(1, 2))
    narrow.write_parameters(tmp_path / "narrow.params")
    with pytest.raises(ValueError, match=name):
        learner.read_parameters(tmp_path / "narrow.params")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        learner.read_parameters(tmp_path / "nowhere.params")


def test_an_all_ignored_batch_gives_zero_and_moves_nothing(step: Path) -> None:
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    before = {name: w.detach().clone() for name, w in learner.module.weights.items()}
    images = np.random.default_rng(1).standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    labels = np.full((2, HEIGHT, WIDTH), 255, np.uint8)
    assert learner.step(Batch(images, labels, ("a", "b")), 0.1) == 0.0
    for name, weight in learner.module.weights.items():
        assert torch.equal(weight, before[name]), name


def stepped(step: Path, batch: Batch, *flags: str) -> TorchLearner:
    learner = TorchLearner(options(step / "network-symbol.json", *flags), CLASSES)
    learner.read_parameters(step / "before.params")
    learner.module.double()
    learner.start(np.ones(CLASSES, np.float32))
    learner.loss = replace(learner.loss, class_weights=learner.loss.class_weights.double())
    learner.step(batch, 0.1)
    return learner


def given_batch(step: Path, repeats: int = 1) -> Batch:
    given = read(step / "batch.npz")
    images, labels = (np.concatenate([given[name]] * repeats) for name in ("images", "labels"))
    return Batch(images.astype(np.float32), labels.astype(np.uint8), ("a", "b") * repeats)


@pytest.mark.parametrize("more", [(), ("--ohem", "0.1", "--ohem-share", "0.25")])
def test_accumulated_parts_add_up_to_the_batch(step: Path, more: tuple[str, ...]) -> None:
    """The batch is one pair twice: each half has the whole's statistics, and its hard pixels."""
    batch = given_batch(step, repeats=2)
    batch = Batch(batch.images.astype(np.float64), batch.labels, batch.names)
    whole = stepped(step, batch, "--batch-size", "4", *more)
    parts = stepped(step, batch, "--batch-size", "4", "--accumulate", "2", *more)
    for name, weight in whole.module.weights.items():
        expected, found = weight.grad.numpy(), parts.module.weights[name].grad.numpy()
        assert np.abs(found - expected).max() <= 1e-9 * max(1e-3, np.abs(expected).max()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_learns_a_batch(step: Path, dtype: str) -> None:
    """float16 skips its first steps, until the loss scale is small enough."""
    learner = TorchLearner(options(step / "network-symbol.json", "--dtype", dtype), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    batch = given_batch(step)
    losses = [learner.step(batch, 0.05) for _ in range(10)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert {w.dtype for w in learner.module.weights.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in learner.module.state_dict().values())


def test_convolutions_run_with_the_channels_last(step: Path) -> None:
    """Weights, images and every map of several channels and positions."""
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    learner.start(np.ones(CLASSES, np.float32))
    found: dict[str, bool] = {}

    def watch(name: str, value: torch.Tensor) -> None:
        if value.dim() == 4 and value[0, 0].numel() > 1:
            found[name] = value.is_contiguous(memory_format=torch.channels_last)

    learner.module.watch = watch
    learner.step(given_batch(step), 0.1)
    assert len(found) > 50
    assert all(found.values()), [name for name, last in found.items() if not last]
    kernels = [w for w in learner.module.weights.values() if w.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


def test_averaged_weights_are_what_is_scored_and_saved(step: Path, tmp_path: Path) -> None:
    learner = TorchLearner(options(step / "network-symbol.json", "--ema", "0.9"), CLASSES)
    learner.read_parameters(step / "before.params")
    learner.start(np.ones(CLASSES, np.float32))
    name = next(iter(learner.module.weights))
    expected = learner.module.weights[name].detach().numpy().copy()
    for count in range(1, 4):
        learner.step(given_batch(step), 0.1)
        decay = min(0.9, (1 + count) / (10 + count))
        expected += (1 - decay) * (learner.module.weights[name].detach().numpy() - expected)
    learner.write_parameters(tmp_path / "average.params")
    saved = read_params(tmp_path / "average.params").find(name)
    np.testing.assert_allclose(saved, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(saved - learner.module.weights[name].detach().numpy()).max() > 1e-4
    served = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    served.read_parameters(tmp_path / "average.params")
    image = given_batch(step).images[0]
    np.testing.assert_allclose(learner.logits(image), served.logits(image), rtol=1e-4, atol=1e-4)


def test_fine_tuning_takes_what_fits(step: Path, tmp_path: Path) -> None:
    learner = TorchLearner(options(step / "network-symbol.json"), CLASSES)
    name = next(name for name in learner.module.weights if name.endswith("_cls_weight"))
    kept = learner.module.weights[name]
    other = TorchLearner(options(step / "network-symbol.json", "--seed", "9"), CLASSES)
    other.module.weights[name] = torch.nn.Parameter(torch.zeros(3, *kept.shape[1:]))
    other.write_parameters(tmp_path / "other.params")
    before = kept.detach().clone()
    assert learner.read_parameters(tmp_path / "other.params", partial=True) == (name,)
    assert torch.equal(learner.module.weights[name], before)
    first = next(iter(learner.module.weights))
    assert torch.equal(learner.module.weights[first], other.module.weights[first])
