"""Exported models in a real Triton against the embedded engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.utils import InferenceServerException

from serving.engines.onnxruntime import OnnxEngine
from serving.imaging.geometry import Size
from serving.imaging.restore import labels_from_logits, model_labels
from serving.models.repository import read_model
from tests.support.triton_server import Triton
from tests.support.waiting import wait_for

AGREEMENT = 0.9999
PHOTO = Size(90, 130)  # neither the network's size nor its aspect

pytestmark = pytest.mark.slow


def open_engine(repository: Path, name: str) -> OnnxEngine:
    folder = read_model(repository / name)
    return OnnxEngine(folder.graph(folder.versions[-1]), instances=1, threads=2, max_batch_size=4)


@pytest.fixture(scope="module")
def expected(repository: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The embedded engine's logits of every image."""
    engine = open_engine(repository, "icnet")
    logits = [engine.run(images[i : i + 4]).logits for i in (0, 4)]
    return np.concatenate([batch for batch in logits if batch is not None])


def same(labels: npt.NDArray[np.generic], others: npt.NDArray[np.generic]) -> bool:
    assert labels.shape == others.shape
    return bool((labels == others).mean() >= AGREEMENT)


def check(
    answer: dict[str, npt.NDArray[np.generic]], logits: npt.NDArray[np.float32], relative: float
) -> None:
    """Labels of the graph's own mask, and restored from its logits, for a batch."""
    assert answer["logits"].dtype == np.float32
    assert answer["mask"].dtype == np.uint8
    assert answer["logits"].shape == logits.shape
    assert np.abs(answer["logits"] - logits).max() <= relative * np.abs(logits).max()
    size = Size(*answer["mask"].shape[1:])
    for mask, served, wanted in zip(answer["mask"], answer["logits"], logits, strict=True):
        assert same(mask, model_labels(wanted, size))
        assert same(
            labels_from_logits(served, size, PHOTO), labels_from_logits(wanted, size, PHOTO)
        )


def test_the_images_are_not_trivial(expected: npt.NDArray[np.float32]) -> None:
    assert all(len(np.unique(logits.argmax(0))) >= 3 for logits in expected)
    assert len({logits.argmax(0).tobytes() for logits in expected}) == len(expected)


@pytest.mark.parametrize(("model", "relative"), [("icnet", 1e-6), ("icnet_mxnet", 1e-4)])
def test_answers_what_the_embedded_engine_does(
    triton: Triton,
    images: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    model: str,
    relative: float,
) -> None:
    check(triton.infer(model, images[:3]), expected[:3], relative)


@pytest.mark.parametrize("model", ["shipped", "icnet_int8"])
def test_other_precisions(triton: Triton, repository: Path, model: str) -> None:
    """The shipped model is in half precision."""
    if not (repository / model).is_dir():
        pytest.skip("no model_repository/icnet")
    engine = open_engine(repository, model)
    size = engine.spec.size
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (2, size.height, size.width, 3), np.uint8)
    logits = engine.run(image).logits
    assert logits is not None
    check(triton.infer(model, image), logits, 1e-6)


@pytest.mark.parametrize(("model", "relative"), [("icnet", 1e-6), ("icnet_mxnet", 1e-4)])
def test_requests_of_one_batch_get_their_own_rows(
    triton: Triton,
    images: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    model: str,
    relative: float,
) -> None:
    rows = [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 6), slice(6, 7), slice(7, 8)]
    outputs = [("mask", "logits"), ("logits", "mask"), ("logits",), (), ("mask",), ()]
    before = counts(triton, model)
    with ThreadPoolExecutor(len(rows)) as pool:
        answers = list(pool.map(lambda r, o: triton.infer(model, images[r], *o), rows, outputs))
    for row, names, answer in zip(rows, outputs, answers, strict=True):
        assert set(answer) == set(names or ("mask", "logits"))
        if "mask" not in answer:
            assert np.allclose(answer["logits"], expected[row], atol=1e-2)
        elif "logits" in answer:
            check(answer, expected[row], relative)
        else:
            size = Size(*images.shape[1:3])
            assert same(answer["mask"][0], model_labels(expected[row][0], size))
    assert runs_since(triton, model, before, len(images)) < len(rows)


def test_a_request_that_fails_does_not_take_its_batch_mates(triton: Triton) -> None:
    before = counts(triton, "lookup")

    def ask(index: int) -> float | str:
        try:
            answer = triton.infer("lookup", np.array([[index, 0]], np.int64), "value")
        except InferenceServerException as error:
            return str(error)
        assert list(answer) == ["value"]
        return float(answer["value"][0, 0])

    with ThreadPoolExecutor(4) as pool:
        one, bad, three, four = pool.map(ask, [1, 7, 3, 4])
    assert (one, three, four) == (10.0, 30.0, 40.0)
    assert "onnx runtime error" in str(bad)
    assert ask(2) == 20.0
    assert runs_since(triton, "lookup", before, 4) < 5


def test_requests_of_other_shapes_are_answered_too(triton: Triton) -> None:
    with ThreadPoolExecutor(4) as pool:
        tensors = [np.full((1, length), length, np.int64) for length in (1, 2, 3, 2)]
        answers = list(pool.map(lambda t: triton.infer("lookup", t), tensors))
    for tensor, answer in zip(tensors, answers, strict=True):
        assert np.array_equal(answer["value"], tensor * 10.0)
        assert np.array_equal(answer["negative"], tensor * -10.0)


def test_a_model_without_configuration_gets_one_of_its_graph(triton: Triton) -> None:
    config = triton.client.get_model_config("unconfigured", as_json=True)["config"]
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 4
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"]] == [
        ("index", "TYPE_INT64", ["-1"])
    ]
    assert [t["name"] for t in config["output"]] == ["value", "negative"]
    assert triton.infer("unconfigured", np.array([[2]], np.int64))["negative"].tolist() == [[-20.0]]


def test_a_configuration_that_lies_about_its_graph_is_refused(triton: Triton) -> None:
    assert not triton.client.is_model_ready("mismatched")
    (entry,) = [
        m for m in triton.client.get_model_repository_index().models if m.name == "mismatched"
    ]
    assert "index" in entry.reason
    assert "TYPE_INT32" in entry.reason


@pytest.mark.parametrize("model", ["icnet", "icnet_mxnet"])
def test_images_of_another_size_are_refused(triton: Triton, model: str) -> None:
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        triton.infer(model, np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("model", ["icnet", "icnet_mxnet"])
def test_the_facts_reach_clients(triton: Triton, model: str) -> None:
    config = triton.client.get_model_config(model).config
    assert config.parameters["family"].string_value == "icnet"
    assert config.parameters["palette"].string_value.startswith("#804080 ")
    assert config.backend == {"icnet": "onnxruntime", "icnet_mxnet": "python"}[model]


def counts(triton: Triton, model: str) -> tuple[int, int]:
    """Images and runs so far; Triton counts them behind its answers."""
    (statistics,) = triton.client.get_inference_statistics(model).model_stats
    return int(statistics.inference_count), int(statistics.execution_count)


def runs_since(triton: Triton, model: str, before: tuple[int, int], images: int) -> int:
    """Runs, once that many more images have been counted."""
    wait_for(lambda: counts(triton, model)[0] >= before[0] + images)
    return counts(triton, model)[1] - before[1]
