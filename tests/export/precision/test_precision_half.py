import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.passes.build import build_model
from export.passes.onnx_graph import OnnxGraph, name_nodes
from export.precision.half import round_to_half, to_half
from export.precision.served_graph import serve_graph
from serving.engines.graph import find_precision
from tests.support.precision_model import scene

SIZE = (64, 96)


@pytest.fixture
def model(make_network, make_params):
    graph = make_network(*SIZE)
    return build_model(graph, make_params(graph, *SIZE), *SIZE)


def answers(model, count=4):
    with serve_graph(model) as served:
        return [served.labels(scene(seed)) for seed in range(count)]


def weight_bytes(model):
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_keeps_the_contract(model):
    half = to_half(model)
    assert [*half.graph.input] == [*model.graph.input]
    assert [*half.graph.output] == [*model.graph.output]
    assert (half.ir_version, half.opset_import[0].version) == (8, 17)
    assert find_precision(half) == "fp16"
    assert weight_bytes(half) < 0.6 * weight_bytes(model)


def test_leaves_the_float32_graph_alone(model):
    before = model.SerializeToString()
    to_half(model)
    assert model.SerializeToString() == before


def test_logits_are_within_one_per_cent(model, run_onnx):
    half = to_half(model)
    images = np.stack([scene(seed)[:64, :96] for seed in range(3)])
    for found, expected in zip(run_onnx(half, images), run_onnx(model, images), strict=True):
        assert found.dtype == expected.dtype
        if found.dtype == np.float32:
            assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()
        else:
            assert (found == expected).mean() > 0.98


def test_serves_nearly_the_same_labels(model):
    same = [np.mean(a == b) for a, b in zip(answers(to_half(model)), answers(model), strict=True)]
    # Random weights leave classes close to each other; trained ones agree on 99.9 %.
    assert np.mean(same) > 0.98


def test_rounds_like_float16(model, run_onnx):
    half = round_to_half(to_half(model))
    names = ["data_half", "merge_half", "sum_half"]
    for name in names:
        half.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found = run_onnx(half, scene(0)[None, :64, :96])
    for values in found[-len(names) :]:
        assert values.dtype == np.float32
        normal = values[np.abs(values) > 1e-4]  # below, float16 keeps fewer bits
        np.testing.assert_array_equal(normal, normal.astype(np.float16).astype(np.float32))
    exact = run_onnx(to_half(model), scene(0)[None, :64, :96])[1]
    assert 0 < np.abs(found[1] - exact).max() < 0.02 * np.abs(exact).max()


def test_matrix_products_are_rounded_too(run_onnx):
    """ONNX Runtime merges scalar factors into products: the roundings' must not be among them."""
    random = np.random.default_rng(2)
    nodes = [
        helper.make_node("Cast", ["image"], ["image_float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["image_float", "a"], ["first"], name="first"),
        helper.make_node("MatMul", ["image_float", "b"], ["second"], name="second"),
        helper.make_node("MatMul", ["first", "second"], ["both"], name="both"),
        helper.make_node("Add", ["both", "both"], ["logits"], name="logits"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 4, 4, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 4, 4])
    weights = [
        numpy_helper.from_array(random.normal(0, 0.01, (3, 4)).astype(np.float32), name)
        for name in ("a", "b")
    ]
    graph = helper.make_graph(nodes, "products", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = random.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    half = to_half(model)
    assert "first_half" in {name for node in half.graph.node for name in node.output}
    (exact,), (found,) = run_onnx(model, values), run_onnx(round_to_half(half), values)
    assert 0 < np.abs(found - exact).max() < 0.01 * np.abs(exact).max()


def test_casts_stand_at_the_ends_alone(model):
    half = OnnxGraph(to_half(model))
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    wide = {c.output[0] for c in casts if c.attribute[0].i == TensorProto.FLOAT}
    assert wide == {"image_float", "logits"}
    resize = half.producer("logits_full_size")
    assert resize.input[0] == "logits"


def test_a_layer_that_does_not_fit_stays_in_float32(model):
    graph = OnnxGraph(model)
    weight = graph.constant("merge_weight").copy()
    weight[0, 0, 0, 0] = 1e5
    graph.set_constant("merge_weight", weight)
    half = OnnxGraph(to_half(model))
    assert half.constant("merge_weight").dtype == np.float32
    assert half.constant("small_conv_weight_half").dtype == np.float16


def test_unnamed_nodes_get_names_of_their_own(model):
    model.graph.node[3].name = model.graph.node[4].name = ""
    model.graph.node[5].name = model.graph.node[6].name
    name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    to_half(model)
