"""Each rewrite on graphs written by hand: exact where it applies, and what it must leave alone.

Shapes, paddings and strides differ between the axes, so that no test passes with them swapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from export.passes.concatenations import factor_pyramid, image_pooling_bias
from export.passes.contract import fold_normalisation, mask_head
from export.passes.convolutions import commute_resize, fold_batch_norm
from export.symbols.networks import Pixels

HEIGHT, WIDTH = 12, 21
CORNERS = 'mode="linear", coordinate_transformation_mode="align_corners"'


def network(body: str, output: str = "y", opset: int = 17, **shapes: tuple[int, ...]) -> ModelProto:
    """A model of ONNX's own text, ``data`` [N,3,12,21] to ``output``; constants by their shapes.

    Constants that the body does not name are left out. They are random; those whose name begins
    with ``var`` are positive, and ``to_...`` are a resize's scales of height and width.
    """
    version = {17: 8, 19: 9}[opset]
    text = f"""<ir_version: {version}, opset_import: ["" : {opset}]>
    network (float[N, 3, {HEIGHT}, {WIDTH}] data) => (float[N, c, h, w] {output}) {{ {body} }}"""
    model = onnx.parser.parse_model(re.sub(r"\s+", " ", text).replace("<>", ""))
    for node in model.graph.node:
        node.name = node.output[0]
    random = np.random.default_rng(5)
    used = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name not in used:
            continue
        if name.startswith("to_"):
            values = np.array([1, 1, *shape], np.float32)
        else:
            values = random.normal(size=shape).astype(np.float32)
        if name.startswith("var"):
            values = np.abs(values) + np.float32(0.5)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: ModelProto, batch: int = 2) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = np.random.default_rng(1).normal(size=(batch, 3, HEIGHT, WIDTH)).astype(np.float32)
    (found,) = session.run(None, {"data": values})
    return np.asarray(found)


def assert_exact(model: ModelProto, rewrite: Callable[[ModelProto], int], count: int) -> None:
    """The rewrite applies ``count`` times, and the network answers the same."""
    before = run(model)
    assert rewrite(model) == count
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model), before, rtol=0, atol=3e-6 * np.abs(before).max())


def assert_left(model: ModelProto, rewrite: Callable[[ModelProto], int]) -> None:
    """The rewrite does not apply and changes nothing."""
    before = model.SerializeToString(deterministic=True)
    assert rewrite(model) == 0
    assert model.SerializeToString(deterministic=True) == before


# A map, one branch of it from 2x3 positions, and a convolution of both.
PYRAMID = """
    base = Conv(data, w_base)
    small = AveragePool<kernel_shape=[6,7], strides=[6,7]>(data)
    up = Resize<{resize}>(small, , to_full)
    joined = Concat<axis=1>(base, up)
    y = Conv<{conv}>(joined, w, b)
"""
PYRAMID_SHAPES: Mapping[str, tuple[int, ...]] = {
    "w_base": (4, 3, 1, 1), "to_full": (6, 7), "w": (5, 7, 3, 2), "b": (5,),
}  # fmt: skip


def pyramid(conv: str = "pads=[1,0,1,1]", resize: str = CORNERS, **shapes: tuple[int, ...]):
    return network(PYRAMID.format(conv=conv, resize=resize), **{**PYRAMID_SHAPES, **shapes})


@pytest.mark.parametrize(
    "conv",
    [
        "pads=[1,0,1,1]",
        "pads=[0,1,2,0]",
        "pads=[2,0,0,3]",
        "pads=[0,2,1,0], strides=[1,2]",
        "pads=[1,1,0,0], strides=[2,1]",
        "pads=[2,0,1,2], dilations=[2,1]",
        "pads=[1,2,0,1], dilations=[1,3]",
        "pads=[3,1,2,0], dilations=[2,3], strides=[2,1]",
    ],
)
def test_a_pyramid_is_factored_whatever_its_padding(conv: str) -> None:
    assert_exact(pyramid(conv), factor_pyramid, 1)


@pytest.mark.parametrize(
    "resize",
    [
        'mode="linear"',
        'mode="linear", coordinate_transformation_mode="half_pixel"',
        'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
        'mode="linear", coordinate_transformation_mode="asymmetric"',
        'mode="nearest", coordinate_transformation_mode="align_corners"',
        'mode="cubic", coordinate_transformation_mode="align_corners"',
    ],
)
def test_only_branches_with_aligned_corners_are_factored(resize: str) -> None:
    assert_left(pyramid(resize=resize), factor_pyramid)


def test_a_pyramid_of_a_grouped_convolution_stays() -> None:
    assert_left(pyramid("pads=[1,0,1,1], group=7", w=(7, 1, 3, 2), b=(7,)), factor_pyramid)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_is_not_written_out_stays(padding: str) -> None:
    """Taken for no padding at all, it would give another map."""
    assert_left(pyramid(f'auto_pad="{padding}"'), factor_pyramid)
    assert_left(pooled(f'auto_pad="{padding}"'), image_pooling_bias)


@pytest.mark.parametrize("rewrite", [factor_pyramid, image_pooling_bias])
@pytest.mark.parametrize("branch", ["first", "last"])
def test_joined_maps_of_unknown_size_stay(rewrite, branch: str) -> None:
    """Channels that are counted as none would take other channels' weights."""
    order = "open, up" if branch == "first" else "up, open"
    model = network(
        f"""
        shape = Cast<to=7>(lengths)
        open = Reshape(data, shape)
        small = GlobalAveragePool(data)
        up = Resize<{CORNERS}>(small, , to_full)
        joined = Concat<axis=1>({order})
        y = Conv<kernel_shape=[1,1]>(joined, w)
        """,
        lengths=(4,), to_full=(HEIGHT, WIDTH), w=(5, 6, 1, 1),
    )  # fmt: skip
    assert_left(model, rewrite)


def test_a_branch_must_be_four_times_smaller_than_the_result() -> None:
    """Of 12x21 positions, 3x21 are a quarter: a larger one is not worth its products."""
    body = """
        base = Conv(data, w_base)
        small = AveragePool<kernel_shape=[{rows},1], strides=[{rows},1]>(data)
        up = Resize<{corners}>(small, , to_full)
        joined = Concat<axis=1>(up, base)
        y = Conv<pads=[1,0,1,1]>(joined, w, b)
    """
    for rows, count in ((4, 1), (3, 0)):
        model = network(
            body.format(rows=rows, corners=CORNERS), **{**PYRAMID_SHAPES, "to_full": (rows, 1)}
        )
        if count:
            assert_exact(model, factor_pyramid, count)
        else:
            assert_left(model, factor_pyramid)


@pytest.mark.parametrize("what", ["weights", "concatenation", "result", "axis", "computed"])
@pytest.mark.parametrize("rewrite", [factor_pyramid, image_pooling_bias])
def test_concatenations_that_others_need_stay(rewrite, what: str) -> None:
    """Two convolutions with one weight, two readers of one concatenation, and so on."""
    body = {
        "weights": """turned = Concat<axis=1>(up, base)
                      one = Conv(joined, w) two = Conv(turned, w) y = Add(one, two)""",
        "concatenation": "one = Conv(joined, w) two = Conv(joined, w2) y = Add(one, two)",
        "result": "y = Conv(joined, w)",
        "axis": "tall = Concat<axis=2>(data, up) y = Conv(tall, w3)",
        "computed": "made = Neg(w) y = Conv(joined, made)",
    }[what]
    model = network(
        f"""
        base = Conv(data, w_base)
        small = GlobalAveragePool(data)
        up = Resize<{CORNERS}>(small, , to_full)
        joined = Concat<axis=1>(base, up)
        {body}
        """,
        w_base=(4, 3, 1, 1), to_full=(HEIGHT, WIDTH), w=(5, 7, 3, 2), w2=(5, 7, 3, 2),
        w3=(5, 3, 3, 2),
    )  # fmt: skip
    if what == "result":
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("joined", 1, ["N", 7, HEIGHT, WIDTH])
        )
    assert_left(model, rewrite)


def test_what_nobody_else_needs_is_rewritten_by_either() -> None:
    """The same network without what the cases above add."""
    text = f"""
        base = Conv(data, w_base)
        small = GlobalAveragePool(data)
        up = Resize<{CORNERS}>(small, , to_full)
        joined = Concat<axis=1>(base, up)
        y = Conv(joined, w)
    """
    shapes = {"w_base": (4, 3, 1, 1), "to_full": (HEIGHT, WIDTH), "w": (5, 7, 3, 2)}
    for rewrite in (factor_pyramid, image_pooling_bias):
        assert_exact(network(text, **shapes), rewrite, 1)


def pooled(conv: str = "", pool: str = "GlobalAveragePool", resize: str = CORNERS) -> ModelProto:
    return network(
        f"""
        base = Conv(data, w_base)
        small = {pool}(data)
        up = Resize<{resize}>(small, , to_full)
        joined = Concat<axis=1>(up, base)
        y = Conv<{conv}>(joined, w, b)
        """,
        w_base=(4, 3, 1, 1), w=(5, 7, 3, 2), b=(5,),
        to_full=(HEIGHT, WIDTH if "Global" in pool else WIDTH // 3),
    )  # fmt: skip


@pytest.mark.parametrize("conv", ["", "strides=[2,3]", "dilations=[2,1]", "pads=[0,0,0,0]"])
@pytest.mark.parametrize("resize", [CORNERS, 'mode="linear"', 'mode="nearest"', 'mode="cubic"'])
def test_image_pooling_is_constant_however_it_is_enlarged(conv: str, resize: str) -> None:
    assert_exact(pooled(conv, resize=resize), image_pooling_bias, 1)


@pytest.mark.parametrize("pads", ["1,0,0,0", "0,1,0,0", "0,0,1,0", "0,0,0,1"])
def test_image_pooling_under_any_padding_stays(pads: str) -> None:
    """Beside the edge fewer taps see it."""
    assert_left(pooled(f"pads=[{pads}]"), image_pooling_bias)


def test_a_branch_of_three_positions_is_no_image_pooling() -> None:
    assert_left(pooled(pool="AveragePool<kernel_shape=[12,7], strides=[12,7]>"), image_pooling_bias)


@pytest.mark.parametrize("rewrite", [factor_pyramid, image_pooling_bias])
def test_what_grows_by_learnt_weights_is_no_resize(rewrite) -> None:
    """A transposed convolution of one position is another value at each."""
    model = network(
        """
        base = Conv(data, w_base)
        small = GlobalAveragePool(data)
        up = ConvTranspose(small, w_up)
        joined = Concat<axis=1>(up, base)
        y = Conv(joined, w, b)
        """,
        w_base=(4, 3, 1, 1), w=(5, 7, 3, 2), b=(5,), w_up=(3, 3, HEIGHT, WIDTH),
    )  # fmt: skip
    assert_left(model, rewrite)


COMMUTED = """
    small = Conv<strides=[2,2], pads=[0,0,1,0], kernel_shape=[3,2]>(data, w_small)
    up = Resize<mode="linear">(small, , to_full)
    y = Conv<{conv}>(up, w, b)
"""


def commuted(conv: str, **shapes: tuple[int, ...]) -> ModelProto:
    return network(
        COMMUTED.format(conv=conv),
        **{"w_small": (4, 3, 3, 2), "to_full": (2, 2), "w": (4, 4, 1, 1), "b": (4,), **shapes},
    )


@pytest.mark.parametrize(
    ("conv", "shapes", "count"),
    [
        ("kernel_shape=[1,1]", {}, 1),
        ("kernel_shape=[1,1]", {"to_full": (4, 0.5)}, 1),
        ("kernel_shape=[1,1]", {"to_full": (2, 0.5)}, 0),  # as many positions as before
        ("kernel_shape=[1,1]", {"w": (5, 4, 1, 1), "b": (5,)}, 0),  # more channels than before
        ("kernel_shape=[1,1], strides=[1,2]", {}, 0),
        ("kernel_shape=[1,1], strides=[2,1]", {}, 0),
        ("kernel_shape=[1,1], pads=[0,0,0,1]", {}, 0),
        ("kernel_shape=[1,1], group=2", {"w": (4, 2, 1, 1)}, 0),
        ("kernel_shape=[1,2]", {"w": (4, 4, 1, 2)}, 0),
        ("kernel_shape=[2,1]", {"w": (4, 4, 2, 1)}, 0),
    ],
)
def test_a_pointwise_convolution_goes_before_its_resize(conv, shapes, count: int) -> None:
    model = commuted(conv, **shapes)
    if count:
        assert_exact(model, commute_resize, count)
    else:
        assert_left(model, commute_resize)


def test_two_pointwise_convolutions_of_one_weight_both_go() -> None:
    model = network(
        """
        small = Conv<strides=[2,2], kernel_shape=[2,2]>(data, w_small)
        up = Resize<mode="linear">(small, , to_full)
        turned = Neg(small)
        up2 = Resize<mode="nearest">(turned, , to_full)
        one = Conv<kernel_shape=[1,1]>(up, w, b)
        two = Conv<kernel_shape=[1,1]>(up2, w)
        y = Add(one, two)
        """,
        w_small=(4, 3, 2, 2), to_full=(2, 2), w=(3, 4, 1, 1), b=(3,),
    )  # fmt: skip
    assert_exact(model, commute_resize, 2)


NORM = {"gamma": (6,), "beta": (6,), "mean": (6,), "var": (6,)}


@pytest.mark.parametrize("pads", ["1,0,1,1", "0,2,0,0"])
def test_a_batch_norm_is_folded_with_its_own_epsilon(pads: str) -> None:
    model = network(
        f"""
        c = Conv<pads=[{pads}], strides=[2,1]>(data, w, b)
        y = BatchNormalization<epsilon=0.5>(c, gamma, beta, mean, var)
        """,
        w=(6, 3, 3, 2), b=(6,), **NORM,
    )  # fmt: skip
    assert_exact(model, fold_batch_norm, 1)


@pytest.mark.parametrize("shared", ["weight", "bias"])
@pytest.mark.parametrize("other", ["normed", "plain"])
def test_convolutions_that_share_constants_keep_their_batch_norms(shared: str, other: str) -> None:
    """Each norm would scale the other convolution too."""
    second = "w, b2" if shared == "weight" else "w2, b"
    last = "two = BatchNormalization(d, gamma2, beta2, mean2, var2) y = Add(one, two)"
    model = network(
        f"""
        c = Conv<pads=[1,0,1,1]>(data, w, b)
        d = Conv<pads=[1,0,1,1]>(data, {second})
        one = BatchNormalization(c, gamma, beta, mean, var)
        {last if other == "normed" else "y = Add(one, d)"}
        """,
        w=(6, 3, 3, 2), w2=(6, 3, 3, 2), b=(6,), b2=(6,),
        **NORM, **{f"{name}2": shape for name, shape in NORM.items()},
    )  # fmt: skip
    assert_left(model, fold_batch_norm)


def test_batch_norms_may_share_their_statistics() -> None:
    model = network(
        """
        c = Conv<pads=[1,0,1,1]>(data, w)
        d = Conv<pads=[0,1,2,0]>(data, w2)
        one = BatchNormalization(c, gamma, beta, mean, var)
        two = BatchNormalization(d, gamma, beta, mean, var)
        y = Sub(one, two)
        """,
        w=(6, 3, 3, 2), w2=(6, 3, 3, 2), **NORM,
    )  # fmt: skip
    assert_exact(model, fold_batch_norm, 2)


def test_a_deformable_convolution_takes_its_batch_norm() -> None:
    model = network(
        """
        offset = Conv<pads=[1,0,1,1]>(data, w_offset)
        c = DeformConv<pads=[1,0,1,1], kernel_shape=[3,2]>(data, w, offset, b)
        y = BatchNormalization(c, gamma, beta, mean, var)
        """,
        opset=19, w_offset=(12, 3, 3, 2), w=(6, 3, 3, 2), b=(6,), **NORM,
    )  # fmt: skip
    assert_exact(model, fold_batch_norm, 1)


@pytest.mark.parametrize("what", ["result", "computed weight", "computed norm"])
def test_batch_norms_that_cannot_be_folded_stay(what: str) -> None:
    weight = "wn" if what == "computed weight" else "w"
    gamma = "gn" if what == "computed norm" else "gamma"
    model = network(
        f"""
        wn = Neg(w)
        gn = Neg(gamma)
        c = Conv<pads=[1,0,1,1]>(data, {weight})
        y = BatchNormalization(c, {gamma}, beta, mean, var)
        """,
        w=(6, 3, 3, 2), **NORM,
    )  # fmt: skip
    if what == "result":
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("c", 1, ["N", 6, HEIGHT, WIDTH])
        )
    nodes = len([node for node in model.graph.node if node.op_type == "BatchNormalization"])
    assert fold_batch_norm(model) == 0
    left = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(left) == nodes == 1


MEAN, STD = (0.2, 0.5, 0.7), (0.5, 0.25, 0.1)


def photos() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)


def assert_normalised(model: ModelProto, count: int, *, bgr: bool) -> None:
    """Bytes give what their normalised floats gave; ``count`` convolutions took the scale."""
    values = (photos() / 255 - np.array(MEAN)) / np.array(STD)
    data = values.transpose(0, 3, 1, 2).astype(np.float32)
    plain = onnxruntime.InferenceSession(model.SerializeToString())
    (before,) = plain.run(None, {"data": np.ascontiguousarray(data[:, ::-1] if bgr else data)})
    assert fold_normalisation(model, Pixels(MEAN, STD, bgr)) == count
    onnx.checker.check_model(model, full_check=True)
    (after,) = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"image": photos()}
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=5e-6 * np.abs(before).max())


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("pads", ["1,0,1,1", "0,2,0,0", "0,0,0,0"])
def test_the_scale_is_folded_under_any_padding(pads: str, bgr: bool) -> None:
    model = network(f"y = Conv<pads=[{pads}]>(data, w, b)", w=(4, 3, 3, 2), b=(4,))
    assert_normalised(model, 1, bgr=bgr)


@pytest.mark.parametrize("bgr", [False, True])
def test_a_shared_first_weight_is_scaled_once(bgr: bool) -> None:
    """Both read the image: by itself and smaller."""
    model = network(
        """
        half = AveragePool<kernel_shape=[2,3], strides=[2,3]>(data)
        again = Resize<mode="linear">(half, , to_full)
        one = Conv<pads=[1,0,1,1]>(data, w)
        two = Conv<pads=[1,0,1,1]>(again, w)
        y = Sub(one, two)
        """,
        to_full=(2, 3), w=(4, 3, 3, 2),
    )  # fmt: skip
    assert_normalised(model, 2, bgr=bgr)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("reader", ["convolution", "sum", "result", "computed", "grouped"])
def test_the_scale_stays_an_operator_where_weights_or_image_have_other_readers(
    reader: str, bgr: bool
) -> None:
    body = {
        # A later convolution has the first one's weight.
        "convolution": "c = Conv<pads=[1,0,1,1]>(data, w) y = Conv<pads=[1,0,1,1]>(c, w)",
        "sum": "c = Conv<pads=[1,0,1,1]>(data, w) y = Add(c, data)",
        "result": "c = Conv<pads=[1,0,1,1]>(data, w) y = Identity(data)",
        "computed": "v = Neg(w) y = Conv<pads=[1,0,1,1]>(data, v)",
        "grouped": "y = Conv<pads=[1,0,1,1], group=3>(data, w1)",
    }[reader]
    model = network(body, w=(3, 3, 3, 2), w1=(3, 1, 3, 2))
    assert_normalised(model, 0, bgr=bgr)


def head(classes: int, values: np.ndarray, heads: tuple[str, ...]) -> list[np.ndarray]:
    """Mask and others of logits that are ``values`` [classes] at every position of 3x5."""
    model = network(
        """
        zero = Sub(data, data)
        small = AveragePool<kernel_shape=[4,4], strides=[4,4]>(zero)
        y = Conv<kernel_shape=[1,1]>(small, w, b)
        """,
        w=(classes, 3, 1, 1), b=(classes,),
    )  # fmt: skip
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["N", classes, 3, 5]))
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "b"]
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "b"))
    mask_head(model, HEIGHT, WIDTH, heads)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    data = np.zeros((2, 3, HEIGHT, WIDTH), np.float32)
    return session.run([h for h in ("mask", "confidence", "logits") if h in heads], {"data": data})


@pytest.mark.parametrize(
    ("values", "winner"), [([1, 1], 0), ([0, 2, 2, 1], 1), ([3, 0, 3, 3], 0), ([0, 0, 0, 5], 3)]
)
def test_of_equal_classes_the_lower_id_wins(values: list[float], winner: int) -> None:
    (mask,) = head(len(values), np.array(values), ("mask",))
    assert mask.shape == (2, HEIGHT, WIDTH)
    assert (mask == winner).all()


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([0.0, 0.0], 128),  # 127.5, to even
        ([0.0] * 6, 42),  # 42.5, to even
        ([0.0] * 10, 26),  # 25.5, to even
        ([0.0] * 4, 64),  # 63.75
        ([0.0] * 8, 32),  # 31.875
        ([np.log(199 / 56), 0.0], 199),
        ([0.0, 60.0], 255),
        ([0.0], 255),
    ],
)
def test_confidence_is_rounded_not_cut(values: list[float], steps: int) -> None:
    (confidence,) = head(len(values), np.array(values), ("confidence",))
    assert set(np.unique(confidence)) == {steps}
