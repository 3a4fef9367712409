"""Convolutions by Winograd's form against ONNX Runtime's own, and against float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.engines import winograd, winograd_cost
from serving.engines.acceleration import Acceleration
from serving.engines.onnxruntime import OnnxEngine
from serving.engines.winograd import Rewritten, apply_winograd, replace_convolutions
from serving.engines.winograd_cost import Layer, Plan, choose_plan, count_tiles
from serving.engines.winograd_tiles import minimal, tile_stretch, transform_filters

Array = npt.NDArray[np.float32]
# Of the largest output.
BOUND = 1e-5


def make_layer(
    layer: Layer, *, bias: bool = True, seed: int = 0, **attributes: object
) -> onnx.ModelProto:
    """One convolution with random weights, and a ReLU behind it."""
    rng = np.random.default_rng(seed)
    shape = (layer.outputs, layer.inputs, 3, 3)
    weights = rng.standard_normal(shape).astype(np.float32) / np.sqrt(9 * layer.inputs)
    constants = [numpy_helper.from_array(weights.astype(np.float32), "w")]
    if bias:
        constants.append(
            numpy_helper.from_array(rng.standard_normal(layer.outputs, np.float32), "b")
        )
    given = {
        "kernel_shape": [3, 3], "dilations": [layer.dilation] * 2, "pads": [layer.dilation] * 4,
        **attributes,
    }  # fmt: skip
    names = ["x", "w", "b"][: 2 + bias]
    nodes = [
        helper.make_node("Conv", names, ["c"], **given),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    size = ["N", layer.inputs, layer.height, layer.width]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", layer.outputs, None, None])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto | Rewritten, images: Array) -> Array:
    factors: Mapping[str, Array] = {}
    if isinstance(model, Rewritten):
        model, factors = model.model, model.factors
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": images, **factors})
    return np.asarray(found, np.float32)


def images_for(layer: Layer, count: int = 2) -> Array:
    shape = (count, layer.inputs, layer.height, layer.width)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def kinds(model: onnx.ModelProto | Rewritten) -> set[str]:
    graph = model.model.graph if isinstance(model, Rewritten) else model.graph
    return {node.op_type for node in graph.node}


def test_minimal_filtering_is_the_filter() -> None:
    base = minimal()
    rng = np.random.default_rng(0)
    inputs, taps = rng.standard_normal(6), rng.standard_normal(3)
    found = base.leave @ ((base.taps @ taps) * (base.enter @ inputs))
    np.testing.assert_allclose(found, np.correlate(inputs, taps), atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
def test_a_stretch_filters_all_its_outputs(outputs: int, dilation: int) -> None:
    stretch = tile_stretch(outputs, dilation)
    assert stretch.tiles == count_tiles(outputs, dilation)
    rng = np.random.default_rng(outputs)
    inputs, taps = rng.standard_normal(outputs + 2 * dilation), rng.standard_normal(3)
    factors = np.repeat(minimal().taps @ taps, stretch.tiles)
    found = stretch.leave @ (factors * (stretch.enter @ inputs))
    expected = [inputs[i : i + 2 * dilation + 1 : dilation] @ taps for i in range(outputs)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_factors_are_those_of_both_axes() -> None:
    weights = np.random.default_rng(0).standard_normal((5, 70, 3, 3)).astype(np.float32)
    found = transform_filters(weights)
    taps = minimal().taps
    expected = np.einsum("ai,kcij,bj->abck", taps, weights.astype(np.float64), taps)
    assert found.shape == (36, 70, 5)
    assert found.ctypes.data % 64 == 0
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.reshape(36, 70, 5), rtol=1e-5, atol=1e-6)


PIECES = {
    "whole": (Layer(8, 6, 12, 16, 1), Plan(12, 16)),
    "odd size": (Layer(8, 6, 11, 15, 1), Plan(11, 15)),
    "dilated": (Layer(8, 6, 12, 16, 2), Plan(12, 16)),
    "dilated beyond the map": (Layer(4, 3, 5, 6, 7), Plan(5, 6)),
    "strips": (Layer(8, 6, 13, 16, 2), Plan(4, 16)),
    "patches": (Layer(8, 6, 12, 24, 1), Plan(12, 8)),
    "strips of patches": (Layer(8, 6, 21, 32, 4), Plan(8, 16)),
    "one row, one column": (Layer(3, 2, 1, 1, 1), Plan(1, 1)),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_put_the_map_together(name: str) -> None:
    layer, plan = PIECES[name]
    model = make_layer(layer)
    rewritten = replace_convolutions(model, lambda given: plan if given == layer else None)
    onnx.checker.check_model(rewritten.model, full_check=True)
    assert "Conv" not in kinds(rewritten)
    expected = run(model, images_for(layer))
    found = run(rewritten, images_for(layer))
    assert np.abs(found - expected).max() < BOUND * np.abs(expected).max()


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_layer_of_many_channels_is_replaced_and_stays_near_float64(dilation: int) -> None:
    layer = Layer(320, 256, 24, 32, dilation)
    assert choose_plan(layer) is not None
    model = make_layer(layer, bias=False)
    rewritten = apply_winograd(model)
    assert "Conv" in kinds(model)
    assert "Conv" not in kinds(rewritten)
    images = images_for(layer, 1)
    expected = run(model, images)
    assert np.abs(run(rewritten, images) - expected).max() < BOUND * np.abs(expected).max()


LAYER = Layer(256, 256, 24, 32, 1)


@pytest.mark.parametrize(
    "attributes",
    [{"strides": [2, 2]}, {"pads": [0, 0, 0, 0]}, {"dilations": [1, 2], "pads": [1, 2, 1, 2]},
     {"pads": [1, 1, 0, 0]}, {"auto_pad": "SAME_UPPER", "pads": None}],
)  # fmt: skip
def test_other_convolutions_are_left(attributes: dict[str, object]) -> None:
    assert "Conv" not in kinds(apply_winograd(make_layer(LAYER)))
    model = make_layer(LAYER, **attributes)
    assert apply_winograd(model).model is model


def test_layers_that_gain_nothing_are_left() -> None:
    for layer in (
        Layer(64, 64, 256, 512, 1),
        Layer(128, 128, 64, 128, 1),
        Layer(512, 512, 2, 2, 1),
    ):
        assert choose_plan(layer) is None


def test_a_size_that_is_not_known_is_left() -> None:
    model = make_layer(LAYER)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    assert apply_winograd(model).model is model


def test_half_precision_is_left() -> None:
    model = make_layer(LAYER)
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert apply_winograd(model).model is model


def test_factors_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_layer(LAYER)
    monkeypatch.setattr(winograd, "MAX_FACTOR_BYTES", LAYER.factor_bytes)
    assert apply_winograd(model).model is not model
    monkeypatch.setattr(winograd, "MAX_FACTOR_BYTES", LAYER.factor_bytes - 1)
    assert apply_winograd(model).model is model


def test_the_bound_is_of_all_factors_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers one after the other: what the first takes is not left for the second."""
    model = make_layer(LAYER)
    (weight,) = [t for t in model.graph.initializer if t.name == "w"]
    again = numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), "w2")
    model.graph.initializer.append(again)
    second = helper.make_node("Conv", ["y", "w2"], ["z"], kernel_shape=[3, 3], pads=[1] * 4)
    model.graph.node.append(second)
    model.graph.output[0].name = "z"
    model.graph.value_info.append(
        helper.make_tensor_value_info(
            "y", TensorProto.FLOAT, ["N", LAYER.outputs, LAYER.height, LAYER.width]
        )
    )
    expected = run(model, images_for(LAYER, 1))
    for layers in (2, 1, 0):
        for spare in (0, LAYER.factor_bytes - 1):
            bound = layers * LAYER.factor_bytes + spare
            monkeypatch.setattr(winograd, "MAX_FACTOR_BYTES", bound)
            found = apply_winograd(model)
            left = [n.output[0] for n in found.model.graph.node if n.op_type == "Conv"]
            assert left == ["c", "z"][layers:]
            assert len(found.factors) == layers
            difference = np.abs(run(found, images_for(LAYER, 1)) - expected).max()
            assert difference < 2 * BOUND * np.abs(expected).max()


def test_large_maps_are_cut_into_strips_and_patches() -> None:
    layer = Layer(2048, 512, 128, 256, 1)
    plan = choose_plan(layer)
    assert plan is not None
    assert plan.rows < layer.height
    assert plan.columns < layer.width
    tall, wide = 6 * count_tiles(plan.rows, 1), 6 * count_tiles(plan.columns, 1)
    sums = tall * wide * (layer.width // plan.columns) * layer.inputs
    assert 4 * sums <= winograd_cost.MAX_STRIP_BYTES


def test_the_engine_serves_it_and_can_be_told_not_to(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make_contract(), path)
    images = np.random.default_rng(2).integers(0, 256, (2, 24, 32, 3), np.uint8)

    def logits(*, winograd: bool) -> Array:
        engine = OnnxEngine(
            path, instances=1, threads=1, max_batch_size=2,
            acceleration=Acceleration(winograd=winograd),
        )  # fmt: skip
        found = engine.run(images).logits
        assert found is not None
        return found

    plain, fewer = logits(winograd=False), logits(winograd=True)
    difference = np.abs(plain - fewer).max()
    assert 0 < difference < BOUND * np.abs(plain).max()


def make_contract() -> onnx.ModelProto:
    """``image`` -> a 1x1 convolution to 256 channels -> 3x3 -> ``logits`` of two classes."""
    rng = np.random.default_rng(0)
    shapes = {"wide": (256, 3, 1, 1), "middle": (256, 256, 3, 3), "narrow": (2, 256, 1, 1)}
    constants = [
        numpy_helper.from_array(
            (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "wide"], ["many"]),
        helper.make_node("Conv", ["many", "middle"], ["more"], pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["more"], ["positive"]),
        helper.make_node("Conv", ["positive", "narrow"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 24, 32, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, 24, 32])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
