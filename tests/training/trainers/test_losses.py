"""The loss of the cascade, against its formula in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

Floats = npt.NDArray[np.float32]
CLASSES = 4
SIZES = ((8, 12), (4, 6), (2, 3))


@dataclass(frozen=True)
class Case:
    logits: tuple[Floats, ...]
    labels: tuple[npt.NDArray[np.uint8], ...]
    weights: tuple[float, ...] = (1.0, 0.4, 0.4)
    classes: tuple[float, ...] = (1.0,) * CLASSES
    hard: tuple[float, float] = (0.0, 1.0)

    def expected(self) -> tuple[float, list[Floats]]:
        """Loss, and gradient by logits."""
        table, total, gradients = np.append(self.classes, 0.0), 0.0, []
        for logits, labels, weight in zip(self.logits, self.labels, self.weights, strict=True):
            shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
            log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            index = np.minimum(labels, CLASSES)
            pixel_weights = table[index][:, None]
            one_hot = np.moveaxis(np.eye(CLASSES + 1)[index][..., :CLASSES], -1, 1)
            if self.hard[0]:
                pixel_weights = pixel_weights * self.is_hard((one_hot * log_softmax).sum(1), labels)
            scale = weight / max(pixel_weights.sum(), 1e-6)
            total -= scale * float((one_hot * log_softmax * pixel_weights).sum())
            gradients.append(scale * pixel_weights * (np.exp(log_softmax) - one_hot))
        return total, gradients

    def is_hard(self, log_probability: npt.NDArray[np.float64], labels: Floats) -> Floats:
        """``[N,1,h,w]``, 1 where a pixel is learnt from."""
        counted = labels != 255
        hardest = np.sort(log_probability[counted])
        kept = max(1, int(np.ceil(counted.sum() * self.hard[1])))
        limit = max(np.log(self.hard[0]), hardest[kept - 1] if hardest.size else 0.0)
        return (counted & (log_probability <= limit))[:, None].astype(np.float32)


@dataclass(frozen=True)
class Answer:
    loss: float
    gradients: tuple[Floats, ...]


@dataclass(frozen=True)
class Results:
    cases: dict[str, Case]
    answers: dict[str, Answer]
    balance: Floats


def make_cases() -> dict[str, Case]:
    random = np.random.default_rng(2)
    logits = tuple(random.normal(0, 2, (2, CLASSES, *size)).astype(np.float32) for size in SIZES)
    labels = tuple(random.integers(0, CLASSES, (2, *size)).astype(np.uint8) for size in SIZES)
    for label in labels:
        label[:, 0, :2] = 255
    plain = Case(logits, labels)
    return {
        "plain": plain,
        "doubled": replace(plain, weights=(1.0, 0.8, 0.4)),
        "ignored": replace(plain, labels=tuple(np.full_like(label, 255) for label in labels)),
        "balanced": replace(plain, classes=(0.5, 2.0, 1.0, 3.0)),
        "hard": replace(plain, hard=(0.2, 0.05), classes=(0.5, 2.0, 1.0, 3.0)),
        "hardest": replace(plain, hard=(1e-6, 0.25)),
        "hard_ignored": replace(
            plain, hard=(0.5, 0.1), labels=tuple(np.full_like(label, 255) for label in labels)
        ),
        "huge": replace(plain, logits=tuple(np.sign(a) * np.float32(1e4) for a in logits)),
    }


@pytest.fixture(scope="module")
def results(run_script, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases, computed in one MXNet process."""
    folder: Path = tmp_path_factory.mktemp("losses")
    cases = make_cases()
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "pixels": np.array([100, 400, 0, 500], np.int64),
        "power": np.array(0.5),
    }
    for name, case in cases.items():
        arrays[f"{name}_weights"] = np.array(case.weights)
        arrays[f"{name}_classes"] = np.array(case.classes, np.float32)
        arrays[f"{name}_hard"] = np.array(case.hard)
        for index in range(3):
            arrays[f"{name}_logits{index}"] = case.logits[index]
            arrays[f"{name}_labels{index}"] = case.labels[index]
    np.savez(folder / "input.npz", **arrays)
    run_script("losses", folder / "input.npz", folder / "output.npz")
    with np.load(folder / "output.npz") as found:
        answers = {
            name: Answer(
                float(found[f"{name}_loss"].item()),
                tuple(found[f"{name}_gradient{index}"] for index in range(3)),
            )
            for name in cases
        }
        return Results(cases, answers, found["balance"])


FORMULA_CASES = ["plain", "doubled", "balanced", "hard", "hardest", "hard_ignored", "huge"]


@pytest.mark.parametrize("name", FORMULA_CASES)
def test_pytorchs_loss_and_gradient_are_the_formula_too(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from training.trainers.torch_trainer import LEAST_WEIGHT, PixelLoss

    case = make_cases()[name]
    loss_of = PixelLoss(torch.tensor(case.classes), *case.hard)
    loss, gradients = case.expected()
    logits = [torch.tensor(array, requires_grad=True) for array in case.logits]
    total = torch.zeros(())
    for weight, array, labels in zip(case.weights, logits, case.labels, strict=True):
        summed, counted = loss_of(array, torch.tensor(labels.astype(np.int64)))
        total = total + weight * summed / counted.clamp_min(LEAST_WEIGHT)
    total.backward()
    assert total.item() == pytest.approx(loss, rel=1e-5)
    for array, expected in zip(logits, gradients, strict=True):
        np.testing.assert_allclose(array.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_hard_pixels_are_fewer_than_all(results: Results) -> None:
    moved = {
        name: sum(int((np.abs(g).sum(1) > 0).sum()) for g in results.answers[name].gradients)
        for name in ("plain", "hard", "hardest")
    }
    assert 0 < moved["hardest"] < moved["hard"] < moved["plain"]


@pytest.mark.parametrize("name", FORMULA_CASES)
def test_loss_and_gradient_are_the_formula(results: Results, name: str) -> None:
    loss, gradients = results.cases[name].expected()
    answer = results.answers[name]
    assert answer.loss == pytest.approx(loss, rel=1e-5)
    for found, expected in zip(answer.gradients, gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_doubled_weight_doubles_that_gradient_only(results: Results) -> None:
    plain, doubled = results.answers["plain"].gradients, results.answers["doubled"].gradients
    assert np.abs(plain[1]).max() > 0
    np.testing.assert_allclose(doubled[1], 2 * plain[1], rtol=1e-5)
    for index in (0, 2):
        np.testing.assert_array_equal(doubled[index], plain[index])


def test_ignored_pixels_have_no_gradient(results: Results) -> None:
    for gradient, labels in zip(
        results.answers["plain"].gradients, results.cases["plain"].labels, strict=True
    ):
        strength = np.abs(gradient).sum(1)
        assert (strength[labels == 255] == 0).all()
        assert (strength[labels != 255] > 0).all()


def test_a_batch_that_is_all_ignored_gives_zero(results: Results) -> None:
    answer = results.answers["ignored"]
    assert answer.loss == 0.0
    assert all((gradient == 0).all() for gradient in answer.gradients)


def test_a_class_of_double_weight_counts_as_two(results: Results) -> None:
    """At one output, pixels of class 1 (weight 2) pull four times as hard as of class 0 (0.5)."""
    gradient, labels = results.answers["balanced"].gradients[0], results.cases["plain"].labels[0]
    plain = results.answers["plain"].gradients[0]
    ratio = np.abs(gradient).sum(1) / np.maximum(np.abs(plain).sum(1), 1e-12)
    light, heavy = ratio[labels == 0], ratio[labels == 1]
    np.testing.assert_allclose(heavy.mean() / light.mean(), 4.0, rtol=1e-4)


def test_logits_of_ten_thousand_stay_finite(results: Results) -> None:
    answer = results.answers["huge"]
    assert np.isfinite(answer.loss)
    assert answer.loss > 1e3
    assert all(np.isfinite(gradient).all() for gradient in answer.gradients)


def test_balance_takes_the_median_of_present_classes(results: Results) -> None:
    """Frequencies 0.1, 0.4, 0.5: the median is 0.4; the absent class keeps weight 1."""
    np.testing.assert_allclose(results.balance, [2.0, 1.0, 1.0, 0.8**0.5], rtol=1e-6)
