"""Symbols of single operators with attributes drawn at random, the same ones every time.

A case is called with ``mxnet`` and the variable ``data`` [N, 3, 13, 17]; it returns a symbol whose
first axis is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

Case = Callable[[Any, Any], Any]
Family = Callable[[Random], Case]
DRAWS = 3
# Families that MXNet has in float32 only, and what it cannot train on a CPU: indices have no
# gradient, rrelu draws its slopes, and modulated convolutions go back on GPUs alone.
FLOAT32 = ("softmax_instance_map", "instance_norm", "lrn", "affine_grid", "warp", "transformer",
           "constants")  # fmt: skip
UNTRAINABLE = ("argmax_channel", "leaky_rrelu", "modulated")


def conv(mx: Any, x: Any, filters: int = 6, name: str = "conv", **options: Any) -> Any:
    kernel = {"kernel": (3, 3), "pad": (1, 1), **options}
    return mx.sym.Convolution(x, name=name, num_filter=filters, **kernel)


def positive(mx: Any, x: Any) -> Any:
    return mx.sym.abs(x) + 0.3


def within_one(mx: Any, x: Any) -> Any:
    return mx.sym.tanh(x) * 0.9


def from_one(mx: Any, x: Any) -> Any:
    return mx.sym.abs(x) + 1.1


_DOMAINS = {
    **dict.fromkeys(("log", "sqrt", "rsqrt", "log2", "log10", "log1p", "cbrt", "rcbrt",
                     "reciprocal"), positive),
    **dict.fromkeys(("arcsin", "arccos", "arctanh", "tan"), within_one),
    "arccosh": from_one,
}  # fmt: skip
UNARY = (
    "erf",     "sin",     "cos",     "tan",     "sinh",     "cosh",     "arcsin",
    "arccos",     "arctan",     "arcsinh",     "arccosh",     "arctanh",     "ceil",
    "floor",     "sign",     "reciprocal",     "rsqrt",     "cbrt",     "rcbrt",     "expm1",
    "log1p",     "log2",     "log10",     "degrees",     "radians",     "rint",     "round",
    "fix",     "trunc",     "logical_not",     "zeros_like",     "ones_like",     "softsign",
)  # fmt: skip
BINARY = (
    "add",     "sub",     "mul",     "div",     "maximum",     "minimum",     "power",
    "mod",     "hypot",     "equal",     "not_equal",     "greater",     "greater_equal",
    "lesser",     "lesser_equal",     "logical_and",     "logical_or",     "logical_xor",
)  # fmt: skip
SCALAR = (
    "plus",     "minus",     "mul",     "div",     "rminus",     "rdiv",     "mod",
    "rmod",     "power",     "rpower",     "maximum",     "minimum",     "hypot",     "equal",
    "not_equal",     "greater",     "greater_equal",     "lesser",     "lesser_equal",
    "logical_and",     "logical_or",     "logical_xor",
)  # fmt: skip
COARSE = ("equal", "not_equal", "logical_and", "logical_or", "logical_xor", "lesser_equal",
          "greater_equal")  # fmt: skip


def unary(op: str) -> Case:
    domain = _DOMAINS.get(op, lambda mx, x: x)
    return lambda mx, x: getattr(mx.sym, op)(domain(mx, x))


def coarse(mx: Any, x: Any) -> Any:
    """Few values, so that many are equal and many are 0."""
    return mx.sym.round(x)


def binary(op: str, broadcast: bool) -> Family:
    def draw(r: Random) -> Case:
        axes = tuple(sorted(r.sample((1, 2, 3), r.randint(1, 3))))

        def case(mx: Any, x: Any) -> Any:
            a, b = x, conv(mx, x, 3)
            if op == "power":
                a = positive(mx, x)
            if broadcast:
                b = mx.sym.mean(b, axis=axes, keepdims=True)
            if op in (*COARSE, "mod"):
                a, b = coarse(mx, a), coarse(mx, b)
            if op in ("div", "mod"):  # exact quotients jump, small divisors magnify
                b = coarse(mx, b) + 0.5
            if broadcast:
                return getattr(mx.sym, f"broadcast_{op}")(a, b)
            name = f"elemwise_{op}" if op in ("add", "sub", "mul", "div") else f"_{op}"
            return getattr(mx.sym if hasattr(mx.sym, name) else mx.sym._internal, name)(a, b)

        return case

    return draw


def scalar(op: str) -> Family:
    def draw(r: Random) -> Case:
        value = r.choice((-1.0, 0.0, 1.0)) if op in COARSE else r.choice((-1.7, 0.6, 1.3, 2.0))
        if op in ("rpower", "mod", "div"):
            value = abs(value) or 0.5

        def case(mx: Any, x: Any) -> Any:
            if op in COARSE:
                x = coarse(mx, x)
            elif op in ("power", "rdiv", "rmod"):
                x = positive(mx, x)
            return getattr(mx.sym._internal, f"_{op}_scalar")(x, scalar=value)

        return case

    return draw


def draw_axes(r: Random, rank: int = 4) -> dict[str, Any]:
    """Axes of a reduction, but not the batch: as they are, from the end, or those left out."""
    axes = r.sample(range(1, rank), r.randint(1, rank - 1))
    if r.random() < 0.3:
        rest = tuple(axis for axis in range(rank) if axis not in axes)
        return {"axis": rest, "exclude": True, "keepdims": r.random() < 0.5}
    return {
        "axis": tuple(axis - rank if r.random() < 0.3 else axis for axis in axes),
        "keepdims": r.random() < 0.5,
    }


def reduction(op: str) -> Family:
    def draw(r: Random) -> Case:
        options = draw_axes(r)
        if op in ("prod", "nanprod"):
            options = {"axis": (r.randint(1, 3),), "keepdims": r.random() < 0.5}
        return lambda mx, x: getattr(mx.sym, op)(x, **options)

    return draw


def norm(r: Random) -> Case:
    axes = tuple(r.sample((1, 2, 3), r.randint(1, 2)))
    options = {"axis": axes, "ord": r.choice((1, 2)), "keepdims": r.random() < 0.5}
    return lambda mx, x: mx.sym.norm(x, **options)


def index_reduction(op: str) -> Family:
    def draw(r: Random) -> Case:
        options = {"axis": r.randint(1, 3), "keepdims": r.random() < 0.5}
        return lambda mx, x: getattr(mx.sym, op)(x, **options)

    return draw


def softmax(op: str) -> Family:
    def draw(r: Random) -> Case:
        options = {"axis": r.choice((1, 2, 3, -1, -2)), "temperature": r.choice((0.5, 1.0, 3.0))}
        return lambda mx, x: getattr(mx.sym, op)(x, **options)

    return draw


def leaky(kind: str) -> Family:
    def draw(r: Random) -> Case:
        options = {"act_type": kind, "slope": r.uniform(0.05, 0.9)}
        # rrelu has a second output, the slopes that it drew.
        return lambda mx, x: mx.sym.LeakyReLU(x * 2, **options)[0]

    return draw


def attributed(op: str, **ranges: tuple[float, float]) -> Family:
    def draw(r: Random) -> Case:
        options = {key: r.uniform(*bounds) for key, bounds in ranges.items()}
        operator = op.removeprefix("_contrib_")

        def case(mx: Any, x: Any) -> Any:
            found = mx.sym if operator == op else mx.sym.contrib
            return getattr(found, operator)(x * 2, **options)

        return case

    return draw


def combined(mx: Any, parts: Any) -> Any:
    """All outputs of an operator in one, told apart by their weights."""
    return mx.sym.concat(*(parts[i] * (i + 1) for i in reversed(range(len(parts.list_outputs())))))


def split_channels(r: Random) -> Case:
    squeezed = r.random() < 0.4
    count = 6 if squeezed else r.choice((2, 3))
    return lambda mx, x: combined(
        mx, mx.sym.SliceChannel(conv(mx, x), num_outputs=count, squeeze_axis=squeezed)
    )


def split_rows(r: Random) -> Case:
    places = tuple(sorted(r.sample(range(1, 16), r.randint(1, 3))))
    axis = r.choice((3, -1))

    def case(mx: Any, x: Any) -> Any:
        parts = mx.sym.split_v2(x, indices_or_sections=places, axis=axis)
        return mx.sym.concat(*(parts[i] * (i + 1) for i in reversed(range(len(places) + 1))), dim=3)

    return case


def split_equally(r: Random) -> Case:
    count, squeezed = r.choice(((2, False), (3, False), (6, True)))
    return lambda mx, x: combined(
        mx,
        mx.sym.split_v2(conv(mx, x), indices_or_sections=count, axis=1, squeeze_axis=squeezed),
    )


def slicing(r: Random) -> Case:
    begin: list[int | None] = [None]
    end: list[int | None] = [None]
    step: list[int | None] = [None]
    for length in (3, 13, 17):
        low = r.randint(0, length - 2)
        high = r.randint(low + 1, length)
        stride = r.choice((1, 1, 2, 3))
        if r.random() < 0.3:
            low, high, stride = high - 1, low - 1 if low else None, -stride  # type: ignore
        begin.append(low)
        end.append(high)
        step.append(stride)
    return lambda mx, x: mx.sym.slice(x, begin=tuple(begin), end=tuple(end), step=tuple(step))


def reversing(r: Random) -> Case:
    axes = tuple(r.sample((1, 2, 3), r.randint(1, 3)))
    return lambda mx, x: mx.sym.reverse(x, axis=axes)


def reshaping(r: Random) -> Case:
    codes, reverse = r.choice((
        ((0, -1), False), ((0, 2, 3, -2), False), ((0, 0, -1), False), ((0, -4, 2, 3, -2), False),
        ((-1, 6, 221), False), ((0, -3, 0), False), ((0, -4, -1, 2, -3), False),
        ((0, 1, 6, 0, 0), True), ((-1, 0, 221), True), ((-1, 13, 17), True),
        ((0, 6, 13, 17), False),
    ))  # fmt: skip
    if codes == (-1, 13, 17):  # merges the batch: apart again behind it
        return lambda mx, x: mx.sym.Reshape(
            mx.sym.Reshape(conv(mx, x), shape=codes), shape=(-1, 6, 13, 17)
        )
    return lambda mx, x: mx.sym.Reshape(conv(mx, x), shape=codes, reverse=reverse)


def reshaping_like(r: Random) -> Case:
    if r.random() < 0.4:
        return lambda mx, x: mx.sym.reshape_like(
            mx.sym.Reshape(x, shape=(0, -1)), mx.sym.transpose(x, axes=(0, 3, 2, 1))
        )
    split = r.choice((1, 2))
    return lambda mx, x: mx.sym.reshape_like(
        mx.sym.Reshape(x, shape=(0, 0, -1)), x, lhs_begin=split, lhs_end=3, rhs_begin=split,
        rhs_end=4,
    ) if split == 2 else mx.sym.reshape_like(
        mx.sym.Reshape(x, shape=(0, -1, 17)), x, lhs_begin=1, lhs_end=-1, rhs_begin=1, rhs_end=3,
    )  # fmt: skip


def expanding(r: Random) -> Case:
    axis = r.choice((1, 2, 3, 4, -1, -2))
    return lambda mx, x: mx.sym.expand_dims(x, axis=axis)


def squeezing(r: Random) -> Case:
    axis = r.choice((None, 1, (1, 3), -1))

    def case(mx: Any, x: Any) -> Any:
        thin = mx.sym.mean(x, axis=(1, 3), keepdims=True)
        return mx.sym.squeeze(thin) if axis is None else mx.sym.squeeze(thin, axis=axis)

    return case


def transposing(r: Random) -> Case:
    order = (0, *r.sample((1, 2, 3), 3))
    return lambda mx, x: mx.sym.transpose(x, axes=order)


def moving_the_batch(r: Random) -> Case:
    """The batch goes to another axis and comes back."""
    axis, scale = r.randint(1, 3), r.uniform(1, 2)

    def case(mx: Any, x: Any) -> Any:
        moved = mx.sym.SwapAxis(x, dim1=0, dim2=axis)
        return mx.sym.SwapAxis(mx.sym.broadcast_mul(moved, mx.sym.abs(moved) * scale),
                               dim1=axis, dim2=0)  # fmt: skip

    return case


def swapping(r: Random) -> Case:
    first, second = r.sample((1, 2, 3), 2)
    return lambda mx, x: mx.sym.SwapAxis(x, dim1=first, dim2=second)


def stacking(r: Random) -> Case:
    axis = r.choice((1, 2, 3, 4, -1))
    return lambda mx, x: mx.sym.stack(x, conv(mx, x, 3), -x, axis=axis)


def tiling(r: Random) -> Case:
    repetitions = tuple(r.randint(1, 3) for _ in range(r.randint(1, 3)))
    return lambda mx, x: mx.sym.tile(x, reps=repetitions)


def tiling_wider(r: Random) -> Case:
    """More repetitions than axes: new ones in front, which are put behind the batch."""
    count = r.randint(2, 3)
    return lambda mx, x: mx.sym.SwapAxis(mx.sym.tile(x, reps=(count, 1, 1, 2, 1)), dim1=0, dim2=1)


def repeating(r: Random) -> Case:
    count, axis = r.randint(2, 3), r.choice((1, 2, 3, -1, -2))
    return lambda mx, x: mx.sym.repeat(x, repeats=count, axis=axis)


def broadcasting(r: Random) -> Case:
    axes = tuple(sorted(r.sample((1, 2, 3), r.randint(1, 3))))
    lengths = [4, 5, 6]
    kind = r.choice(("to", "axis", "like", "like_axes"))

    def case(mx: Any, x: Any) -> Any:
        thin = mx.sym.mean(x, axis=axes, keepdims=True)
        if kind == "to":
            shape = [lengths[a - 1] if a in axes else 0 for a in range(4)]
            return mx.sym.broadcast_to(thin, shape=tuple(shape))
        if kind == "axis":
            return mx.sym.broadcast_axis(thin, axis=axes, size=tuple(lengths[a - 1] for a in axes))
        if kind == "like":
            return mx.sym.broadcast_like(thin, x)
        return mx.sym.broadcast_like(thin, x, lhs_axes=axes, rhs_axes=axes)

    return case


def blocks(op: str) -> Family:
    def draw(r: Random) -> Case:
        size = r.choice((2, 3))
        if op == "depth_to_space":
            return lambda mx, x: mx.sym.depth_to_space(conv(mx, x, 2 * size**2), block_size=size)
        return lambda mx, x: mx.sym.space_to_depth(
            mx.sym.contrib.BilinearResize2D(x, height=2 * size, width=3 * size), block_size=size
        )

    return draw


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
            return mx.sym.Pooling(positive(mx, x), pool_type=kind, **options)

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


FAMILIES: Mapping[str, Family] = {
    **{f"broadcast_{op}": binary(op, broadcast=True) for op in BINARY},
    **{f"scalar_{op}": scalar(op) for op in SCALAR},
    **{op: reduction(op) for op in ("sum", "mean", "prod", "max", "min", "nansum", "nanprod")},
    "norm": norm,
    **{op: index_reduction(op) for op in ("argmax", "argmin")},
    **{op: softmax(op) for op in ("softmax", "log_softmax", "softmin")},
    **{f"leaky_{kind}": leaky(kind) for kind in ("leaky", "elu", "selu", "gelu", "rrelu")},
    "hard_sigmoid": attributed("hard_sigmoid", alpha=(0.1, 0.5), beta=(0.2, 0.8)),
    "smooth_l1": attributed("smooth_l1", scalar=(0.5, 3)),
    "clip": attributed("clip", a_min=(-2, 0), a_max=(0.1, 2)),
    "quadratic": attributed("_contrib_quadratic", a=(-1, 1), b=(-1, 1), c=(-1, 1)),
    "split_channels": split_channels, "split_rows": split_rows, "split_equally": split_equally,
    "slice": slicing, "reverse": reversing, "reshape": reshaping, "reshape_like": reshaping_like,
    "expand_dims": expanding, "squeeze": squeezing, "transposed": transposing,
    "moved_batch": moving_the_batch, "swap_axis": swapping, "stack": stacking, "tile": tiling,
    "tile_wider": tiling_wider, "repeat": repeating, "broadcast": broadcasting,
    **{op: blocks(op) for op in ("depth_to_space", "space_to_depth")},
    "take": taking, "pick": picking, "one_hot": marking, "embedding": embedding,
    "where": choosing, "batch_dot": batch_dot, "dot": dot, "fully_connected": connecting,
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


def is_of(name: str, families: tuple[str, ...]) -> bool:
    """Returns whether a case is one of these families'."""
    return name.rstrip("0123456789").rstrip("_") in families


def draw_cases() -> dict[str, Case]:
    """All cases by name: each family a few times, and the operators that have no attributes."""
    plain = {op: unary(op) for op in UNARY}
    plain |= {f"elementwise_{op}": binary(op, broadcast=False)(Random(op)) for op in BINARY}
    plain["argmax_channel"] = lambda mx, x: mx.sym.argmax_channel(mx.sym.mean(x, axis=(2, 3)))
    plain["softmax_instance_map"] = lambda mx, x: mx.sym.SoftmaxActivation(x)
    plain["div_sqrt_dim"] = lambda mx, x: mx.sym.contrib.div_sqrt_dim(x)
    plain["gradient_multiplier"] = lambda mx, x: mx.sym.contrib.gradientmultiplier(x, scalar=0.3)
    drawn = {
        f"{name}_{number}": family(Random(f"{name}{number}"))
        for name, family in FAMILIES.items()
        for number in range(DRAWS)
    }
    return plain | drawn
