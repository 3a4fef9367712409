"""Symbols of single operators with attributes drawn at random, the same ones every time.

A case is called with ``mxnet`` and the variable ``data`` [N, 3, 13, 17]; it returns a symbol whose
first axis is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from tests.support.layer_cases import LAYERS
from tests.support.moving_cases import MOVING, Case, Family, conv

DRAWS = 3
# Families that MXNet has in float32 only, and what it cannot train on a CPU: indices have no
# gradient, rrelu draws its slopes, and modulated convolutions go back on GPUs alone.
FLOAT32 = (
    "softmax_instance_map",
    "instance_norm",
    "lrn",
    "affine_grid",
    "warp",
    "transformer",
    "constants",
    "topk",
    "const_linspace",
    "const_open",
    "const_zeros",
    "const_ones",
    "const_full",
    "const_arange",
    "const_repeated",
    "const_eye",
    "batch_norm_v",
)
UNTRAINABLE = ("argmax_channel", "leaky_rrelu", "modulated")


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
    "erf", "sin", "cos", "tan", "sinh", "cosh", "arcsin",
    "arccos", "arctan", "arcsinh", "arccosh", "arctanh", "ceil",
    "floor", "sign", "reciprocal", "rsqrt", "cbrt", "rcbrt", "expm1",
    "log1p", "log2", "log10", "degrees", "radians", "rint", "round",
    "fix", "trunc", "logical_not", "zeros_like", "ones_like", "softsign",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "maximum", "minimum", "power",
    "mod", "hypot", "equal", "not_equal", "greater", "greater_equal",
    "lesser", "lesser_equal", "logical_and", "logical_or", "logical_xor",
)  # fmt: skip
SCALAR = (
    "plus", "minus", "mul", "div", "rminus", "rdiv", "mod",
    "rmod", "power", "rpower", "maximum", "minimum", "hypot", "equal",
    "not_equal", "greater", "greater_equal", "lesser", "lesser_equal",
    "logical_and", "logical_or", "logical_xor",
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
    **MOVING,
    **LAYERS,
}  # fmt: skip


def _beside(make: Callable[[Any], Any]) -> Case:
    """A constant of one row, added to every row."""
    return lambda mx, x: mx.sym.broadcast_add(x, mx.sym.reshape(make(mx), shape=(1, 1, 1, -1)))


# Older forms, and what has no attributes worth drawing.
OTHERS: dict[str, Case] = {
    "batch_norm_v1": lambda mx, x: mx.sym.BatchNorm_v1(x, name="bn", fix_gamma=False, eps=1e-2),
    "conv_v1": lambda mx, x: mx.sym.Convolution_v1(
        x, kernel=(3, 3), pad=(1, 1), num_filter=4, name="conv"
    ),
    "pool_v1": lambda mx, x: mx.sym.Pooling_v1(
        x, kernel=(3, 3), stride=(2, 2), pool_type="avg", pooling_convention="full"
    ),
    "pool_v1_max": lambda mx, x: mx.sym.Pooling_v1(
        x, kernel=(2, 3), stride=(2, 2), pool_type="max"
    ),
    "cast": lambda mx, x: mx.sym.Cast(x, dtype="float32") * 2,
    "plain_loss": lambda mx, x: mx.sym.make_loss(x * 3),
    "shape_of": lambda mx, x: mx.sym._internal._identity_with_attr_like_rhs(x * 2, x),
    "broadcast_axis": lambda mx, x: mx.sym.broadcast_axis(
        mx.sym.mean(x, axis=(2, 3), keepdims=True), axis=(2, 3), size=(4, 5)
    ),
    "const_linspace": _beside(lambda mx: mx.sym.linspace(0, 2, 17)),
    "const_open": _beside(lambda mx: mx.sym.linspace(-1, 1, 17, endpoint=False)),
    "const_zeros": _beside(lambda mx: mx.sym.zeros((17,))),
    "const_ones": _beside(lambda mx: mx.sym.ones((17,))),
    "const_full": _beside(lambda mx: mx.sym.full((17,), 0.3)),
    "const_arange": _beside(lambda mx: mx.sym.arange(17)),
    "const_repeated": _beside(lambda mx: mx.sym.slice_axis(
        mx.sym.arange(1, 10, step=0.5, repeat=2), axis=0, begin=0, end=17)),
    "const_eye": lambda mx, x: mx.sym.dot(x, mx.sym.eye(17, 5, k=-1)),
    "const_like": lambda mx, x: mx.sym.broadcast_mul(
        x, mx.sym.reshape(mx.sym.contrib.arange_like(x, axis=3), shape=(1, 1, 1, -1))
    ),
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
    plain |= OTHERS
    drawn = {
        f"{name}_{number}": family(Random(f"{name}{number}"))
        for name, family in FAMILIES.items()
        for number in range(DRAWS)
    }
    return plain | drawn
