"""Symbols of layers, products, samplers and constants, with attributes drawn at random
(``operator_cases``)."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.support.moving_cases import Case, Family, conv


def taking(r: Random) -> Case:
    axis, mode = r.choice((1, 2, 3, -1)), r.choice(("clip", "wrap"))
    start, stop = r.choice(((0, 2), (-2, 5), (9, 20)))

    def case(mx: Any, x: Any) -> Any:
        return mx.sym.take(x, mx.sym.arange(start, stop, step=1.5), axis=axis, mode=mode)

    return case


def picking(r: Random) -> Case:
    axis, kept, mode = r.choice((1, 2, 3)), r.random() < 0.5, r.choice(("clip", "wrap"))

    def case(mx: Any, x: Any) -> Any:
        chosen = mx.sym.BlockGrad(mx.sym.sum(x, axis=axis, keepdims=kept) * 3)
        return mx.sym.pick(x, mx.sym.floor(chosen), axis=axis, keepdims=kept, mode=mode)

    return case


def marking(r: Random) -> Case:
    depth, on, off = r.randint(2, 5), r.uniform(1, 2), r.uniform(-1, 0)
    return lambda mx, x: mx.sym.one_hot(
        mx.sym.argmax(x, axis=1), depth=depth, on_value=on, off_value=off
    )


def embedding(r: Random) -> Case:
    width = r.randint(2, 5)
    return lambda mx, x: mx.sym.Embedding(
        mx.sym.argmax(x, axis=1), input_dim=3, output_dim=width, name="embedding"
    )


def choosing(r: Random) -> Case:
    limit = r.uniform(-0.5, 0.5)
    return lambda mx, x: mx.sym.where(x > limit, conv(mx, x, 3), -x)


def batch_dot(r: Random) -> Case:
    turned = [r.random() < 0.5 for _ in range(2)]
    alpha = r.choice((None, 0.3))

    def case(mx: Any, x: Any) -> Any:
        a = mx.sym.Reshape(conv(mx, x, 4), shape=(0, 0, -1))
        b = mx.sym.Reshape(conv(mx, x, 5, "other"), shape=(0, 0, -1))
        if not turned[0] and turned[1]:
            options = {"transpose_b": True}
        elif turned[0] and not turned[1]:
            a, b = mx.sym.transpose(a, axes=(0, 2, 1)), mx.sym.transpose(b, axes=(0, 2, 1))
            options = {"transpose_a": True}
        elif turned[0]:
            a, options = mx.sym.transpose(a, axes=(0, 2, 1)), {
                "transpose_a": True, "transpose_b": True}  # fmt: skip
        else:
            b, options = mx.sym.transpose(b, axes=(0, 2, 1)), {}
        if alpha is None:
            return mx.sym.batch_dot(a, b, **options)
        return mx.sym.linalg.gemm2(a, b, alpha=alpha, **options)

    return case


def affine_product(r: Random) -> Case:
    options = {"transpose_a": False, "transpose_b": True, "alpha": r.uniform(0.5, 2),
               "beta": r.uniform(-1, 1)}  # fmt: skip
    return lambda mx, x: mx.sym.linalg.gemm(
        x, conv(mx, x, 3), mx.sym.batch_dot(mx.sym.reshape(x, shape=(-3, 0, 0)), mx.sym.reshape(
            x, shape=(-3, 0, 0)), transpose_b=True).reshape(shape=(-4, -1, 3, 0, 0)), **options
    )  # fmt: skip


def self_product(r: Random) -> Case:
    options = {"transpose": r.random() < 0.5, "alpha": r.uniform(0.5, 2)}
    return lambda mx, x: mx.sym.linalg.syrk(x, **options)


def moments(r: Random) -> Case:
    axes, kept = tuple(sorted(r.sample((1, 2, 3), r.randint(1, 3)))), r.random() < 0.5

    def case(mx: Any, x: Any) -> Any:
        parts = mx.sym.moments(x, axes=axes, keepdims=kept)
        return parts[0] + parts[1] * 2

    return case


def ranking(op: str) -> Family:
    def draw(r: Random) -> Case:
        options: dict[str, Any] = {"axis": r.choice((1, 2, 3, -1)), "is_ascend": r.random() < 0.5}
        kind = r.choice(("value", "indices", "both"))
        if op == "topk":
            options |= {"k": r.randint(1, 3), "ret_typ": kind}

        def case(mx: Any, x: Any) -> Any:
            found = getattr(mx.sym, op)(x, **options)
            both = op == "topk" and kind == "both"
            return found[1] + found[0] * 2 if both else found

        return case

    return draw


def running_sum(r: Random) -> Case:
    axis = r.choice((1, 2, 3))
    return lambda mx, x: mx.sym.cumsum(x, axis=axis)


def dot(r: Random) -> Case:
    turned, length = r.random() < 0.5, r.randint(2, 5)

    def case(mx: Any, x: Any) -> Any:
        shape = (length, 17) if turned else (17, length)
        return mx.sym.dot(x, mx.sym.Variable("matrix", shape=shape), transpose_b=turned)

    return case


def connecting(r: Random) -> Case:
    options = {"flatten": r.random() < 0.5, "no_bias": r.random() < 0.5, "num_hidden": 5}
    return lambda mx, x: mx.sym.FullyConnected(x, name="fc", **options)


def normalising_connected(r: Random) -> Case:
    options = {"fix_gamma": r.random() < 0.5, "eps": r.uniform(1e-4, 1e-2)}
    return lambda mx, x: mx.sym.BatchNorm(
        mx.sym.FullyConnected(x, num_hidden=4, name="fc"), name="bn", **options
    )


def instance_norm(r: Random) -> Case:
    epsilon = r.uniform(1e-4, 1e-1)
    return lambda mx, x: mx.sym.InstanceNorm(x, eps=epsilon, name="norm")


def layer_norm(r: Random) -> Case:
    axis, epsilon = r.choice((1, 2, 3, -1)), r.uniform(1e-4, 1e-1)
    return lambda mx, x: mx.sym.LayerNorm(x, axis=axis, eps=epsilon, name="norm")


def group_norm(r: Random) -> Case:
    groups, epsilon = r.choice((1, 2, 3, 6)), r.uniform(1e-4, 1e-1)
    return lambda mx, x: mx.sym.GroupNorm(conv(mx, x), num_groups=groups, eps=epsilon, name="norm")


def length_norm(mode: str) -> Family:
    def draw(r: Random) -> Case:
        epsilon = r.uniform(1e-6, 1e-1)
        return lambda mx, x: mx.sym.L2Normalization(x, mode=mode, eps=epsilon)

    return draw


def neighbours(r: Random) -> Case:
    options = {"alpha": r.uniform(1e-3, 1), "beta": r.uniform(0.3, 0.9), "knorm": r.uniform(1, 3),
               "nsize": r.choice((1, 3, 5))}  # fmt: skip
    return lambda mx, x: mx.sym.LRN(conv(mx, x), **options)


def sampling(r: Random) -> Case:
    reach, height, width = r.uniform(0.5, 1.6), r.randint(4, 9), r.randint(4, 9)

    def case(mx: Any, x: Any) -> Any:
        grid = mx.sym.tanh(conv(mx, x, 2, "grid", stride=(2, 2))) * reach
        grid = mx.sym.slice(grid, begin=(None, None, 0, 0), end=(None, None, height, width))
        return mx.sym.BilinearSampler(conv(mx, x, 4), grid)

    return case


def affine(mx: Any, x: Any) -> Any:
    """Six numbers an image, near the identity."""
    loc = mx.sym.FullyConnected(mx.sym.mean(x, axis=(2, 3)), num_hidden=6, name="loc")
    identity = mx.sym.broadcast_equal(
        mx.sym.arange(6) - 4 * mx.sym.floor(mx.sym.arange(6) / 4), mx.sym.zeros((6,))
    )
    return mx.sym.broadcast_add(mx.sym.tanh(loc) * 0.3, mx.sym.reshape(identity, shape=(1, 6)))


def affine_grid(r: Random) -> Case:
    size = (r.randint(3, 9), r.randint(3, 9))
    return lambda mx, x: mx.sym.GridGenerator(
        affine(mx, x), transform_type="affine", target_shape=size
    )


def warping(r: Random) -> Case:
    reach = r.uniform(0.5, 3)
    return lambda mx, x: mx.sym.BilinearSampler(
        x, mx.sym.GridGenerator(conv(mx, x, 2, "flow") * reach, transform_type="warp")
    )


def transforming(r: Random) -> Case:
    size = (r.randint(3, 9), r.randint(3, 9))
    return lambda mx, x: mx.sym.SpatialTransformer(
        x, affine(mx, x), target_shape=size, transform_type="affine", sampler_type="bilinear"
    )


def modulated(r: Random) -> Case:
    groups, parts = r.choice((1, 2)), r.choice((1, 2))
    dilate, stride = r.choice((1, 2)), r.choice((1, 2))
    options = {"kernel": (3, 3), "pad": (dilate,) * 2, "dilate": (dilate,) * 2,
               "stride": (stride,) * 2}  # fmt: skip
    unbiased = r.random() < 0.5

    def case(mx: Any, x: Any) -> Any:
        offset = conv(mx, x, 18 * groups, "offset", **options)
        mask = mx.sym.sigmoid(conv(mx, x, 9 * groups, "mask", **options))
        return mx.sym.contrib.ModulatedDeformableConvolution(
            data=conv(mx, x, 4), offset=offset, mask=mask, num_filter=6, num_group=parts,
            num_deformable_group=groups, no_bias=unbiased, name="deform", **options,
        )  # fmt: skip

    return case


def pooling(kind: str) -> Family:
    def draw(r: Random) -> Case:
        options: dict[str, Any] = {
            "kernel": (r.randint(2, 4), r.randint(2, 4)), "stride": (r.randint(1, 3),) * 2,
            "pad": (r.randint(0, 1),) * 2, "pooling_convention": r.choice(("valid", "full")),
        }  # fmt: skip
        if kind == "lp":
            options["p_value"] = r.choice((1, 2, 3))
        if r.random() < 0.25:
            options = {"kernel": (1, 1), "global_pool": True, **(
                {"p_value": 2} if kind == "lp" else {})}  # fmt: skip

        def case(mx: Any, x: Any) -> Any:
            return mx.sym.Pooling(mx.sym.abs(x) + 0.3, pool_type=kind, **options)

        return case

    return draw


def upsampling(r: Random) -> Case:
    scale, mode = r.choice((2, 3)), r.choice(("concat", "sum"))

    def case(mx: Any, x: Any) -> Any:
        small = mx.sym.contrib.BilinearResize2D(conv(mx, x, 3), height=4, width=6)
        large = mx.sym.contrib.BilinearResize2D(x, height=4 * scale, width=6 * scale)
        return mx.sym.UpSampling(
            small, large, scale=scale, sample_type="nearest", num_args=2, multi_input_mode=mode
        )

    return case


def resizing(r: Random) -> Case:
    mode = r.choice(("odd_scale", "to_even_down", "to_even_up", "to_odd_down", "to_odd_up"))
    aligned = r.random() < 0.5
    scales = {"scale_height": r.choice((0.5, 2.0)), "scale_width": r.choice((0.5, 2.0))}
    options = scales if mode == "odd_scale" else {}
    height = r.choice((12, 13))
    return lambda mx, x: mx.sym.contrib.BilinearResize2D(
        mx.sym.slice_axis(x, axis=2, begin=0, end=height), mode=mode, align_corners=aligned,
        **options,
    )  # fmt: skip


def window(r: Random) -> dict[str, Any]:
    return {
        "kernel": (r.randint(2, 3), r.randint(2, 3)), "stride": (r.randint(1, 2), r.randint(1, 2)),
        "dilate": (r.randint(1, 2), r.randint(1, 2)), "pad": (r.randint(0, 1), r.randint(0, 1)),
    }  # fmt: skip


def columns(r: Random) -> Case:
    options = window(r)
    return lambda mx, x: mx.sym.im2col(x, **options)


def columns_back(r: Random) -> Case:
    options = window(r)
    return lambda mx, x: mx.sym.col2im(
        mx.sym.im2col(x, **options) * 0.5, output_size=(13, 17), **options
    )


def line_convolution(r: Random) -> Case:
    """Along the channels' means, as efficient channel attention has it."""
    reach = r.choice((1, 2))

    def case(mx: Any, x: Any) -> Any:
        means = mx.sym.Reshape(mx.sym.mean(conv(mx, x), axis=(2, 3)), shape=(0, 1, -1))
        mixed = mx.sym.Convolution(
            means, kernel=(2 * reach + 1,), pad=(reach,), num_filter=1, no_bias=True, name="line"
        )
        return mx.sym.broadcast_mul(
            conv(mx, x, 6, "map"), mx.sym.Reshape(mx.sym.sigmoid(mixed), shape=(0, -1, 1, 1))
        )

    return case


def constants(r: Random) -> Case:
    kind, step = r.choice(("arange", "arange_like", "full", "eye")), r.uniform(0.5, 2)

    def case(mx: Any, x: Any) -> Any:
        if kind == "arange":
            return mx.sym.broadcast_add(
                x,
                mx.sym.reshape(
                    mx.sym.arange(2, 2 + 17 * step - step / 2, step=step), shape=(1, 1, 1, -1)
                ),
            )
        if kind == "arange_like":
            return mx.sym.broadcast_mul(
                x,
                mx.sym.reshape(
                    mx.sym.contrib.arange_like(x, axis=2, start=1, step=step), shape=(1, 1, -1, 1)
                ),
            )
        if kind == "full":
            return mx.sym.broadcast_add(mx.sym.full((1, 3, 1, 17), step) + mx.sym.ones((1,)), x)
        return mx.sym.dot(x, mx.sym.eye(17, 5, k=1))

    return case  # fmt: skip


def declared(r: Random) -> Case:
    """Parameters of the network's own, whose shapes stand at their variables."""
    shape = r.choice(((1,), (1, 3, 1, 1), (1, 1, 13, 17)))
    shape = (1, 1, 1, 1) if shape == (1,) else shape
    return lambda mx, x: (
        x + mx.sym.broadcast_mul(conv(mx, x, 3), mx.sym.Variable("scale", shape=shape))
    )


def own_slope(r: Random) -> Case:
    scale = r.uniform(1, 2)
    return lambda mx, x: mx.sym.LeakyReLU(
        x * scale, mx.sym.Variable("slope", shape=(1,)), act_type="prelu"
    )


LAYERS: dict[str, Family] = {
    "take": taking, "pick": picking, "one_hot": marking, "embedding": embedding,
    "where": choosing, "batch_dot": batch_dot, "gemm": affine_product,
    "syrk": self_product, "moments": moments, "cumsum": running_sum,
    **{op: ranking(op) for op in ("topk", "sort", "argsort")},
    "dot": dot, "fully_connected": connecting,
    "batch_norm_flat": normalising_connected, "instance_norm": instance_norm,
    "layer_norm": layer_norm, "group_norm": group_norm,
    **{f"length_{mode}": length_norm(mode) for mode in ("instance", "channel", "spatial")},
    "lrn": neighbours, "sampler": sampling, "affine_grid": affine_grid, "warp": warping,
    "transformer": transforming, "modulated": modulated,
    **{f"pool_{kind}": pooling(kind) for kind in ("sum", "lp")},
    "upsampling": upsampling, "resize": resizing, "im2col": columns, "col2im": columns_back,
    "line": line_convolution, "constants": constants, "declared": declared,
    "own_slope": own_slope,
}  # fmt: skip
