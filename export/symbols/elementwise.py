"""Defines the formulas of MXNet's element-wise operators once, for every runtime.

A formula calls ``m("Add", a, b)``: ``m`` either adds ONNX nodes or computes with PyTorch. The names
are ONNX's; numbers may stand for tensors. ``Float`` makes 0 and 1 of a comparison, as MXNet has no
truth values. Gradients follow from the formulas, and are MXNet's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.errors import UnsupportedOperator
from export.symbols.graph import Node


class Maths(Protocol):
    """Computes one of ONNX's operators; ``attributes`` are those of the operator."""

    def __call__(self, op: str, *inputs: Any, **attributes: float) -> Any: ...


Formula = Callable[..., Any]


def _one(op: str) -> Formula:
    return lambda m, *inputs: m(op, *inputs)


def _truncated(m: Maths, x: Any) -> Any:
    return m("Mul", m("Sign", x), m("Floor", m("Abs", x)))


def _rounded(m: Maths, x: Any) -> Any:
    return m("Mul", m("Sign", x), m("Floor", m("Add", m("Abs", x), 0.5)))


def _cube_root(m: Maths, x: Any) -> Any:
    return m("Mul", m("Sign", x), m("Pow", m("Abs", x), 1 / 3))


def _is_zero(m: Maths, x: Any) -> Any:
    return m("Float", m("Equal", x, 0.0))


# Functions of one tensor without attributes.
UNARY: dict[str, Formula] = {
    "relu": _one("Relu"), "sigmoid": _one("Sigmoid"), "tanh": _one("Tanh"), "exp": _one("Exp"),
    "log": _one("Log"), "sqrt": _one("Sqrt"), "abs": _one("Abs"), "negative": _one("Neg"),
    "softsign": _one("Softsign"), "erf": _one("Erf"), "sin": _one("Sin"), "cos": _one("Cos"),
    "tan": _one("Tan"), "sinh": _one("Sinh"), "cosh": _one("Cosh"), "arcsin": _one("Asin"),
    "arccos": _one("Acos"), "arctan": _one("Atan"), "arcsinh": _one("Asinh"),
    "arccosh": _one("Acosh"), "arctanh": _one("Atanh"), "ceil": _one("Ceil"),
    "floor": _one("Floor"), "sign": _one("Sign"), "reciprocal": _one("Reciprocal"),
    "square": lambda m, x: m("Mul", x, x),
    "rsqrt": lambda m, x: m("Reciprocal", m("Sqrt", x)),
    "cbrt": _cube_root,
    "rcbrt": lambda m, x: m("Reciprocal", _cube_root(m, x)),
    "expm1": lambda m, x: m("Sub", m("Exp", x), 1.0),
    "log1p": lambda m, x: m("Log", m("Add", x, 1.0)),
    "log2": lambda m, x: m("Mul", m("Log", x), 1 / math.log(2)),
    "log10": lambda m, x: m("Mul", m("Log", x), 1 / math.log(10)),
    "degrees": lambda m, x: m("Mul", x, 180 / math.pi),
    "radians": lambda m, x: m("Mul", x, math.pi / 180),
    # MXNet's halves go down.
    "rint": lambda m, x: m("Ceil", m("Sub", x, 0.5)),
    "round": _rounded, "fix": _truncated, "trunc": _truncated,
    "logical_not": _is_zero,
    "zeros_like": lambda m, x: m("Mul", _is_zero(m, x), 0.0),
    "ones_like": lambda m, x: m("Add", m("Mul", _is_zero(m, x), 0.0), 1.0),
}  # fmt: skip


def _modulo(m: Maths, a: Any, b: Any) -> Any:
    """Returns the remainder with the divisor's sign; 0 where the divisor is 0."""
    rest = m("Mod", a, b)
    signed = m("Where", m("Less", m("Mul", rest, b), 0.0), m("Add", rest, b), rest)
    return m("Where", m("Equal", b, 0.0), 0.0, signed)


def _hypotenuse(m: Maths, a: Any, b: Any) -> Any:
    return m("Sqrt", m("Add", m("Mul", a, a), m("Mul", b, b)))


def _comparison(op: str, negated: bool = False) -> Formula:
    if negated:
        return lambda m, a, b: m("Float", m("Not", m(op, a, b)))
    return lambda m, a, b: m("Float", m(op, a, b))


def _logical(op: str) -> Formula:
    def formula(m: Maths, a: Any, b: Any) -> Any:
        true = [m("Not", m("Equal", x, 0.0)) for x in (a, b)]
        return m("Float", m(op, *true))

    return formula


_KINDS: dict[str, Formula] = {
    "add": _one("Add"), "sub": _one("Sub"), "mul": _one("Mul"), "div": _one("Div"),
    "maximum": _one("Max"), "minimum": _one("Min"), "power": _one("Pow"), "mod": _modulo,
    "hypot": _hypotenuse, "equal": _comparison("Equal"),
    "not_equal": _comparison("Equal", negated=True), "greater": _comparison("Greater"),
    "greater_equal": _comparison("GreaterOrEqual"), "lesser": _comparison("Less"),
    "lesser_equal": _comparison("LessOrEqual"), "logical_and": _logical("And"),
    "logical_or": _logical("Or"), "logical_xor": _logical("Xor"),
}  # fmt: skip
_ELEMENTWISE = {"elemwise_add": "add", "elemwise_sub": "sub", "elemwise_mul": "mul",
                "elemwise_div": "div"}  # fmt: skip
# Of two tensors, by operator: ``broadcast_*`` repeats lengths of 1, the others do not.
BINARY: dict[str, Formula] = {
    **{op: _KINDS[kind] for op, kind in _ELEMENTWISE.items()},
    **{f"broadcast_{kind}": formula for kind, formula in _KINDS.items()},
    **{f"_{kind}": f for kind, f in _KINDS.items() if kind not in ("add", "sub", "mul", "div")},
}
ADDITIONS = frozenset({"elemwise_add", "broadcast_add"})


def _reversed(kind: str) -> Formula:
    return lambda m, x, number: _KINDS[kind](m, number, x)


# Of a tensor and the attribute ``scalar``.
SCALAR: dict[str, Formula] = {
    **{f"_{kind}_scalar": f for kind, f in _KINDS.items() if kind not in ("add", "sub")},
    "_plus_scalar": _KINDS["add"], "_minus_scalar": _KINDS["sub"],
    "_rminus_scalar": _reversed("sub"), "_rdiv_scalar": _reversed("div"),
    "_rmod_scalar": _reversed("mod"), "_rpower_scalar": _reversed("power"),
}  # fmt: skip


def _clip(m: Maths, node: Node, x: Any) -> Any:
    return m("Clip", x, node.number("a_min", 0), node.number("a_max", 0))


def _smooth_l1(m: Maths, node: Node, x: Any) -> Any:
    turn = 1 / node.number("scalar", 1) ** 2
    size = m("Abs", x)
    near = m("Mul", m("Mul", x, x), 0.5 / turn)
    return m("Where", m("Greater", size, turn), m("Sub", size, 0.5 * turn), near)


def _quadratic(m: Maths, node: Node, x: Any) -> Any:
    a, b, c = (node.number(key, 0) for key in "abc")
    return m("Add", m("Mul", m("Add", m("Mul", x, a), b), x), c)


def _hard_sigmoid(m: Maths, node: Node, x: Any) -> Any:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return m("HardSigmoid", x, alpha=alpha, beta=beta)


_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus",
                "softsign": "Softsign"}  # fmt: skip


def _activation(m: Maths, node: Node, x: Any) -> Any:
    kind = node.text("act_type", "")
    if kind not in _ACTIVATIONS:
        raise UnsupportedOperator(
            f"{node.name} (Activation): act_type {kind!r} is not known: expected one of"
            f" {', '.join(_ACTIVATIONS)}"
        )
    return m(_ACTIVATIONS[kind], x)


def _leaky_relu(m: Maths, node: Node, x: Any, *slopes: Any) -> Any:
    """Computes all kinds; ``rrelu`` as at inference, with the mean of its slopes."""
    kind, slope = node.text("act_type", "leaky"), node.number("slope", 0.25)
    if kind == "prelu":
        return m("PRelu", x, *slopes)
    if kind == "rrelu":
        bounds = node.number("lower_bound", 0.125), node.number("upper_bound", 0.334)
        return m("LeakyRelu", x, alpha=sum(bounds) / 2)
    if kind == "gelu":
        share = m("Add", m("Erf", m("Mul", x, math.sqrt(0.5))), 1.0)
        return m("Mul", m("Mul", x, share), 0.5)
    if kind == "selu":
        return m("Selu", x, alpha=1.6732632423543772, gamma=1.0507009873554805)
    if kind not in ("leaky", "elu"):
        raise UnsupportedOperator(
            f"{node.name} (LeakyReLU): act_type {kind!r} is not known: expected elu, gelu, leaky,"
            " prelu, rrelu or selu"
        )
    return m("LeakyRelu" if kind == "leaky" else "Elu", x, alpha=slope)


# Of one tensor (PReLU: two) and attributes.
ATTRIBUTED: dict[str, Formula] = {
    "Activation": _activation, "LeakyReLU": _leaky_relu, "clip": _clip,
    "hard_sigmoid": _hard_sigmoid, "smooth_l1": _smooth_l1, "_contrib_quadratic": _quadratic,
}  # fmt: skip


def evaluate(m: Maths, node: Node, inputs: tuple[Any, ...]) -> Any:
    """Returns what ``m`` makes of an operator of the tables above. Raises UnsupportedOperator for
    attributes that are not known."""
    op = node.op
    if op in UNARY:
        return UNARY[op](m, inputs[0])
    if op in BINARY:
        return BINARY[op](m, *inputs)
    if op in SCALAR:
        return SCALAR[op](m, inputs[0], node.number("scalar", 1))
    return ATTRIBUTED[op](m, node, *inputs)


FORMULAS = frozenset((*UNARY, *BINARY, *SCALAR, *ATTRIBUTED))


def constant_values(node: Node, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns float32 values of an operator without inputs (``_arange_like`` has one, for its
    length). Raises UnsupportedOperator for another type of numbers."""
    kind = node.text("dtype", "float32")
    if kind != "float32":
        raise UnsupportedOperator(f"{node.name}: {node.op} of {kind}: expected float32")
    if node.op == "_eye":
        return np.eye(shape[0], shape[1], k=node.integer("k", 0), dtype=np.float32)
    if node.op == "_linspace":
        ends = node.number("start", 0), node.number("stop", 1)
        return np.linspace(*ends, shape[0], endpoint=node.flag("endpoint", True), dtype=np.float32)
    if node.op in ("_arange", "_contrib_arange_like"):
        start = node.number("start", 0)
        if node.op != "_contrib_arange_like" and not node.text("stop", ""):
            start = 0.0
        places = np.arange(math.prod(shape)) // node.integer("repeat", 1)
        values: NDArray[np.float32] = (start + node.number("step", 1) * places).astype(np.float32)
        return values
    value = {"_zeros": 0.0, "_ones": 1.0}.get(node.op, node.number("value", 0))
    return np.full(shape, value, np.float32)
