"""``--freeze-bn`` in both trainers, and the static loss scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from training.guard.finite import NonFiniteStep  # noqa: E402
from training.loader import Batch  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

NORMS = ("gamma", "beta", "running_mean", "running_var", "moving_mean", "moving_var")


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(2)
    images = random.standard_normal((2, 3, 64, 64)).astype(np.float32)
    return Batch(images, random.integers(0, 11, (2, 64, 64)).astype(np.uint8), ("a", "b"))


@pytest.fixture(scope="module")
def frozen(batch: Batch, run_script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A symbol, and the arrays that MXNet's steps moved."""
    folder = tmp_path_factory.mktemp("frozen")
    np.savez(folder / "batch.npz", images=batch.images, labels=batch.labels)
    return folder / "network-symbol.json", run_script("frozen_norms", folder)


def learner(symbol: Path, *more: str) -> TorchLearner:
    flags = f"--trainer torch --symbol {symbol} --crop-size 64x64 --no-cuda --batch-size 2"
    made = TorchLearner(parse_options([*flags.split(), *more]), 11)
    made.start(np.ones(11, np.float32))
    return made


def moved(made: TorchLearner, batch: Batch) -> set[str]:
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    for _ in range(2):
        made.step(batch, 0.01)
    after = made.module.state_dict()
    return {
        name.removeprefix("weights.") for name in before
        if not torch.equal(before[name], after[name])
    }  # fmt: skip


@pytest.mark.slow
def test_frozen_batch_norms_keep_all_they_have(frozen: tuple[Path, str], batch: Batch) -> None:
    symbol, told = frozen
    by_mxnet = set(told.split())
    # MXNet wrote the flag into its symbol: a symbol without it has to do as well.
    plain = symbol.with_name("plain-symbol.json")
    plain.write_text(symbol.read_text().replace('"use_global_stats": "True"', '"axis": "1"'))
    assert [name for name in moved(learner(plain), batch) if name.endswith(NORMS)]
    by_torch = moved(learner(plain, "--freeze-bn"), batch)
    assert by_mxnet == by_torch
    assert len(by_mxnet) > 20
    assert not [name for name in by_mxnet if name.endswith(NORMS)]


@pytest.mark.slow
def test_a_static_loss_scale_stays_and_does_not_hide_overflows(
    frozen: tuple[Path, str], batch: Batch
) -> None:
    half = "--dtype", "float16", "--freeze-bn"
    static = learner(frozen[0], *half, "--loss-scale", "128")
    assert moved(static, batch)
    assert static.scaler.get_scale() == 128.0
    too_large = learner(frozen[0], *half, "--loss-scale", "1e36")
    with pytest.raises(NonFiniteStep):
        too_large.step(batch, 0.01)
    assert too_large.scaler.get_scale() == pytest.approx(1e36)
