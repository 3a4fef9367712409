"""Image pooling as a bias, PSPNet's pyramid at awkward sizes, and heads without a final resize."""

import math

import numpy as np
import onnx
import pytest

from export.errors import InvalidSymbol, UnsupportedOperator
from export.lowering.convert import convert
from export.passes.build import build_model, cut_at_logits, with_logits
from export.passes.concatenations import factor_pyramid, image_pooling_bias
from export.passes.convolutions import fold_batch_norm
from export.symbols.params import Parameters, random_params
from export.symbols.shapes import infer_shapes

SIZE = (26, 34)


def data(batch=2, size=SIZE):
    return np.random.default_rng(1).normal(size=(batch, 3, *size)).astype(np.float32)


def op_types(model):
    return [node.op_type for node in model.graph.node]


def assert_close(found, expected, bound=2e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def pooled_branch(writer, source, name, channels=4, size=SIZE):
    pooled = writer.add("Pooling", f"{name}_pool", source, global_pool=True, kernel="(1, 1)",
                        pool_type="avg")  # fmt: skip
    reduced = writer.batch_norm(
        f"{name}_bn", writer.convolution(f"{name}_conv", pooled, channels, 1)
    )
    return writer.resize(f"{name}_up", writer.add("relu", f"{name}_relu", reduced), *size)


@pytest.mark.parametrize("order", ["last", "first", "middle"])
@pytest.mark.parametrize("attrs", [{}, {"no_bias": False}, {"kernel": 3, "pad": (0, 0)},
                                   {"stride": (2, 2)}])  # fmt: skip
def test_image_pooling_becomes_a_bias(writer, make_params, run_onnx, order, attrs):
    """Per image: two different ones in a batch keep their own."""
    base = writer.convolution("base", 0, 6)
    wide = writer.convolution("wide", base, 5, dilate=(2, 2), pad=(2, 2))
    pool = pooled_branch(writer, base, "image")
    inputs = {"last": [base, wide, pool], "first": [pool, base, wide],
              "middle": [base, pool, wide]}[order]  # fmt: skip
    joined = writer.add("Concat", "aspp", *inputs, dim=1)
    attrs = {"kernel": 1, **attrs}
    projected = writer.convolution("project", joined, 7, **attrs)
    graph = writer.graph(writer.add("relu", "out", projected))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    fold_batch_norm(model)
    assert image_pooling_bias(model) == 1
    assert "Resize" not in op_types(model)
    onnx.checker.check_model(model, full_check=True)
    assert_close(run_onnx(model, data())[0], before)


def test_two_constant_branches_and_one_other(writer, make_params, run_onnx):
    base = writer.convolution("base", 0, 6)
    branches = [pooled_branch(writer, base, "one"), base, pooled_branch(writer, 0, "two", 3)]
    joined = writer.add("Concat", "aspp", *branches, dim=1)
    graph = writer.graph(writer.convolution("project", joined, 7, 1))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert image_pooling_bias(model) == 1
    # The concatenation of two single positions is all that is left of them.
    assert op_types(model).count("Concat") == 1
    assert_close(run_onnx(model, data())[0], before)


@pytest.mark.parametrize("why", ["padding", "shared", "grouped", "all constant"])
def test_image_pooling_stays_where_it_must(writer, make_params, run_onnx, why):
    base = writer.convolution("base", 0, 4)
    branches = [pooled_branch(writer, base, "image"), base]
    if why == "all constant":
        branches[1] = pooled_branch(writer, 0, "other")
    joined = writer.add("Concat", "aspp", *branches, dim=1)
    kernel = 3 if why == "padding" else 1
    groups = 2 if why == "grouped" else 1
    project = writer.convolution("project", joined, 8, kernel, num_group=groups)
    if why == "shared":
        project = writer.add("elemwise_add", "sum", project, joined)
    graph = writer.graph(project)
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    assert image_pooling_bias(model) == 0


@pytest.mark.parametrize("size", [(128, 256), (89, 125), (44, 60), (12, 18)])
def test_pspnets_pyramid_at_its_own_sizes(writer, make_params, run_onnx, size):
    """1/8 of 1024x2048 and 712x1000 is not divisible by 3 or 6."""
    reduced = writer.convolution("base", 0, 8)
    branches = [reduced]
    for bins in (1, 2, 3, 6):
        pooled = writer.add("_contrib_AdaptiveAvgPooling2D", f"pool{bins}", reduced,
                            output_size=bins)  # fmt: skip
        branch = writer.batch_norm(f"bn{bins}", writer.convolution(f"conv{bins}", pooled, 2, 1))
        branches.append(writer.resize(f"up{bins}", writer.add("relu", f"r{bins}", branch), *size))
    joined = writer.add("Concat", "psp", *branches, dim=1)
    graph = writer.graph(writer.batch_norm("bn", writer.convolution("merge", joined, 5)))
    model = convert(graph, make_params(graph, *size), *size)
    pools = op_types(model).count("AveragePool")
    assert pools == sum(size[0] % n == size[1] % n == 0 for n in (2, 3, 6))
    values = data(1, size)
    (before,) = run_onnx(model, values)
    fold_batch_norm(model)
    assert factor_pyramid(model) == 1
    assert "Resize" not in op_types(model)
    assert_close(run_onnx(model, values)[0], before, 5e-6)


def msra_head(writer, height, width):
    """A score map at 1/16, the 32x32/16 deconvolution, Crop, SoftmaxOutput; probabilities first."""
    small = writer.convolution("down", 0, 5, stride=(8, 8), kernel=3)
    score = writer.convolution("score", small, 5, stride=(2, 2), kernel=3, no_bias=False)
    large = writer.add("Deconvolution", "upsampling", score, variables="weight", num_filter=5,
                       num_group=5, kernel=(32, 32), stride=(16, 16))  # fmt: skip
    crop = writer.add("Crop", "crop", large, 0, num_args=2, offset=(8, 8))
    softmax = writer.add("SoftmaxOutput", "softmax", crop, variables="label", multi_output=True)
    return writer.graph(softmax)


def test_a_head_that_ends_in_a_deconvolution(writer, make_params, run_onnx):
    """Its logits are as large as the image, its softmax is dropped, no label is asked for."""
    size = (45, 70)
    graph = msra_head(writer, *size)
    parameters = make_params(graph, *size)
    assert "softmax_label" not in parameters.names()
    (probabilities,) = run_onnx(convert(graph, parameters, *size), data(1, size))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    cut = cut_at_logits(graph, *size)
    assert (cut.classes, cut.height, cut.width) == (5, *size)
    (logits,) = run_onnx(convert(cut.graph, parameters, *size), data(1, size))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(shifted / shifted.sum(1, keepdims=True), probabilities, atol=1e-5)
    model = build_model(graph, parameters, *size)
    onnx.checker.check_model(model, full_check=True)
    image = np.random.default_rng(3).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    mask, found = run_onnx(model, image)
    assert found.shape == (2, 5, *size)
    np.testing.assert_array_equal(mask, found.argmax(1))
    assert "Resize" not in op_types(model)


@pytest.mark.parametrize("deformable", [False, True])
def test_confidence_is_the_winners_softmax(writer, make_params, run_onnx, deformable):
    """Of both opsets, whose reductions differ."""
    base = writer.convolution("base", 0, 4, stride=(2, 2))
    if deformable:
        offset = writer.convolution("offset", base, 18)
        base = writer.add("_contrib_DeformableConvolution", "deform", base, offset, num_filter=4,
                          variables="weight", kernel=(3, 3), pad=(1, 1), no_bias=True)  # fmt: skip
    score = writer.convolution("score", base, 5, no_bias=False)
    graph = writer.graph(writer.resize("up", score, *SIZE))
    parameters = make_params(graph, *SIZE)
    heads = ["logits", "confidence", "mask"]
    model = build_model(graph, parameters, *SIZE, heads=heads)
    onnx.checker.check_model(model, full_check=True)
    assert [o.name for o in model.graph.output] == ["mask", "confidence", "logits"]
    (full,) = run_onnx(convert(graph, parameters, *SIZE), data(1))
    values = np.full((1, *SIZE, 3), (123, 116, 103), np.uint8)
    mask, confidence, _ = run_onnx(model, values)
    assert confidence.dtype == np.uint8
    assert confidence.shape == mask.shape == (1, *SIZE)
    only = build_model(graph, parameters, *SIZE, heads=["confidence"])
    np.testing.assert_array_equal(run_onnx(only, values)[0], confidence)
    shares = np.exp(full - full.max(1, keepdims=True))
    expected = np.rint(255 * shares.max(1) / shares.sum(1))
    from export.passes.contract import mask_head

    plain = convert(cut_at_logits(graph, *SIZE).graph, parameters, *SIZE)
    mask_head(plain, *SIZE, heads=["confidence"])
    (found,) = run_onnx(plain, data(1))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.99


ENDS = [
    ("softmax", {"axis": 1}, True), ("log_softmax", {"axis": -3}, True),
    ("SoftmaxActivation", {"mode": "channel"}, True), ("sigmoid", {}, True),
    ("Activation", {"act_type": "sigmoid"}, True), ("LogisticRegressionOutput", {}, True),
    ("softmax", {}, False), ("softmax", {"axis": 1, "temperature": -2}, False),
    ("softmin", {"axis": 1}, False), ("Activation", {"act_type": "relu"}, False),
    ("SoftmaxActivation", {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs", "dropped"), ENDS)
def test_drops_what_changes_no_winner(writer, op, attrs, dropped):
    score = writer.convolution("score", 0, 4, 1)
    blocked = writer.add("BlockGrad", "block", score)
    graph = with_logits(writer.graph(writer.add(op, "out", blocked, **attrs)), 16, 16)
    assert (graph.nodes[graph.heads[0].node].name == "score") == dropped


@pytest.mark.parametrize("resized", [False, True])
@pytest.mark.parametrize("op", ["LogisticRegressionOutput", "sigmoid"])
def test_one_channel_behind_a_sigmoid_is_two_classes(writer, run_onnx, op, resized):
    score = writer.convolution("score", 0, 1, 1, stride=(2, 2))
    end = writer.resize("full", score, 16, 24) if resized else score
    graph, size = writer.graph(writer.add(op, "out", end)), (16, 24)
    cut = cut_at_logits(graph, *size)
    assert (cut.classes, cut.height, cut.width) == (2, 8, 12)
    parameters = random_params(graph, *size)
    image = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    (logits,) = run_onnx(convert(cut.graph, parameters, *size), image)
    (whole,) = run_onnx(convert(graph.pruned(graph.heads), parameters, *size), image)
    assert not logits[:, 0].any()
    if not resized:
        np.testing.assert_array_equal(logits.argmax(1), whole[:, 0] > 0.5)


def test_one_channel_without_a_sigmoid_is_refused(writer):
    graph = writer.graph(writer.convolution("depth", 0, 1, 1))
    with pytest.raises(InvalidSymbol, match=r"depth gives one channel.*sigmoid"):
        cut_at_logits(graph, 16, 16)


def test_bilinear_deconvolution_of_random_params(writer):
    """The fixed kernel: what it upsamples from a constant is constant inside."""
    weight = random_params(msra_head(writer, 45, 70), 45, 70).find("upsampling_weight")
    assert weight.shape == (5, 1, 32, 32)
    taps = weight[0, 0].reshape(2, 16, 2, 16).sum(axis=(0, 2))
    np.testing.assert_allclose(taps, 1, atol=1e-6)


def test_random_statistics_are_not_neutral(make_network):
    from export.symbols.params import random_params

    graph = make_network(32, 64)
    varied = random_params(graph, 32, 64, neutral=False)
    for name in ("large_bn_gamma", "large_bn_beta"):
        assert varied.find(name).std() > 0.02
    assert varied.auxiliary["large_bn_running_var"].min() > 0.4
    assert math.isclose(varied.find("score_bias").mean(), 0, abs_tol=0.3)
    again = random_params(graph, 32, 64, neutral=False)
    np.testing.assert_array_equal(varied.find("merge_weight"), again.find("merge_weight"))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Convolution", {"kernel": "(3, 3)", "num_filter": 4, "stride": "(0, 1)"}),
        ("Convolution", {"kernel": "(3, 3)", "num_filter": 4, "pad": "(1,)"}),
        ("Convolution", {"kernel": "(3, 3)", "num_filter": "1e15"}),
        ("Convolution", {"kernel": "(3, 3)", "num_filter": "inf"}),
        ("Convolution", {"kernel": "(3, 3)", "num_filter": "4.5"}),
        ("Deconvolution", {"kernel": "(3, 3)", "num_filter": 4, "target_shape": "(900, 900)"}),
        ("Deconvolution", {"kernel": "(3, 3)", "num_filter": 4, "num_group": 0}),
        ("Pooling", {"kernel": "(2, 2)", "stride": "(0, 0)"}),
        ("Crop", {"h_w": "(4, 4)", "offset": "(30, 30)", "num_args": 1}),
        ("Crop", {"h_w": "(4,)", "num_args": 1}),
        ("_contrib_BilinearResize2D", {"height": 10**6, "width": 10**6}),
        ("_contrib_AdaptiveAvgPooling2D", {"output_size": 10**6}),
        ("Reshape", {"shape": "(0, -1, -1)"}),
        ("Reshape", {"shape": "(0, 7)"}),
        ("Reshape", {"shape": "(0, -4, 2)"}),
        ("slice_axis", {"axis": 2, "begin": 5, "end": 90}),
    ],
)
def test_impossible_attributes_are_errors_that_name_the_node(writer, op, attrs):
    variables = "weight bias" if op.endswith("volution") else ""
    attrs = {"no_bias": False, **attrs} if variables else attrs
    graph = writer.graph(writer.add(op, "it", 0, variables=variables, **attrs))
    with pytest.raises(InvalidSymbol, match="it"):
        infer_shapes(graph, *SIZE)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("slice_axis", {"axis": 0, "begin": 0, "end": 0}),
        ("Reshape", {"shape": "(1, -1)"}),
        ("Reshape", {"shape": "(0, -1)", "reverse": True}),
        ("transpose", {"axes": "(1, 0, 2, 3)"}),
        ("transpose", {}),
        ("mean", {"axis": 0}),
        ("Pad", {"mode": "constant", "pad_width": "(0, 0, 1, 1, 0, 0, 0, 0)"}),
        ("Pad", {"mode": "wrap", "pad_width": "(0, 0, 0, 0, 1, 1, 1, 1)"}),
        ("UpSampling", {"scale": 2, "sample_type": "cubic"}),
        ("Cast", {"dtype": "float16"}),
        ("SoftmaxOutput", {}),
    ],
)
def test_unknown_attributes_are_errors_that_name_the_node(writer, op, attrs):
    graph = writer.graph(writer.add(op, "it", 0, **attrs))
    with pytest.raises((UnsupportedOperator, InvalidSymbol), match="it"):
        convert(graph, Parameters({}, {}), *SIZE)
