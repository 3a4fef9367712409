import numpy as np
import onnx
import pytest

from export.errors import ExportError, InvalidSymbol
from export.lowering.convert import convert
from export.passes.build import build_model, cut_at_logits, prune_heads
from export.passes.concatenations import factor_pyramid
from export.passes.contract import fold_normalisation, mask_head
from export.passes.convolutions import commute_resize, fold_batch_norm
from export.symbols.networks import IMAGENET_MEAN, IMAGENET_STD
from serving.palette import MAX_CLASSES

SIZE = (32, 64)


def data(batch=2, size=SIZE):
    return np.random.default_rng(1).normal(size=(batch, 3, *size)).astype(np.float32)


def image(batch=2, size=SIZE):
    return np.random.default_rng(2).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def normalised(pixels):
    values = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return values.transpose(0, 3, 1, 2).astype(np.float32)


def op_types(model):
    return [node.op_type for node in model.graph.node]


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_prune_keeps_the_first_head_and_its_parameters(make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    pruned = prune_heads(graph)
    assert set(graph.variables()) - set(pruned.variables()) == {"aux_weight"}
    whole = run_onnx(convert(graph, parameters, *SIZE), data())
    (alone,) = run_onnx(convert(pruned, parameters, *SIZE), data())
    np.testing.assert_array_equal(alone, whole[0])


def test_cut_gives_the_map_before_the_last_resize(make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    cut = cut_at_logits(prune_heads(graph), *SIZE)
    assert (cut.classes, cut.height, cut.width) == (5, 16, 32)
    whole = run_onnx(convert(graph, parameters, *SIZE), data())
    (logits,) = run_onnx(convert(cut.graph, parameters, *SIZE), data())
    np.testing.assert_array_equal(logits, whole[1])


def test_cut_drops_a_softmax(writer):
    score = writer.convolution("score", 0, 4, 1)
    up = writer.resize("up", writer.add("Pooling", "pool", score, kernel="(2, 2)", stride="(2, 2)"),
                       *SIZE)  # fmt: skip
    graph = writer.graph(writer.add("SoftmaxOutput", "softmax", up, variables="label"))
    cut = cut_at_logits(graph, *SIZE)
    assert cut.graph.nodes[cut.graph.heads[0].node].name == "pool"
    assert "softmax_label" not in cut.graph.variables()


@pytest.mark.parametrize("attrs", [{"align_corners": False}, {"height": 16, "width": 32}])
def test_cut_keeps_a_resize_that_the_mask_would_not_repeat(writer, attrs):
    small = writer.convolution("score", 0, 4, stride=(4, 4))
    size = {"height": SIZE[0], "width": SIZE[1], **attrs}
    graph = writer.graph(writer.add("_contrib_BilinearResize2D", "up", small, **size))
    cut = cut_at_logits(graph, *SIZE)
    assert (cut.height, cut.width) == (size["height"], size["width"])


def test_cut_refuses_a_classifier(writer):
    pooled = writer.add("Pooling", "pool", 0, global_pool=True, kernel="(1, 1)")
    graph = writer.graph(writer.add("Flatten", "flat", pooled))
    with pytest.raises(InvalidSymbol, match="flat"):
        cut_at_logits(graph, *SIZE)


def test_fold_batch_norm_is_exact(make_network, make_params, run_onnx):
    graph = prune_heads(make_network(*SIZE))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert fold_batch_norm(model) == 2
    assert "BatchNormalization" not in op_types(model)
    onnx.checker.check_model(model)
    (after,) = run_onnx(model, data())
    assert_close(after, before)


def test_fold_batch_norm_takes_the_bias_along(writer, make_params, run_onnx):
    conv = writer.convolution("conv", 0, 6, no_bias=False)
    graph = writer.graph(writer.batch_norm("bn", conv, eps=0.01, fix_gamma=True))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert fold_batch_norm(model) == 1
    assert op_types(model) == ["Conv"]
    assert len(model.graph.initializer) == 2
    assert_close(run_onnx(model, data())[0], before)


def test_fold_batch_norm_leaves_convolutions_that_others_read(writer, make_params, run_onnx):
    first = writer.batch_norm("first", 0)
    conv = writer.convolution("conv", first, 3)
    norm = writer.batch_norm("bn", conv)
    graph = writer.graph(writer.add("elemwise_add", "sum", conv, norm))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert fold_batch_norm(model) == 0
    np.testing.assert_array_equal(run_onnx(model, data())[0], before)


@pytest.mark.parametrize(
    "attrs",
    [{}, {"kernel": 5}, {"dilate": (2, 2), "pad": (2, 2)}, {"stride": (2, 3)}, {"kernel": 1},
     {"pad": (0, 2)}],
)  # fmt: skip
@pytest.mark.parametrize("order", ["first", "last", "middle"])
def test_factor_pyramid_is_exact(writer, make_params, run_onnx, attrs, order):
    base = writer.convolution("base", 0, 6)
    branches = []
    for bins in (1, 2, 3, 6):
        pooled = writer.add("_contrib_AdaptiveAvgPooling2D", f"pool{bins}", base, output_size=bins)
        reduced = writer.convolution(f"reduce{bins}", pooled, 3, 1)
        branches.append(writer.resize(f"up{bins}", reduced, *SIZE))
    inputs = {"first": [base, *branches], "last": [*branches, base],
              "middle": [*branches[:2], base, 0, *branches[2:]]}[order]  # fmt: skip
    joined = writer.add("Concat", "pyramid", *inputs, dim=1)
    graph = writer.graph(writer.convolution("merge", joined, 4, no_bias=False, **attrs))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert factor_pyramid(model) == 1
    assert "Resize" not in op_types(model)
    onnx.checker.check_model(model, full_check=True)
    assert_close(run_onnx(model, data())[0], before)


def test_factor_pyramid_leaves_large_branches_and_shared_concatenations(writer, make_params):
    base = writer.convolution("base", 0, 6, stride=(2, 2))
    joined = writer.add("Concat", "joined", 0, writer.resize("up", base, *SIZE), dim=1)
    conv = writer.convolution("conv", joined, 4)
    graph = writer.graph(writer.add("Concat", "both", conv, joined, dim=1))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    names = op_types(model)
    assert factor_pyramid(model) == 0
    assert op_types(model) == names


@pytest.mark.parametrize("aligned", [True, False])
def test_commute_resize_is_exact(writer, make_params, run_onnx, aligned):
    small = writer.convolution("small", 0, 8, stride=(4, 4))
    size = {"height": SIZE[0], "width": SIZE[1], "align_corners": aligned}
    up = writer.add("_contrib_BilinearResize2D", "up", small, **size)
    graph = writer.graph(writer.convolution("score", up, 4, 1, no_bias=False))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, data())
    assert commute_resize(model) == 1
    assert op_types(model) == ["Conv", "Conv", "Resize"]
    assert model.graph.output[0].name == model.graph.node[-1].output[0]
    onnx.checker.check_model(model, full_check=True)
    assert_close(run_onnx(model, data())[0], before)


@pytest.mark.parametrize("why", ["shrinks", "more channels", "3x3", "shared"])
def test_commute_resize_leaves_what_would_not_get_cheaper(writer, make_params, why):
    small = writer.convolution("small", 0, 8, stride=(4, 4))
    up = writer.resize("up", small, *((4, 4) if why == "shrinks" else SIZE))
    score = writer.convolution(
        "score", up, 16 if why == "more channels" else 8, 3 if why == "3x3" else 1
    )
    if why == "shared":
        score = writer.add("elemwise_add", "sum", score, up)
    graph = writer.graph(score)
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    assert commute_resize(model) == 0


def test_fold_normalisation_is_exact_with_padding_and_resizes(make_network, make_params, run_onnx):
    graph = prune_heads(make_network(*SIZE))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, normalised(image()))
    assert fold_normalisation(model) == 2
    assert op_types(model)[:3] == ["Transpose", "Cast", "Sub"]
    assert "Mul" not in op_types(model)
    onnx.checker.check_model(model)
    (after,) = run_onnx(model, image())
    assert_close(after, before)


@pytest.mark.parametrize("reader", ["batch_norm", "grouped", "sum"])
def test_fold_normalisation_keeps_the_scale_where_it_must(writer, make_params, run_onnx, reader):
    conv = writer.convolution("conv", 0, 3)
    if reader == "batch_norm":
        other = writer.batch_norm("bn", 0)
    elif reader == "grouped":
        other = writer.convolution("depthwise", 0, 3, num_group=3)
    else:
        other = 0
    graph = writer.graph(writer.add("elemwise_add", "sum", conv, other))
    model = convert(graph, make_params(graph, *SIZE), *SIZE)
    (before,) = run_onnx(model, normalised(image()))
    assert fold_normalisation(model) == 0
    assert_close(run_onnx(model, image())[0], before)


def test_mask_is_the_argmax_of_the_full_size_head(make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    full = run_onnx(convert(graph, parameters, *SIZE), data())[0]
    model = convert(cut_at_logits(prune_heads(graph), *SIZE).graph, parameters, *SIZE)
    mask_head(model, *SIZE)
    onnx.checker.check_model(model)
    mask, logits = run_onnx(model, data())
    assert mask.dtype == np.uint8
    assert logits.shape == (2, 5, 16, 32)
    np.testing.assert_array_equal(mask, full.argmax(1))


def test_heads_are_chosen_by_name(make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    parameters = make_params(graph, *SIZE)
    only_logits = build_model(graph, parameters, *SIZE, heads=["logits"])
    assert [o.name for o in only_logits.graph.output] == ["logits"]
    assert "ArgMax" not in op_types(only_logits)
    only_mask = build_model(graph, parameters, *SIZE, heads=["mask"])
    assert [o.name for o in only_mask.graph.output] == ["mask"]
    both = build_model(graph, parameters, *SIZE)
    np.testing.assert_array_equal(run_onnx(only_mask, image())[0], run_onnx(both, image())[0])
    np.testing.assert_array_equal(run_onnx(only_logits, image())[0], run_onnx(both, image())[1])
    for heads in ([], ["labels"]):
        with pytest.raises(ExportError, match="--head"):
            build_model(graph, parameters, *SIZE, heads=heads)


def test_too_many_classes_are_refused(make_network, make_params):
    graph = make_network(*SIZE, classes=MAX_CLASSES + 1)
    with pytest.raises(ExportError, match=f"{MAX_CLASSES + 1} classes"):
        build_model(graph, make_params(graph, *SIZE), *SIZE)


def test_the_contract(make_network, make_params, run_onnx):
    graph = make_network(*SIZE)
    model = build_model(graph, make_params(graph, *SIZE), *SIZE)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    described = {
        v.name: (v.type.tensor_type.elem_type,
                 [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    }  # fmt: skip
    assert described == {
        "image": (onnx.TensorProto.UINT8, ["N", 32, 64, 3]),
        "mask": (onnx.TensorProto.UINT8, ["N", 32, 64]),
        "logits": (onnx.TensorProto.FLOAT, ["N", 5, 16, 32]),
    }
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    again = build_model(graph, make_params(graph, *SIZE), *SIZE)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
    batch = image(3)
    together = run_onnx(model, batch)
    for i in range(3):
        for one, all_of_them in zip(run_onnx(model, batch[i : i + 1]), together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[i], rtol=0, atol=1e-5)
