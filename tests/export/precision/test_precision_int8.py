import io
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console

from export.passes.build import build_model
from export.passes.contract import graph_ends
from export.passes.onnx_graph import OnnxGraph
from export.precision.gate import Comparison, Gate, Limits, Scores
from export.precision.images import ImageFiles, PreparedImages, find_images
from export.precision.quantise import (
    METHODS,
    Recipe,
    calibrate,
    convolutions,
    quantise,
    usable_methods,
)
from export.precision.search import Try, choose, layer_errors, search, tries_table, variants
from export.precision.served_graph import TimeRatio, serve_graph
from export.progress import show_steps
from serving.engines.graph import cut_graph, find_precision
from serving.imaging.geometry import Size
from tests.support.precision_model import scene, write_scenes

SIZE = (64, 96)
RECIPES = {
    "default": Recipe(),
    "first layer in float": Recipe(first_float=True),
    "all layers": Recipe(last_float=False),
    "int8 activations": Recipe(activation="int8"),
    "symmetric": Recipe(activation="int8", symmetric=True),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes"))
    return ImageFiles("scenes", find_images(folder))


@pytest.fixture
def images(source):
    return PreparedImages(source, Size(*SIZE))


@pytest.fixture
def model(make_network, make_params):
    graph = make_network(*SIZE)
    return build_model(graph, make_params(graph, *SIZE), *SIZE)


def labels(model, count=4):
    with serve_graph(model) as served:
        return np.stack([served.labels(scene(100 + seed)) for seed in range(count)])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_keeps_the_contract_and_most_labels(model, images, recipe):
    before = model.SerializeToString()
    quantised = quantise(model, calibrate(model, images, "minmax"), recipe)
    assert model.SerializeToString() == before
    assert [*quantised.graph.input] == [*model.graph.input]
    assert [*quantised.graph.output] == [*model.graph.output]
    assert quantised.ir_version == 8
    assert [(o.domain, o.version) for o in quantised.opset_import] == [("", 17)]
    assert {n.domain for n in quantised.graph.node} == {""}
    assert find_precision(cut_graph(quantised, "logits")) == "int8"
    # Random weights leave classes close to each other; trained ones agree on 99 %.
    assert np.mean(labels(quantised) == labels(model)) > 0.9


def test_weights_have_a_scale_a_channel(model, images):
    graph = OnnxGraph(quantise(model, calibrate(model, images, "minmax"), Recipe()))
    weight = graph.constant("merge_weight_quantized")
    assert weight.dtype == np.int8
    assert np.abs(weight.astype(int)).max() <= 64  # 7 bits
    assert graph.constant("merge_weight_scale").shape == (weight.shape[0],)


def test_float_layers_keep_their_weights(model, images):
    ranges = calibrate(model, images, "minmax")
    recipe = Recipe(first_float=True, float_layers=("merge",))
    graph = OnnxGraph(quantise(model, ranges, recipe))
    for name in ("merge_weight", "large_conv_weight", "small_conv_weight", "score_weight"):
        assert graph.constant(name).dtype == np.float32
    assert graph.constant("pool_conv_weight_quantized") is not None


def test_finds_both_ends(model):
    ends = graph_ends(model)
    assert ends.first == {"large_conv", "small_conv"}
    assert ends.last == {"score"}
    assert {"image_nchw", "centre"} <= ends.before
    assert {"labels", "mask", "logits_full_size"} <= ends.after
    assert not ends.outside & {"merge", "sum", "large_relu"}


def test_takes_several_images_at_once(model, images, run_onnx):
    quantised = quantise(model, calibrate(model, images, "minmax"), Recipe())
    batch = np.stack(images[:3])
    for together, alone in zip(
        run_onnx(quantised, batch), run_onnx(quantised, batch[1:2]), strict=True
    ):
        np.testing.assert_array_equal(together[1], alone[0])


@pytest.mark.parametrize("method", METHODS)
def test_ranges_cover_every_method(model, images, method, capsys):
    seen = []
    ranges = calibrate(model, images, method, lambda: seen.append(1))
    assert len(seen) == len(images)
    assert capsys.readouterr().out == ""
    low, high = (np.asarray(bound).item() for bound in ranges["data"].range_value)
    assert -130 <= low < 0 < high <= 160
    quantise(model, ranges, Recipe(method))


def test_large_networks_are_calibrated_without_histograms(model, monkeypatch):
    assert usable_methods(model) == METHODS
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    assert usable_methods(model) == ("minmax",)


def test_sensitivity_finds_the_layer_that_eight_bits_hurt(model, images):
    # A constant that nobody reads takes the whole range of the tensor in front of "merge".
    graph = OnnxGraph(model)
    bias = graph.constant("small_conv_bias").copy()
    bias[0] = 5000
    graph.set_constant("small_conv_bias", bias)
    for name in ("merge_weight", "pool_conv_weight"):
        weight = graph.constant(name).copy()
        weight[:, 0] = 0
        graph.set_constant(name, weight)
    ranges = calibrate(model, images, "minmax")
    errors = layer_errors(model, ranges, Recipe(), images[:2])
    assert sorted(e.name for e in errors) == sorted(convolutions(model))
    assert {e.name for e in errors[:2]} == {"small_conv", "merge"}  # who writes it, who reads it
    assert all(a.error >= b.error for a, b in pairwise(errors))


def test_search_tries_the_knobs_and_keeps_one_that_passes(model, source, images):
    console = Console(file=io.StringIO(), width=200)
    limits = Limits(min_agreement=90)
    with show_steps(console, 1) as steps:
        gate = Gate(model, source, classes=5)
        found = search(model, images, gate, limits, steps)
        steps.show(tries_table(found.tries, found.chosen))
    recipes = [t.recipe for t in found.tries]
    assert {r.method for r in recipes} == set(METHODS)
    assert {r.activation for r in recipes} == {"uint8", "int8"}
    assert {r.reduce_range for r in recipes} == {True, False}
    assert len(set(recipes)) == len(recipes) == 11
    assert found.chosen.passes
    assert all((t.time is not None) == t.passes for t in found.tries)
    assert all(t.time.low <= t.time.median <= t.time.high for t in found.tries if t.time)
    table = console.file.getvalue()
    assert table.count("→") == 1
    assert table.count("activations") == 11
    assert np.mean(labels(found.model) == labels(model)) > 0.9


def attempt(changed, time=None):
    """A try that changed so many per cent of the labels; ``time`` is median, low, high."""
    scores = Scores(1, None, None)
    ratio = None if time is None else TimeRatio(*time, rounds=9)
    comparison = Comparison(1 - changed / 100, scores, scores)
    return Try(Recipe(), comparison, 1.0, time is not None, ratio)


def test_chooses_the_fastest_that_passes():
    slow = attempt(0.0, (0.9, 0.88, 0.92))
    fast = attempt(0.4, (0.50, 0.49, 0.51))
    wrong = attempt(9.0)
    assert choose([slow, fast, wrong]) is fast
    better = attempt(8.0)
    assert choose([wrong, better]) is better
    assert len(variants(Recipe(), ["a", "b", "c"])) == 8


def test_within_the_noise_the_more_accurate_is_chosen():
    fastest = attempt(0.4, (0.50, 0.49, 0.51))
    for time, equal in (
        ((0.51, 0.505, 0.515), True),  # 2 %: no reason
        ((0.60, 0.50, 0.80), True),  # a noisy measurement says nothing
        ((0.53, 0.525, 0.535), False),  # certainly slower
    ):
        accurate = attempt(0.1, time)
        assert choose([fastest, accurate]) is (accurate if equal else fastest)


def test_onnxruntime_fuses_the_quantised_convolutions(model, images, tmp_path):
    quantised = quantise(model, calibrate(model, images, "minmax"), Recipe())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    content = cut_graph(quantised, "logits").SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 2
