"""The first layers in 8 bits, on the image's own bytes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from export.passes.build import build_model
from export.passes.onnx_graph import OnnxGraph
from export.precision.first_layers import centre_bytes
from export.precision.quantise import Recipe, calibrate, quantise
from export.symbols.networks import Pixels
from serving.engines.graph import cut_graph
from training.datasets.synthetic import render_scene

SIZE = (64, 96)
GRAY = Pixels((0.4, 0.4, 0.4), (0.2, 0.25, 0.3))  # 102 levels, in every channel
IMAGES = [render_scene(seed, *SIZE).image for seed in range(4)]


def build(writer, make_params, pixels, *, shrink=False, pad=1, heads=("logits",)):
    """A convolution of the image, or of it at half size, and a classifier."""
    source = writer.resize("shrink", 0, 32, 48) if shrink else 0
    first = writer.convolution("first", source, 6, pad=(pad, pad))
    score = writer.convolution("score", first, 5, 1, no_bias=False)
    graph = writer.graph(writer.resize("full", score, *SIZE))
    return build_model(graph, make_params(graph, *SIZE), *SIZE, heads, pixels=pixels)


def rewritten(model):
    copy = ModelProto()
    copy.CopyFrom(model)
    image = centre_bytes(copy)
    onnx.checker.check_model(copy, full_check=True)
    return copy, image


def first_layer(model, run_onnx):
    """What ``first`` gives for the images."""
    copy = cut_graph(model, "logits")
    value = onnx.helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, None)
    copy.graph.output.append(value)
    return run_onnx(copy, np.stack(IMAGES))[1]


def weights(model):
    return np.abs(OnnxGraph(model).constant("first_weight")).sum(axis=(1, 2, 3)).max()


def test_a_gray_mean_changes_nothing(writer, make_params, run_onnx):
    model = build(writer, make_params, GRAY)
    copy, image = rewritten(model)
    assert image.zero_point == 102
    assert [t.source for t in image.tensors] == ["image_nchw"]
    before, after = (first_layer(m, run_onnx) for m in (model, copy))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


def test_another_mean_changes_what_is_padded_with_alone(writer, make_params, run_onnx):
    model = build(writer, make_params, Pixels())
    copy, image = rewritten(model)
    assert image.zero_point == 114
    before, after = (first_layer(m, run_onnx) for m in (model, copy))
    inside = np.s_[:, :, 1:-1, 1:-1]
    largest = np.abs(before).max()
    np.testing.assert_allclose(after[inside], before[inside], atol=1e-5 * largest)
    difference = np.abs(after - before).max()
    assert 1e-4 * largest < difference <= 10.5 * weights(model)


def test_resizes_lose_less_than_a_level(writer, make_params, run_onnx):
    model = build(writer, make_params, GRAY, shrink=True)
    copy, image = rewritten(model)
    assert [t.centred for t in image.tensors] == ["shrink"]
    before, after = (first_layer(m, run_onnx) for m in (model, copy))
    difference = after - before
    assert 0 < np.abs(difference).max() <= weights(model)
    # Half a level is given back: without it the mean of a filter is off by half of its weights.
    offset = np.abs(difference.mean(axis=(0, 2, 3))).max()
    assert offset < 0.1 * weights(model)


@pytest.mark.parametrize("shrink", [False, True])
def test_onnxruntime_converts_nothing_before_the_first_layer(writer, make_params, tmp_path, shrink):
    model = build(writer, make_params, Pixels(), shrink=shrink)
    quantised = quantise(model, calibrate(model, IMAGES, "minmax"), Recipe())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    content = quantised.SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    first = next(i for i, node in enumerate(nodes) if node.op_type == "QLinearConv")
    assert {node.op_type for node in nodes[:first]} <= {"Resize", "Transpose", "Reshape"}


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(first_float=True),
        Recipe(float_layers=("first",)),
        Recipe(activation="int8"),
        Recipe(activation="int8", symmetric=True),
    ],
    ids=str,
)
def test_other_recipes_normalise_in_float(writer, make_params, recipe):
    model = build(writer, make_params, Pixels())
    quantised = quantise(model, calibrate(model, IMAGES, "minmax"), recipe)
    assert "centre" in {node.name for node in quantised.graph.node}


@pytest.mark.parametrize("why", ["another reader", "a colourful mean", "an output"])
def test_stays_as_it_is_where_it_must(writer, make_params, why):
    pixels = Pixels((0.2, 0.5, 0.9), (0.2, 0.2, 0.2)) if why == "a colourful mean" else Pixels()
    model = build(writer, make_params, pixels)
    if why == "another reader":
        model.graph.node.append(onnx.helper.make_node("Relu", ["data"], ["unread"]))
    if why == "an output":
        value = onnx.helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    before = model.SerializeToString()
    assert centre_bytes(model) is None
    assert model.SerializeToString() == before
