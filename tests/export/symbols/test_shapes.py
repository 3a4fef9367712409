import math

import numpy as np
import pytest

from export.errors import ExportError, InvalidParams, InvalidSymbol, UnsupportedOperator
from export.lowering.convert import convert
from export.symbols.find import PUBLISHED
from export.symbols.graph import Entry, Graph, Node, read_symbol
from export.symbols.params import Parameters, random_params
from export.symbols.shapes import infer_shapes


def test_icnet_has_the_published_number_of_parameters():
    graph = read_symbol(PUBLISHED / "icnet_resnet50_citys.json.gz")
    shapes = infer_shapes(graph, 1024, 2048)
    sizes = {name: math.prod(shape) for name, shape in shapes.parameters.items()}
    running = sum(size for name, size in sizes.items() if "running" in name)
    assert round((sum(sizes.values()) - running) / 1e6, 3) == 47.489
    assert round(running / 1e6, 3) == 0.061
    heads = [shapes.of(head) for head in graph.heads]
    assert heads == [(1, 19, *s) for s in ((1024, 2048), (256, 512), (128, 256), (64, 128))]


def test_random_params_are_he_normal_and_repeatable(make_network):
    graph = make_network(32, 64)
    first, again = (random_params(graph, 32, 64, seed=5) for _ in range(2))
    assert set(first.auxiliary) == {f"{b}_bn_running_{m}" for b in ("large", "small")
                                    for m in ("mean", "var")}  # fmt: skip
    for name in first.names():
        np.testing.assert_array_equal(first.find(name), again.find(name))
        assert first.find(name).dtype == np.float32
    weight = first.find("merge_weight")
    assert weight.std() == pytest.approx(math.sqrt(2 / (12 * 9)), rel=0.1)


def test_all_unknown_operators_are_named(writer):
    first = writer.add("ROIPooling", "roi", 0)
    graph = writer.graph(writer.add("Custom", "mine", first))
    with pytest.raises(UnsupportedOperator, match="Custom, ROIPooling"):
        convert(graph, Parameters({}, {}), 8, 8)


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("Convolution", {"kernel": "(3, 3, 3)", "num_filter": 4}, "2-D"),
        ("Convolution", {"kernel": "(3, 3)", "num_filter": 4, "layout": "NHWC"}, "NHWC"),
        ("Pooling", {"kernel": "(2, 2)", "pool_type": "median"}, "median"),
        ("Pooling", {"kernel": "(2, 2)", "pooling_convention": "same"}, "same"),
        ("Activation", {"act_type": "gelu"}, "gelu"),
        ("Dropout", {"mode": "always"}, "inference"),
        ("_contrib_BilinearResize2D", {"mode": "to_prime"}, "resizes"),
    ],
)
def test_unknown_attributes_are_refused_by_node(writer, op, attrs, message):
    variables = "weight bias" if op == "Convolution" else ""
    graph = writer.graph(writer.add(op, "it", 0, variables=variables, **attrs))
    with pytest.raises(UnsupportedOperator, match=message) as caught:
        convert(graph, random_params(graph, 8, 8), 8, 8)
    assert "it" in str(caught.value)


def test_shapes_that_do_not_fit_are_refused(writer):
    a = writer.convolution("a", 0, 4)
    b = writer.convolution("b", 0, 4, stride=(2, 2))
    graph = writer.graph(writer.add("elemwise_add", "sum", a, b))
    with pytest.raises(InvalidSymbol, match=r"sum.*another size"):
        infer_shapes(graph, 8, 8)


def test_an_image_that_vanishes_is_refused(writer):
    graph = writer.graph(writer.convolution("a", 0, 4, kernel=3, pad=(0, 0)))
    with pytest.raises(InvalidSymbol, match="empty at 2x2"):
        infer_shapes(graph, 2, 2)


def test_missing_and_misshapen_parameters_are_named(make_network):
    graph = make_network(32, 64)
    good = random_params(graph, 32, 64)
    without = {k: v for k, v in good.arguments.items() if k != "merge_weight"}
    with pytest.raises(InvalidParams, match="merge_weight"):
        convert(graph, Parameters(without, good.auxiliary), 32, 64)
    other = {**good.arguments, "score_bias": np.zeros(7, np.float32)}
    with pytest.raises(InvalidParams, match=r"score_bias is \(7,\)"):
        convert(graph, Parameters(other, good.auxiliary), 32, 64)
    structural = Parameters({"conv1.0.weight": np.zeros((1,), np.float32)}, {})
    with pytest.raises(InvalidParams, match="structural names"):
        convert(graph, structural, 32, 64)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("sum", {"axis": "(0,)"}),
        ("norm", {}),
        ("softmax", {"axis": "0"}),
        ("reverse", {"axis": "(0,)"}),
        ("slice_axis", {"axis": "0", "begin": "0", "end": "1"}),
        ("Reshape", {"shape": "(3, -1)"}),
        ("SliceChannel", {"axis": "0", "num_outputs": "2"}),
        ("LayerNorm", {"axis": "0"}),
        ("argmax", {"axis": "0"}),
    ],
)
def test_operators_that_mix_images_are_refused(writer, op, attrs):
    variables = "gamma beta" if op == "LayerNorm" else ""
    graph = writer.graph(writer.add(op, "it", 0, variables=variables, **attrs))
    with pytest.raises(ExportError, match="it") as caught:
        infer_shapes(graph, 16, 16)
    assert "2147483647" not in str(caught.value)


def test_a_moved_batch_is_no_map(writer):
    turned = writer.add("SwapAxis", "turned", 0, dim1="0", dim2="1")
    graph = writer.graph(writer.convolution("conv", turned, 4))
    with pytest.raises(UnsupportedOperator, match=r"conv.*the batch is not the first axis"):
        infer_shapes(graph, 16, 16)
    back = writer.add("SwapAxis", "back", writer.add("relu", "relu", turned), dim1="0", dim2="1")
    alone = writer.graph(back).pruned([Entry(back)])
    assert infer_shapes(alone, 16, 16).of(alone.heads[0]) == (1, 3, 16, 16)


def test_shapes_of_variables_are_those_noted(writer):
    scale = len(writer.nodes)
    writer.nodes.append(Node("null", "scale", (), {}, {"__shape__": "(1, 3, 1, 1)"}))
    scaled = writer.add("broadcast_mul", "scaled", 0, scale)
    shapes = infer_shapes(writer.graph(scaled), 16, 16)
    assert shapes.parameters == {"scale": (1, 3, 1, 1)}
    writer.nodes[scale] = Node("null", "scale", (), {}, {"__shape__": "(1, 0, 1, 1)"})
    with pytest.raises(InvalidSymbol, match=r"scaled.*reads scale, whose shape is not known"):
        infer_shapes(writer.graph(scaled), 16, 16)


def test_outputs_are_told_apart(writer):
    split = writer.add("_split_v2", "split", 0, indices="(0, 1)", axis="1")
    graph = Graph(tuple(writer.nodes), (Entry(split, 1), Entry(split)))
    shapes = infer_shapes(graph, 16, 16)
    assert shapes.outputs(split) == 2
    assert [shapes.of(head) for head in graph.heads] == [(1, 2, 16, 16), (1, 1, 16, 16)]
    with pytest.raises(InvalidSymbol, match="split has no output 2"):
        infer_shapes(Graph(graph.nodes, (Entry(split, 2),)), 16, 16)
