"""The graphs that are compared: the same network in other forms."""

import cv2
import numpy as np
import onnxruntime
import pytest

from benchmarks.engines.onnxruntime import open_on_cpu
from benchmarks.studies.quantised import LOGITS, MASK, graphs
from export.symbols.graph import Entry, Graph, Node
from serving.engines.graph import cut_graph, find_precision
from training.datasets.synthetic import render_scene

SIZE = (32, 64)


def convolution(name, source, filters, stride):
    attributes = {"kernel": "(3, 3)", "pad": "(1, 1)", "stride": stride, "num_filter": filters}
    inputs = (source, Entry(source.node + 1), Entry(source.node + 2))
    variables = [Node("null", f"{name}_weight"), Node("null", f"{name}_bias")]
    return [*variables, Node("Convolution", name, inputs, attributes)]


@pytest.fixture(scope="module")
def network():
    """Three convolutions, and a resize to the image."""
    grow = {"height": str(SIZE[0]), "width": str(SIZE[1])}
    nodes = [
        Node("null", "data"),
        *convolution("first", Entry(0), "8", "(2, 2)"),
        *convolution("middle", Entry(3), "8", "(1, 1)"),
        *convolution("score", Entry(6), "5", "(1, 1)"),
        Node("_contrib_BilinearResize2D", "full", (Entry(9),), grow),
    ]
    return Graph(tuple(nodes), (Entry(10),))


@pytest.fixture(scope="module")
def image():
    return render_scene(3, *SIZE).image[None]


def test_compares_one_network_in_three_forms(tmp_path, network, image):
    for number in range(3):
        scene = render_scene(number, *SIZE).image
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), scene[..., ::-1])
    found = graphs(network, SIZE, tmp_path)
    assert next(iter(found)) == ("plain float32", MASK)
    precisions = {title: find_precision(model) for (title, _), model in found.items()}
    assert precisions == {
        "plain float32": "fp32",
        "float32": "fp32",
        "int8, first layers in float": "int8",
        "int8": "int8",
    }
    masks = [
        open_on_cpu(cut_graph(model, output), 1).run(None, {"image": image})[0]
        for (_, output), model in found.items()
        if output == MASK
    ]
    assert np.mean(masks[0] == masks[1]) >= 0.9999
    assert all(np.mean(mask == masks[0]) > 0.8 for mask in masks[2:])
    logits = open_on_cpu(cut_graph(found["int8", LOGITS], LOGITS), 1)
    assert isinstance(logits, onnxruntime.InferenceSession)
    assert [output.name for output in logits.get_outputs()] == [LOGITS]
