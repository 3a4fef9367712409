"""The operators of the DeepLabs and of hand-written networks, against MXNet. Run as a script, this
file is MXNet's half."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

SIZE = (13, 17)


def conv(mx, x, name="conv", **options):
    return mx.sym.Convolution(x, name=name, **{"num_filter": 6, "kernel": (3, 3), **options})


def deconv(mx, x, **options):
    return mx.sym.Deconvolution(
        conv(mx, x), name="deconv", **{"num_filter": 4, "kernel": (3, 3), **options}
    )


def deform(mx, x, groups=1, **options):
    geometry = {"kernel": (3, 3), "pad": (1, 1), **options}
    offset = conv(mx, x, "offset", num_filter=18 * groups, **geometry)
    return mx.sym.contrib.DeformableConvolution(
        data=conv(mx, x, pad=(1, 1)), offset=offset, name="deform", num_filter=8,
        num_deformable_group=groups, **geometry,
    )  # fmt: skip


def up(mx, x, scale, kind):
    options = {"num_filter": 6} if kind == "bilinear" else {}
    return mx.sym.UpSampling(
        conv(mx, x), scale=scale, sample_type=kind, num_args=1, name="up", **options
    )


def pad(mx, x, mode, **options):
    width = (0, 0, 0, 0, 1, 2, 3, 0)
    return mx.sym.Pad(x, mode=mode, pad_width=width, **options)


def msra_head(mx, x):
    """MSRA DeepLab's end: grouped 32x32/16 deconvolution, crop to the image, softmax."""
    score = conv(mx, x, num_filter=5, stride=(16, 16), pad=(1, 1))
    large = mx.sym.Deconvolution(
        score, num_filter=5, num_group=5, kernel=(32, 32), stride=(16, 16), name="upsampling"
    )
    return mx.sym.SoftmaxOutput(
        mx.sym.Crop(large, x, offset=(8, 8)), multi_output=True, use_ignore=True, name="softmax"
    )


def reshape(mx, x, shape):
    return mx.sym.Reshape(conv(mx, x), shape=shape)


CASES = {
    "deconv": lambda mx, x: deconv(mx, x),
    "deconv_stride": lambda mx, x: deconv(mx, x, stride=(2, 3), pad=(1, 0)),
    "deconv_adjust": lambda mx, x: deconv(mx, x, stride=(2, 2), pad=(1, 1), adj=(1, 0)),
    "deconv_bias": lambda mx, x: deconv(mx, x, no_bias=False),
    "deconv_grouped": lambda mx, x: deconv(mx, x, num_group=2, stride=(2, 2)),
    "deconv_dilated": lambda mx, x: deconv(mx, x, dilate=(2, 2)),
    "deconv_target": lambda mx, x: deconv(mx, x, stride=(2, 2), target_shape=(22, 29)),
    "deconv_target_odd": lambda mx, x: deconv(
        mx, x, kernel=(4, 4), stride=(2, 2), target_shape=(21, 30), pad=(3, 3)
    ),
    "deconv_batch_norm": lambda mx, x: mx.sym.BatchNorm(
        deconv(mx, x), fix_gamma=False, name="bn"
    ),
    "deform": lambda mx, x: deform(mx, x),
    "deform_dilated": lambda mx, x: deform(mx, x, dilate=(2, 2), pad=(2, 2)),
    "deform_stride": lambda mx, x: deform(mx, x, stride=(2, 2)),
    "deform_groups": lambda mx, x: deform(mx, x, groups=2),
    "deform_no_bias": lambda mx, x: deform(mx, x, no_bias=True),
    "deform_batch_norm": lambda mx, x: mx.sym.BatchNorm(
        deform(mx, x), fix_gamma=True, use_global_stats=True, name="bn"
    ),
    "crop_like": lambda mx, x: mx.sym.Crop(pad(mx, x, "edge"), x, offset=(1, 2)),
    "crop_size": lambda mx, x: mx.sym.Crop(x, h_w=(5, 6), offset=(3, 1)),
    "crop_center": lambda mx, x: mx.sym.Crop(x, h_w=(6, 5), center_crop=True),
    "crop_center_like": lambda mx, x: mx.sym.Crop(x, conv(mx, x), center_crop=True),
    "slice_axis": lambda mx, x: mx.sym.slice_axis(x, axis=2, begin=2, end=-3),
    "slice_axis_open": lambda mx, x: mx.sym.slice_axis(x, axis=-1, begin=-4, end=None),
    "slice_like": lambda mx, x: mx.sym.slice_like(x, conv(mx, x), axes=(2, 3)),
    "pad_constant": lambda mx, x: pad(mx, x, "constant", constant_value=1.5),
    "pad_edge": lambda mx, x: pad(mx, x, "edge"),
    "pad_reflect": lambda mx, x: pad(mx, x, "reflect"),
    "up_nearest": lambda mx, x: up(mx, x, 3, "nearest"),
    "up_bilinear": lambda mx, x: up(mx, x, 2, "bilinear"),
    "up_bilinear_odd": lambda mx, x: up(mx, x, 3, "bilinear"),
    "reshape_copy": lambda mx, x: reshape(mx, x, (0, 2, 3, -1)),
    "reshape_infer_batch": lambda mx, x: reshape(mx, x, (-1, 990)),
    "reshape_merge": lambda mx, x: reshape(mx, x, (0, 0, -3)),
    "reshape_split": lambda mx, x: reshape(mx, x, (0, -4, 2, -1, -2)),
    "reshape_merge_batch": lambda mx, x: reshape(mx, x, (-3, 0, 0)),
    "transpose": lambda mx, x: mx.sym.transpose(x, axes=(0, 2, 3, 1)),
    "mean_kept": lambda mx, x: mx.sym.mean(x, axis=(2, 3), keepdims=True),
    "mean_excluded": lambda mx, x: mx.sym.mean(x, axis=(0, 1), exclude=True),
    "max": lambda mx, x: mx.sym.max(x, axis=(2, 3)),
    "softmax": lambda mx, x: mx.sym.softmax(x, axis=1),
    "softmax_last": lambda mx, x: mx.sym.softmax(x),
    "softmax_activation": lambda mx, x: mx.sym.SoftmaxActivation(x, mode="channel"),
    "softmax_output": lambda mx, x: mx.sym.SoftmaxOutput(x, multi_output=True, name="softmax"),
    "softmax_flat": lambda mx, x: mx.sym.SoftmaxOutput(mx.sym.Flatten(x), name="softmax"),
    "msra_head": msra_head,
    "relu6": lambda mx, x: mx.sym.clip(x * 9, 0, 6),
    "hard_swish": lambda mx, x: x * mx.sym.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda mx, x: mx.sym.hard_sigmoid(x),
    "prelu": lambda mx, x: mx.sym.LeakyReLU(conv(mx, x), act_type="prelu", name="prelu"),
    "scalars_reversed": lambda mx, x: 2 / (3 - mx.sym.clip(x, 0, 1)),
    "scalars_limits": lambda mx, x: mx.sym.maximum(mx.sym.minimum(x, 0.5), -0.25) ** 2,
    "unary": lambda mx, x: mx.sym.sqrt(mx.sym.exp(-mx.sym.abs(x))) + mx.sym.square(x),
    "broadcast_div": lambda mx, x: mx.sym.broadcast_div(
        x, mx.sym.exp(mx.sym.mean(x, axis=(2, 3), keepdims=True))
    ),
    "broadcast_maximum": lambda mx, x: mx.sym.broadcast_maximum(x, -x),
    "add_n": lambda mx, x: mx.sym.add_n(x, conv(mx, x, num_filter=3, pad=(1, 1)), -x, x),
    "depthwise": lambda mx, x: conv(
        mx, conv(mx, x, "wide"), num_group=6, dilate=(2, 2), pad=(2, 2), no_bias=True
    ),
    "resize_like": lambda mx, x: mx.sym.contrib.BilinearResize2D(
        conv(mx, x, stride=(2, 2)), x, mode="like"
    ),
    "resize_scale": lambda mx, x: mx.sym.contrib.BilinearResize2D(
        conv(mx, x), scale_height=1.5, scale_width=0.7
    ),
    "input_batch_norm": lambda mx, x: conv(mx, mx.sym.BatchNorm(x, eps=2e-5, name="bn_data")),
}  # fmt: skip


@pytest.fixture(scope="module")
def mxnet_results(tmp_path_factory, run_mxnet):
    folder = tmp_path_factory.mktemp("operators")
    run_mxnet(__file__, folder)
    return folder


def read_case(folder, name):
    """The converted model, its input, and MXNet's answer."""
    from export.lowering.convert import convert
    from export.symbols.graph import read_symbol
    from export.symbols.params import read_params

    graph, parameters = read_symbol(folder / f"{name}.json"), read_params(folder / f"{name}.params")
    data, expected = (np.load(folder / f"{name}-{part}.npy") for part in ("data", "output"))
    return convert(graph, parameters, *SIZE), data, expected


@pytest.mark.parametrize("name", CASES)
def test_equals_mxnet(name, mxnet_results, run_onnx):
    from onnx import checker

    from export.passes.convolutions import fold_batch_norm

    model, data, expected = read_case(mxnet_results, name)
    checker.check_model(model, full_check=True)
    if name != "reshape_merge_batch":  # its first length is a multiple of the batch
        declared = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
        assert declared[1:] == list(expected.shape[1:])
    (found,) = run_onnx(model, data)
    assert found.shape == expected.shape
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
    if name.endswith("deform_batch_norm"):
        assert fold_batch_norm(model) == 1
        np.testing.assert_allclose(run_onnx(model, data)[0], expected, rtol=1e-4, atol=10 * atol)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("deform")])
def test_sampling_equals_mxnet_too(name, mxnet_results, run_onnx):
    """The form for opset 17: GridSample and a 1x1 convolution."""
    from onnx import checker

    from export.passes.sample_deformable import sample_deformable

    model, data, expected = read_case(mxnet_results, name)
    assert sample_deformable(model) == 1
    model.opset_import[0].version, model.ir_version = 17, 8
    checker.check_model(model, full_check=True)
    assert "GridSample" in {n.op_type for n in model.graph.node}
    (found,) = run_onnx(model, data)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_deformable_graphs_alone_have_the_later_opset(mxnet_results):
    versions = {}
    for name in ("deform", "deconv"):
        model, _, _ = read_case(mxnet_results, name)
        versions[name] = (model.opset_import[0].version, model.ir_version)
    assert versions == {"deform": (19, 9), "deconv": (17, 8)}


if __name__ == "__main__":
    from tests.support.mxnet_operators import write_cases

    write_cases(CASES, Path(sys.argv[1]), SIZE)
