"""The NaN of Multi-Human Parsing (gluon-cv issue 1475): 18 outputs, and a label 18."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.run
from export.symbols.graph import Entry, Graph, Node, write_symbol
from export.symbols.networks import IMAGENET
from serving.palette import LabelSet
from training import train
from training.datasets import dataset_labels, open_dataset
from training.loader import Loader, Mixture
from training.transforms import Augmentation

OUTPUTS = 18
LAST, BEYOND = 17, 18
WRONG = "0002"


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos in MHP's layout, of one person each; one shows some torso, label 18."""
    root: Path = tmp_path_factory.mktemp("mhp")
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    for index in range(4):
        name = f"{index:04}"
        label = np.full((30, 40), index, np.uint8)
        if name == WRONG:
            label[10:20, 10:20] = BEYOND
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / f"images/{name}.jpg")
        Image.fromarray(label).save(root / f"annotations/{name}_01_01.png")
    (root / "train_list.txt").write_text("".join(f"{index:04}.jpg\n" for index in (1, 2, 3, 0)))
    return root


def load_epoch(root: Path, outputs: int) -> int:
    augmentation = Augmentation(32, 32, 40, (1.0, 1.0))
    loader = Loader(
        Mixture(open_dataset("mhp", "train", root), None, 0.0), augmentation, num_classes=outputs,
        batch_size=1, workers=1, seed=1, pixels=IMAGENET,
    )  # fmt: skip
    return sum(len(batch.names) for batch in loader.epoch(0))


def test_the_label_is_refused_by_name_before_any_step(persons: Path) -> None:
    with pytest.raises(ValueError, match="the dataset has more classes") as refused:
        load_epoch(persons, OUTPUTS)
    said = str(refused.value)
    assert f"{WRONG}.jpg" in said
    assert "[18]" in said
    assert "0..17" in said
    assert load_epoch(persons, OUTPUTS + 1) == 3


@pytest.fixture
def end_training(
    persons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """``train.py`` on a network of 18 outputs; its last words."""
    pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")
    score = {"kernel": "(1, 1)", "num_filter": str(OUTPUTS), "no_bias": "True"}
    nodes = (
        Node("null", "data"),
        Node("null", "weight"),
        Node("Convolution", "score", (Entry(0), Entry(1)), score),
    )
    write_symbol(Graph(nodes, (Entry(2),)), tmp_path / "symbol.json")
    flags = (
        f"train.py --trainer torch --no-cuda --dataset mhp --root {persons} --symbol "
        f"{tmp_path / 'symbol.json'} --loss-weights 1 --crop-size 32 --base-size 40 "
        f"--batch-size 1 --epochs 1 --save-dir {tmp_path}"
    )

    def end() -> str:
        monkeypatch.setattr(sys, "argv", flags.split())
        monkeypatch.setattr("warnings.showwarning", train.print_warning)
        with pytest.raises(SystemExit) as ended:
            train.main()
        return str(ended.value.code)

    return end


def test_a_network_of_18_outputs_does_not_start(end_training: Callable[[], str]) -> None:
    assert end_training() == (
        "train.py: the symbol has 18 outputs, the dataset 19 classes: build it for these, or "
        "choose the dataset that it was made for"
    )


def test_a_dataset_that_hides_its_last_class_stops_at_the_photo(
    end_training: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As GluonCV's did, with NUM_CLASS = 18: there is an error where the loss became NaN."""

    def hide_last(name: str, root: Path | None = None) -> LabelSet:
        labels = dataset_labels(name, root)
        return replace(labels, names=labels.names[:OUTPUTS], colors=labels.colors[:OUTPUTS])

    monkeypatch.setattr(train, "dataset_labels", hide_last)
    monkeypatch.setattr(training.run, "dataset_labels", hide_last)
    said = end_training()
    assert f"{WRONG}.jpg: labels [18] are outside 0..17" in said
    assert "the dataset has more classes than the network" in said
    kept = training.run.RunFolder(tmp_path / "mhpv1/icnet/default").newest()
    assert kept is not None, "the photo before it was trained on"
    assert kept.read_state().place == (0, 1)


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
