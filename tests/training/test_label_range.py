"""The NaN of Multi-Human Parsing (gluon-cv issue 1475): 18 outputs, and a label 18."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from export.pixels import IMAGENET
from training.datasets.base import Sample, SegmentationDataset
from training.loader import Loader, Mixture
from training.transforms import Augmentation

OUTPUTS = 18
LAST, BEYOND = 17, 18
Pixels = npt.NDArray[np.uint8]


class Persons:
    """MHP v1 has 18 parts of persons and the background: labels 0 to 18 (torso skin)."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        label: Pixels = np.full((40, 40), index, np.uint8)
        if index == 2:
            label[10:20, 10:20] = BEYOND
        return np.zeros((40, 40, 3), np.uint8), label

    def name(self, index: int) -> str:
        return f"annotations/{index:04}_01_01.png"


def load_epoch(outputs: int) -> int:
    dataset: SegmentationDataset = Persons()
    augmentation = Augmentation(32, 32, 40, (1.0, 1.0))
    loader = Loader(
        Mixture(dataset, None, 0.0), augmentation, num_classes=outputs, batch_size=2, workers=1,
        seed=1, pixels=IMAGENET,
    )  # fmt: skip
    return sum(len(batch.names) for batch in loader.epoch(0))


def test_the_label_is_refused_by_name_before_any_step() -> None:
    with pytest.raises(ValueError, match="the dataset has more classes") as refused:
        load_epoch(OUTPUTS)
    said = str(refused.value)
    assert "annotations/0002_01_01.png" in said
    assert "[18]" in said
    assert "0..17" in said
    assert load_epoch(OUTPUTS + 1) == 4


@pytest.fixture(scope="module")
def answer(run_script, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Four pixels of label 18 beside four of 5, whose last class is 200 below the others."""
    folder: Path = tmp_path_factory.mktemp("labels")
    logits = np.random.default_rng(4).standard_normal((1, OUTPUTS, 2, 4)).astype(np.float32)
    logits[:, LAST, :, 2:] -= 200
    labels = np.full((1, 2, 4), BEYOND, np.float32)
    labels[0, 0] = 5
    np.savez(folder / "case.npz", logits=logits, labels=labels)
    run_script("label_out_of_range", folder)
    with np.load(folder / "answer.npz") as file:
        return {"logits": logits, **{name: file[name] for name in file.files}}


def test_without_the_check_the_reported_loss_is_infinite(answer: dict[str, np.ndarray]) -> None:
    """The report clips the label to 17; the softmax of what is far below the others is 0."""
    logits, reported = answer["logits"].astype(np.float64), answer["softmax_output_loss"]
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(reported[0, 1, :2], -log_probability[0, LAST, 1, :2], rtol=1e-5)
    assert np.isposinf(reported[0, 1, 2:]).all()
    assert not np.isfinite(reported.mean())


def test_its_gradient_pushes_all_classes_down(answer: dict[str, np.ndarray]) -> None:
    """No class of such a pixel is raised; the gradient is finite, so the weights stay numbers."""
    gradient = answer["softmax_output_gradient"]
    assert np.isfinite(gradient).all()
    assert (gradient[0, :, 1] >= 0).all()
    assert (gradient[0, :, 1].sum(0) > 0.01).all()
    np.testing.assert_allclose(gradient[0, :, 0].sum(0), 0, atol=1e-6)


def test_log_softmax_stays_finite(answer: dict[str, np.ndarray]) -> None:
    """A label that slips through counts as ignored."""
    assert np.isfinite(answer["ours_loss"])
    assert np.abs(answer["ours_gradient"][0, :, 1]).max() == 0
    np.testing.assert_allclose(answer["ours_gradient"][0].sum(0), 0, atol=1e-6)
