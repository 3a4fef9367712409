"""First layers in 8 bits on four columns at once: the same integers, and nothing moved for it."""

import numpy as np
import onnx
import onnxruntime
import pytest

from export.passes.build import build_model
from export.passes.onnx_graph import OnnxGraph
from export.precision.quantise import Recipe, calibrate, quantise
from training.datasets.synthetic import render_scene

HEIGHT, WIDTH = 32, 48


def build(writer, make_params, *, kernel=3, stride=2, pad=1, dilate=1, width=WIDTH, shrink=False):
    """A convolution of the image, or of it at half size, and a classifier."""
    height = HEIGHT
    source = 0
    if shrink:
        height, width = height // 2, width // 2
        source = writer.resize("shrink", 0, height, width)
    first = writer.convolution(
        "first", source, 6, kernel, pad=(pad, pad), stride=(stride, stride), dilate=(dilate, dilate)
    )
    score = writer.convolution("score", first, 5, 1, no_bias=False)
    full = (HEIGHT, width * 2 if shrink else width)
    graph = writer.graph(writer.resize("full", score, *full))
    return build_model(graph, make_params(graph, *full), *full, ("logits",))


def images(model):
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:3]
    return [render_scene(seed, *size).image for seed in range(4)]


def quantise_both(model):
    """Without four columns at once, and with."""
    ranges = calibrate(model, images(model), "minmax")
    return [quantise(model, ranges, Recipe(four_columns=each)) for each in (False, True)]


def first_channels(model):
    """That the filters of the first convolution read."""
    graph = OnnxGraph(model)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    return graph.constant(graph.producer(conv.input[1]).input[0]).shape[1]


@pytest.mark.parametrize(
    ("kernel", "stride", "pad"),
    [
        (3, 2, 1),
        (3, 1, 1),
        (7, 2, 3),
        (5, 2, 2),
        (5, 1, 2),
        (1, 1, 0),
        (1, 2, 0),
        (4, 4, 0),
        (2, 2, 0),
    ],
)
@pytest.mark.parametrize("shrink", [False, True])
def test_the_same_to_the_bit(writer, make_params, run_onnx, kernel, stride, pad, shrink):
    model = build(writer, make_params, kernel=kernel, stride=stride, pad=pad, shrink=shrink)
    plain, packed = quantise_both(model)
    assert (first_channels(plain), first_channels(packed)) == (3, 12)
    batch = np.stack(images(model))
    before, after = (run_onnx(each, batch)[0] for each in (plain, packed))
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("shrink", [False, True])
def test_nothing_moves_for_it(writer, make_params, tmp_path, shrink):
    model = build(writer, make_params, shrink=shrink)
    moves = []
    for number, each in enumerate(quantise_both(model)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        options.log_severity_level = 3
        content = each.SerializeToString()
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        moves.append(sorted(node.name for node in nodes if node.op_type == "Transpose"))
        first = next(i for i, node in enumerate(nodes) if node.op_type == "QLinearConv")
        assert {n.op_type for n in nodes[:first]} <= {"Resize", "Transpose", "Reshape"}
    assert len(moves[1]) == len(moves[0])


@pytest.mark.parametrize(
    "layer",
    [{"width": 46}, {"kernel": 3, "stride": 3, "pad": 0}, {"dilate": 2, "pad": 2, "stride": 1},
     {"kernel": 3, "stride": 2, "pad": 0}],
    ids=str,
)  # fmt: skip
def test_stays_as_it_is_where_columns_do_not_fit(writer, make_params, layer):
    model = build(writer, make_params, **layer)
    plain, packed = quantise_both(model)
    assert first_channels(packed) == 3
    assert packed == plain
