"""Every operator against MXNet. Run as a script, this file is MXNet's half: it writes, for each
case, the symbol, the parameters, the input and the output into a folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

SIZE = (13, 17)


def conv(mx, x, **options):
    return mx.sym.Convolution(x, name="conv", **{"num_filter": 6, "kernel": (3, 3), **options})


def pool(mx, x, **options):
    return mx.sym.Pooling(x, name="pool", **{"kernel": (3, 3), "stride": (2, 2), **options})


def adaptive(mx, x, size):
    return mx.sym.contrib.AdaptiveAvgPooling2D(conv(mx, x, pad=(1, 1)), output_size=size)


def resize(mx, x, height, width, **options):
    return mx.sym.contrib.BilinearResize2D(conv(mx, x), height=height, width=width, **options)


def two(mx, x):
    return conv(mx, x), mx.sym.Convolution(x, name="other", num_filter=6, kernel=(3, 3))


CASES = {
    "conv": lambda mx, x: conv(mx, x),
    "conv_no_bias_stride": lambda mx, x: conv(mx, x, no_bias=True, stride=(2, 1), pad=(1, 2)),
    "conv_dilated": lambda mx, x: conv(mx, x, dilate=(2, 2), pad=(2, 2)),
    "conv_grouped": lambda mx, x: conv(mx, x, num_group=3),
    "conv_asymmetric_kernel": lambda mx, x: conv(mx, x, kernel=(1, 5), pad=(0, 2)),
    "batch_norm": lambda mx, x: mx.sym.BatchNorm(x, fix_gamma=False, eps=2e-5, name="bn"),
    "batch_norm_fixed_gamma": lambda mx, x: mx.sym.BatchNorm(x, name="bn"),
    "conv_batch_norm": lambda mx, x: mx.sym.BatchNorm(
        conv(mx, x), fix_gamma=False, use_global_stats=True, name="bn"
    ),
    "sync_batch_norm": lambda mx, x: mx.sym.contrib.SyncBatchNorm(
        conv(mx, x), fix_gamma=False, eps=1e-5, key="bn", name="bn"
    ),
    **{
        f"activation_{kind}": lambda mx, x, kind=kind: mx.sym.Activation(x, act_type=kind)
        for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")
    },
    "relu": lambda mx, x: mx.sym.relu(x),
    "sigmoid": lambda mx, x: mx.sym.sigmoid(x),
    "tanh": lambda mx, x: mx.sym.tanh(x),
    "leaky": lambda mx, x: mx.sym.LeakyReLU(x, act_type="leaky", slope=0.1),
    "elu": lambda mx, x: mx.sym.LeakyReLU(x, act_type="elu", slope=0.7),
    "clip": lambda mx, x: mx.sym.clip(x, 0, 0.6),
    **{
        f"pool_{kind}_{rule}_pad{pad}": lambda mx, x, kind=kind, rule=rule, pad=pad: pool(
            mx, x, pool_type=kind, pooling_convention=rule, pad=(pad, pad)
        )
        for kind in ("max", "avg")
        for rule in ("valid", "full")
        for pad in (0, 1)
    },
    "pool_avg_full_image_only": lambda mx, x: pool(
        mx, x, pool_type="avg", pooling_convention="full", pad=(1, 1), count_include_pad=False
    ),
    "pool_avg_full_kernel2": lambda mx, x: pool(
        mx, x, pool_type="avg", pooling_convention="full", kernel=(2, 2)
    ),
    "pool_avg_full_not_exceeding": lambda mx, x: pool(
        mx, x, pool_type="avg", pooling_convention="full", kernel=(4, 3), stride=(3, 3), pad=(1, 2)
    ),
    "pool_global_avg": lambda mx, x: pool(mx, x, pool_type="avg", global_pool=True),
    "pool_global_max": lambda mx, x: pool(mx, x, pool_type="max", global_pool=True),
    "adaptive_1": lambda mx, x: adaptive(mx, x, 1),
    "adaptive_2": lambda mx, x: adaptive(mx, x, 2),
    "adaptive_6": lambda mx, x: adaptive(mx, x, 6),
    "adaptive_larger": lambda mx, x: adaptive(mx, x, 20),
    "adaptive_rectangle": lambda mx, x: adaptive(mx, x, (3, 4)),
    "adaptive_identity": lambda mx, x: adaptive(mx, x, SIZE),
    "adaptive_divisible": lambda mx, x: mx.sym.contrib.AdaptiveAvgPooling2D(
        resize(mx, x, 12, 18), output_size=6
    ),
    "resize_up": lambda mx, x: resize(mx, x, 44, 61),
    "resize_down": lambda mx, x: resize(mx, x, 6, 7),
    "resize_mixed": lambda mx, x: resize(mx, x, 5, 40),
    "resize_to_one": lambda mx, x: resize(mx, x, 1, 1),
    "resize_same": lambda mx, x: resize(mx, x, 11, 15),
    "resize_half_pixel": lambda mx, x: resize(mx, x, 23, 31, align_corners=False),
    "resize_from_one": lambda mx, x: mx.sym.contrib.BilinearResize2D(
        adaptive(mx, x, 1), height=4, width=9
    ),
    "concat": lambda mx, x: mx.sym.concat(conv(mx, x), *two(mx, x)[1:], dim=1),
    "concat_rows": lambda mx, x: mx.sym.concat(x, x, dim=2),
    "elemwise_add": lambda mx, x: mx.sym.elemwise_add(*two(mx, x)),
    "plus": lambda mx, x: sum(two(mx, x)),
    "minus": lambda mx, x: two(mx, x)[0] - two(mx, x)[1],
    "broadcast_add": lambda mx, x: (
        mx.sym.broadcast_add(x, pool(mx, x, pool_type="avg", global_pool=True))
    ),
    "broadcast_mul": lambda mx, x: mx.sym.broadcast_mul(
        x, mx.sym.sigmoid(pool(mx, x, pool_type="avg", global_pool=True))
    ),
    "scalars": lambda mx, x: ((x * 3 + 1) / 2 - 0.5),
    "dropout": lambda mx, x: mx.sym.Dropout(conv(mx, x), p=0.5),
    "identity": lambda mx, x: mx.sym.BlockGrad(mx.sym.identity(conv(mx, x))),
    "flatten": lambda mx, x: mx.sym.Flatten(x),
    "same_name_twice": lambda mx, x: mx.sym.relu(mx.sym.relu(x, name="a") + 1, name="a"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mxnet_results(tmp_path_factory, run_mxnet):
    folder = tmp_path_factory.mktemp("operators")
    run_mxnet(__file__, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_equals_mxnet(name, mxnet_results, run_onnx):
    from export.lowering.convert import convert
    from export.symbols.graph import read_symbol
    from export.symbols.params import read_params

    graph = read_symbol(mxnet_results / f"{name}.json")
    parameters = read_params(mxnet_results / f"{name}.params")
    data = np.load(mxnet_results / f"{name}-data.npy")
    expected = np.load(mxnet_results / f"{name}-output.npy")
    model = convert(graph, parameters, *SIZE)
    (found,) = run_onnx(model, data)
    assert found.shape == expected.shape
    declared = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert declared[1:] == list(expected.shape[1:])
    # float32 coordinates of a resize are off by 1e-6 of a cell.
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


def test_the_page_of_operators_is_complete():
    from export.lowering.operators import LOWERINGS
    from export.symbols.mxnet_operators import signatures

    page = (Path(__file__).parents[3] / "docs" / "operators.md").read_text("utf-8")
    _, converted, others = page.split("\n## ")
    rows = [line.split("|")[2] for line in converted.splitlines() if line.startswith("| ")]
    listed = [name for row in rows[1:] for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(LOWERINGS)
    left = [name for line in others.splitlines() if line.startswith("| ")
            for name in re.findall(r"`(\w+)`", line.split("|")[2])]  # fmt: skip
    assert sorted(left) == sorted(signatures().keys() - LOWERINGS.keys())
    assert f"{len(LOWERINGS)} of {len(signatures())}" in page


if __name__ == "__main__":
    from tests.support.mxnet_operators import write_cases

    write_cases(CASES, Path(sys.argv[1]), SIZE)
