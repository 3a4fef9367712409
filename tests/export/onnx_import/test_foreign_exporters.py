"""Graphs as PaddleSeg and MMSegmentation export them, imported and compared with themselves."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest

from export.verify import example_images
from tests.support.foreign_graphs import INT32, INT64, write_mmdeploy, write_paddleseg
from tests.support.import_command import IMAGENET, normalised, open_imported, run_import
from tests.support.precision_model import write_scenes

SIZE = (37, 52)
FIVE = ("--classes", "a,b,c,d,e")
IMAGES = example_images(*SIZE)
HEAD, FULL = (10, 13), SIZE


@pytest.fixture
def run(tmp_path):
    return partial(run_import, tmp_path / "repository")


@pytest.fixture
def served(tmp_path):
    return partial(open_imported, tmp_path / "repository")


def expected(path):
    """The labels that the file itself gives for images that NumPy normalised."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    found = [session.run(None, {image.name: one[None]})[0][0] for one in normalised(IMAGES)]
    scores = np.stack(found)
    if np.issubdtype(scores.dtype, np.integer) or scores.shape[1] == 1:
        return scores.reshape(len(IMAGES), *SIZE)
    return scores.argmax(1)


def check(path, served_model, logits, classes=5):
    folder, predict = served_model
    labels = expected(path)
    found = predict(IMAGES)
    assert len(np.unique(labels)) > 1
    assert (found["mask"] == labels).mean() >= 0.9999
    assert found["logits"].shape == (3, classes, *logits)
    # The batch is free, and nothing is left to compute of shapes.
    assert folder.max_batch_size == 4
    kinds = {node.op_type for node in onnx.load(str(folder.graph(1))).graph.node}
    assert kinds.isdisjoint({"Shape", "Slice", "Gather", "BatchNormalization", "Constant"})
    told = folder.config.parameters["provenance"].string_value
    assert "100.0000% equal labels" in told
    return told


@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
@pytest.mark.parametrize(
    ("coordinates", "logits"),
    [("align_corners", HEAD), ("half_pixel", FULL), ("asymmetric", FULL)],
)
def test_paddleseg(run, served, tmp_path, output_op, coordinates, logits):
    path = write_paddleseg(tmp_path / "net.onnx", output_op=output_op, coordinates=coordinates)
    result = run(path, *FIVE, *IMAGENET, "--size", "37x52")
    told = check(path, served(result), logits)
    assert "opset 11 converted to 17" in told


@pytest.mark.parametrize(
    "form",
    [
        {"label_type": INT64},
        {"label_type": INT32, "separate_sizes": True},
        {"opset": 13, "output_op": "softmax"},
        {"opset": 16},
    ],
)
def test_other_forms_of_paddleseg(run, served, tmp_path, form):
    path = write_paddleseg(tmp_path / "net.onnx", **form)
    check(path, served(run(path, *FIVE, *IMAGENET, "--size", "37x52")), FULL)


def test_paddleseg_needs_a_size(run, tmp_path):
    result = run(write_paddleseg(tmp_path / "net.onnx"), *FIVE, *IMAGENET)
    assert result.exit_code == 1
    assert "--size" in result.stderr


@pytest.mark.parametrize("static", [None, SIZE], ids=["dynamic", "static"])
@pytest.mark.parametrize(("aligned", "logits"), [(True, HEAD), (False, FULL)])
@pytest.mark.parametrize("ending", ["argmax", "softmax"])
def test_mmsegmentation(run, served, tmp_path, ending, aligned, logits, static):
    path = write_mmdeploy(tmp_path / "net.onnx", ending=ending, aligned=aligned, static=static)
    size = () if static else ("--size", "37x52")
    check(path, served(run(path, *FIVE, *IMAGENET, *size)), logits)


def test_mmsegmentation_at_opset_13(run, served, tmp_path):
    path = write_mmdeploy(tmp_path / "net.onnx", opset=13)
    check(path, served(run(path, *FIVE, *IMAGENET, "--size", "37x52")), FULL)


@pytest.mark.parametrize(("aligned", "logits"), [(True, HEAD), (False, FULL)])
def test_one_channel_that_the_network_compares_itself(run, served, tmp_path, aligned, logits):
    """MMSegmentation gives 0.0 and 1.0; the scores in front of the comparison are found."""
    path = write_mmdeploy(tmp_path / "net.onnx", ending="sigmoid", aligned=aligned)
    given = ("--classes", "a,b", *IMAGENET, "--size", "37x52")
    told = check(path, served(run(path, *given)), logits, classes=2)
    assert "two classes by the threshold 0.3 on one channel" in told
    result = run(path, *given, "--threshold", "0.5")
    assert result.exit_code == 1
    assert "compares with 0.3 itself: leave --threshold out" in result.stderr


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("write", [write_paddleseg, write_mmdeploy])
def test_other_precisions(run, served, tmp_path, write, precision):
    """The gate, its images and its flags are those of ``export``."""
    path = write(tmp_path / "net.onnx")
    photos = write_scenes(tmp_path / "photos")
    given = (*FIVE, *IMAGENET, "--size", "37x52", "--precision", precision)
    result = run(path, *given, "--calibration", photos, "--min-agreement", "80")
    folder, predict = served(result, f"net_{precision}")
    assert f"net_{precision} version 1, 5 classes, 37x52, {precision}" in result.stdout
    assert (predict(IMAGES)["mask"] == expected(path)).mean() > 0.8
    parameters = {key: value.string_value for key, value in folder.config.parameters.items()}
    assert "family" not in parameters
    assert "2 images of photos, held out" in parameters["accuracy"]
    weights = {t.data_type for t in onnx.load(str(folder.graph(1))).graph.initializer}
    wanted = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    assert wanted in weights
    refused = run(path, *given, "--calibration", photos, "--min-agreement", "100")
    assert refused.exit_code == 1
    assert "less than --min-agreement 100" in refused.stderr
    assert folder.versions == (1,)
    assert not (tmp_path / "repository" / f"net_{precision}" / "2").exists()


def test_int8_needs_images_before_the_work(run, tmp_path):
    result = run(tmp_path / "absent.onnx", *FIVE, *IMAGENET, "--precision", "int8")
    assert result.exit_code == 1
    assert "--calibration DIR" in result.stderr
