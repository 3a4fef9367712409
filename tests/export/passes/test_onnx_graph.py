"""The graph that rewrites edit: its index through edits, its shapes, why a node was left alone."""

from __future__ import annotations

import logging
import random

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.passes.build import REWRITES
from export.passes.onnx_graph import OnnxGraph, infer_shapes, make_node


def chain(length: int = 6) -> ModelProto:
    """``length`` nodes, each a Max of the one before and of another tensor."""
    nodes, names = [], ["x"]
    for number in range(length):
        inputs = [names[-1], names[number // 2]]
        nodes.append(make_node("Max", inputs, f"t{number}"))
        names.append(f"t{number}")
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in ("x", names[-1])
    ]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def assert_indexed(graph: OnnxGraph) -> None:
    """The index says of every tensor what a scan of the model's nodes finds."""
    stored = list(graph.graph.node)
    assert [id(node) for node in graph.nodes()] == [id(node) for node in stored]
    for name in {name for node in stored for name in (*node.input, *node.output)}:
        readers = [id(node) for node in stored if name in node.input]
        assert sorted(map(id, graph.consumers(name))) == sorted(readers)
        producers = [id(node) for node in stored if name in node.output]
        found = graph.producer(name)
        assert (id(found) in producers) if producers else found is None


def edit(graph: OnnxGraph, choice: random.Random, number: int) -> None:
    node = choice.choice(graph.nodes())
    tensor = choice.choice(["x", *(n.output[0] for n in graph.nodes())])
    new = make_node("Relu", [tensor], f"new{number}")
    match choice.randrange(9):
        case 0:
            graph.set_input(node, choice.randrange(len(node.input) + 1), tensor)
        case 1:
            graph.set_inputs(node, [tensor, tensor])
        case 2:
            graph.set_output(node, 0, f"renamed{number}")
        case 3:
            graph.remove(node)
        case 4:
            graph.insert_first([new, make_node("Relu", [new.output[0]], f"second{number}")])
        case 5:
            graph.insert_after(node, [new])
        case 6:
            graph.rename(tensor, f"renamed{number}")
        case 7:
            graph.append("Abs", [tensor], f"new{number}")
        case 8:
            other = choice.choice(graph.nodes())
            if other is not node:
                graph.take_over(node, other)


@pytest.mark.parametrize("seed", range(20))
def test_the_index_follows_every_edit(seed: int) -> None:
    graph = OnnxGraph(chain())
    choice = random.Random(seed)
    for number in range(12):
        if graph.nodes():
            edit(graph, choice, number)
            assert_indexed(graph)
    graph.drop_dead()
    assert_indexed(graph)


def test_nodes_of_equal_content_are_told_apart() -> None:
    model = chain(1)
    graph = OnnxGraph(model)
    twin = NodeProto()
    twin.CopyFrom(model.graph.node[0])
    graph.insert_first([twin])
    second = graph.nodes()[1]
    graph.set_output(second, 0, "other")
    graph.remove(second)
    assert [list(node.output) for node in model.graph.node] == [["t0"]]
    with pytest.raises(ValueError, match="is not a node of this graph"):
        graph.remove(second)


def test_an_output_of_the_graph_has_no_single_reader() -> None:
    model = chain(3)
    graph = OnnxGraph(model)
    assert graph.reader("t1") is graph.nodes()[2]
    assert graph.reader("x") is None, "two read it"
    model.graph.output[0].name = "t1"
    assert graph.reader("t1") is None


def test_shapes_are_inferred_without_copying_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.zeros((64, 3, 7, 7), np.float32)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 20, 30])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        make_node("Conv", ["x", "w"], "c"),
        make_node("Resize", ["c", "", "scales"], "r", mode="linear"),
        make_node("Reshape", ["r", "shape"], "y"),
    ]
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([1, 1, 2, 3], np.float32), "scales"),
        numpy_helper.from_array(np.array([0, 12, -1], np.int64), "shape"),
    ]
    graph = helper.make_graph(nodes, "g", [image], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sizes = []
    infer = onnx.shape_inference.infer_shapes

    def watch(probe: ModelProto, **options: bool) -> ModelProto:
        sizes.append(probe.ByteSize())
        return infer(probe, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watch)
    found = infer_shapes(model)
    assert sizes[0] < weight.nbytes / 10
    assert found["c"] == (0, 64, 14, 24)
    assert found["r"] == (0, 64, 28, 72)
    assert found["w"] == weight.shape
    edited = OnnxGraph(model)
    assert edited.shape("c")[1:] == edited.shape("c")[1:] == (64, 14, 24)
    assert len(sizes) == 2, "inferred once, then remembered"
    edited.set_input(edited.nodes()[1], 0, "x")
    assert edited.shape("r")[1:] == (3, 40, 90)


def test_a_rewrite_says_why_it_left_a_node(caplog: pytest.LogCaptureFixture) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    network (float[N, 3, 8, 8] data) => (float[N, c, h, w] y, float[N, c, h, w] z) {
        a = Conv(data, w)
        b = BatchNormalization(a, s, s, s, s)
        z = Relu(a)
        y = BatchNormalization(b, s, s, s, s)
    }"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    constants = {"w": np.ones((2, 3, 1, 1), np.float32), "s": np.ones(2, np.float32)}
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    with caplog.at_level(logging.DEBUG, logger="export.passes"):
        outcome = REWRITES["fold_batch_norm"].apply(OnnxGraph(model))
    assert outcome.applied == ()
    assert outcome.left == {"b": "a has other readers", "y": "no convolution is in front of it"}
    assert "fold_batch_norm leaves b: a has other readers" in caplog.text
