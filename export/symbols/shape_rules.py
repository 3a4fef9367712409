"""One rule an operator: the shape of its output, and those of its parameters.

Sizes follow MXNet: pooling ``valid`` is ``1 + floor((x + 2p - k) / s)``, ``full`` takes the
ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from export.errors import InvalidSymbol, UnsupportedOperator
from export.symbols.conv_arithmetic import (
    Shape,
    bilinear_upsampling_arithmetic,
    check_window,
    convolved_lengths,
    deconvolution_arithmetic,
    pair,
    pooled_length,
)
from export.symbols.graph import BATCH_NORMS, Node

LABELLED = frozenset({"SoftmaxOutput", "Softmax"})
DEFORMABLE = ("_contrib_DeformableConvolution", "_npx_deformable_convolution")
SUMS = ("add_n", "ElementWiseSum", "_sum")
BINARY = {
    "elemwise_add": "Add", "broadcast_add": "Add", "broadcast_plus": "Add", "_Plus": "Add",
    "_plus": "Add", "elemwise_mul": "Mul", "broadcast_mul": "Mul", "_Mul": "Mul", "_mul": "Mul",
    "elemwise_sub": "Sub", "broadcast_sub": "Sub", "_Minus": "Sub", "_minus": "Sub",
    "broadcast_minus": "Sub", "elemwise_div": "Div", "broadcast_div": "Div", "_Div": "Div",
    "_div": "Div", "broadcast_maximum": "Max", "_maximum": "Max", "_Maximum": "Max",
    "broadcast_minimum": "Min", "_minimum": "Min", "_Minimum": "Min",
}  # fmt: skip
SCALAR = tuple(
    f"_{kind}"
    for pair in (
        ("plus_scalar", "PlusScalar"), ("minus_scalar", "MinusScalar"),
        ("mul_scalar", "MulScalar"), ("div_scalar", "DivScalar"),
        ("rminus_scalar", "RMinusScalar"), ("rdiv_scalar", "RDivScalar"),
        ("maximum_scalar", "MaximumScalar"), ("minimum_scalar", "MinimumScalar"),
        ("power_scalar", "PowerScalar"),
    )
    for kind in pair
)  # fmt: skip
UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "abs": "Abs", "negative": "Neg", "_np_relu": "Relu", "softsign": "Softsign",
}  # fmt: skip
IDENTITIES = ("identity", "_copy", "BlockGrad", "Cast", "MakeLoss")
SOFTMAXES = ("softmax", "SoftmaxActivation", *sorted(LABELLED))
_SAME = ("Activation", "clip", "LeakyReLU", "Dropout", "hard_sigmoid", "square",
         *SOFTMAXES, *IDENTITIES, *UNARY, *SCALAR)  # fmt: skip


def _convolution(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    groups, filters = node.integer("num_group", 1), node.integer("num_filter", 0)
    if groups < 1 or filters < 1 or channels % groups or filters % groups:
        raise InvalidSymbol(f"{node.name}: {groups} groups for {channels} -> {filters} channels")
    return (batch, filters, *convolved_lengths(node, lengths))


def _deconvolution(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    groups, filters = node.integer("num_group", 1), node.integer("num_filter", 0)
    if groups < 1 or filters < 1 or channels % groups or filters % groups:
        raise InvalidSymbol(f"{node.name}: {groups} groups for {channels} -> {filters} channels")
    return (batch, filters, *deconvolution_arithmetic(node, lengths).lengths)


def _pooling(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    if node.flag("global_pool", False):
        return (batch, channels, 1, 1)
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    full = node.text("pooling_convention", "valid") == "full"
    if len(kernel) != 2:
        raise UnsupportedOperator(f"{node.name}: only 2-D pooling, not kernel {kernel}")
    check_window(node, (kernel, stride), pad)
    return (
        batch,
        channels,
        *(pooled_length(lengths[i], kernel[i], stride[i], pad[i], full) for i in range(2)),
    )


def _adaptive_pooling(node: Node, features: Sequence[Shape]) -> Shape:
    size = node.integers("output_size", (1,))
    return (*_map(node, features[0])[:2], *(size * 2)[:2])


def _resize(node: Node, features: Sequence[Shape]) -> Shape:
    mode = node.text("mode", "size")
    shape = _map(node, features[0])
    if mode == "like" and len(features) == 2:
        return (*shape[:2], *_map(node, features[1])[2:])
    if mode != "size":
        raise UnsupportedOperator(f"{node.name}: resizes of mode {mode!r} are not known")
    if node.text("scale_height", "") and node.text("scale_width", ""):
        scales = node.number("scale_height", 1), node.number("scale_width", 1)
        return (*shape[:2], *(int(shape[2 + i] * scales[i]) for i in range(2)))
    return (*shape[:2], node.integer("height", 1), node.integer("width", 1))


def _concat(node: Node, features: Sequence[Shape]) -> Shape:
    first = features[0]
    axis = node.integer("dim", 1) % len(first)
    for shape in features[1:]:
        if len(shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise InvalidSymbol(f"{node.name}: cannot concatenate {features} along axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in features), *first[axis + 1 :])


def _binary(node: Node, features: Sequence[Shape]) -> Shape:
    several = node.op in SUMS
    if (len(features) != 2 and not several) or len({len(shape) for shape in features}) != 1:
        raise InvalidSymbol(f"{node.name} ({node.op}) needs two feature maps, not {features}")
    if several:
        for shape in features[1:]:
            if shape != features[0]:
                raise InvalidSymbol(f"{node.name}: the shapes {features[0]} and {shape} differ")
        return features[0]
    pairs = list(zip(*features, strict=True))
    broadcast = node.op.startswith("broadcast")
    if any(a != b and not (broadcast and 1 in (a, b)) for a, b in pairs):
        raise InvalidSymbol(
            f"{node.name}: the shapes {features[0]} and {features[1]} differ; was the symbol made"
            " for another size?"
        )
    return tuple(max(pair) for pair in pairs)


def _same(node: Node, features: Sequence[Shape]) -> Shape:
    return features[0]


def _mean(node: Node, features: Sequence[Shape]) -> Shape:
    shape = _map(node, features[0])
    axes = {axis % 4 for axis in node.integers("axis")}
    if node.flag("exclude", False):
        axes = set(range(4)) - axes
    if axes != {2, 3}:
        raise UnsupportedOperator(f"{node.name}: {node.op} over the axes {sorted(axes)}")
    return (*shape[:2], 1, 1) if node.flag("keepdims", False) else shape[:2]


def _map(node: Node, shape: Shape) -> Shape:
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} ({node.op}) needs a feature map, not {shape}")
    return shape


def upsampled_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns height and width times ``scale``. Raises UnsupportedOperator for several inputs."""
    scale = node.integer("scale", 0)
    kind = node.text("sample_type", "nearest")
    if kind not in ("nearest", "bilinear") or len(features) != 1 or scale < 1:
        raise UnsupportedOperator(f"{node.name}: {kind} UpSampling of {len(features)} inputs")
    batch, channels, *lengths = features[0]
    return (batch, channels, *(length * scale for length in lengths))


_COPY, _INFER, _REST, _MERGE, _SPLIT = 0, -1, -2, -3, -4


def flattened_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns (batch, everything else)."""
    batch, *rest = features[0]
    return (batch, math.prod(rest))


def reshaped_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Follows MXNet's codes: 0 copies, -1 infers, -2 copies the rest, -3 merges two, -4 splits
    one."""
    shape, codes = features[0], list(node.integers("shape"))
    if not codes or node.flag("reverse", False):
        raise UnsupportedOperator(f"{node.name}: Reshape without shape, or reversed")
    found: list[int] = []
    position = index = 0
    try:
        while index < len(codes):
            code = codes[index]
            if code > 0 or code == _INFER:
                found.append(code)
                position += 1
            elif code == _COPY:
                found.append(shape[position])
                position += 1
            elif code == _REST:
                found.extend(shape[position:])
                position = len(shape)
            elif code == _MERGE:
                found.append(shape[position] * shape[position + 1])
                position += 2
            elif code == _SPLIT:
                found.extend(_split(shape[position], codes[index + 1], codes[index + 2]))
                position, index = position + 1, index + 2
            else:
                raise UnsupportedOperator(f"{node.name}: {code} in the shape {tuple(codes)}")
            index += 1
    except IndexError as error:
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}") from error
    known = math.prod(n for n in found if n != _INFER)
    if found.count(_INFER) > 1 or not known or math.prod(shape) % known:
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}")
    found = [math.prod(shape) // known if n == _INFER else n for n in found]
    if math.prod(found) != math.prod(shape):
        raise InvalidSymbol(f"{node.name}: {tuple(codes)} does not fit {shape}")
    return tuple(found)


def transposed_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the lengths in the order of ``axes``. Raises UnsupportedOperator where the batch
    moves."""
    axes = node.integers("axes")
    if sorted(axes) != list(range(len(features[0]))) or axes[0] != 0:
        raise UnsupportedOperator(f"{node.name}: transpose by {axes}")
    return tuple(features[0][axis] for axis in axes)


def _split(length: int, first: int, second: int) -> tuple[int, int]:
    if first == _INFER:
        return length // second, second
    return first, length // first if second == _INFER else second


Bounds = tuple[tuple[int, int], ...]


def slice_bounds(node: Node, features: Sequence[Shape]) -> Bounds:
    """Returns begin and end along every axis. Raises InvalidSymbol where they leave the input, and
    UnsupportedOperator where they cut the batch."""
    shape = features[0]
    bounds = {"Crop": _crop, "crop_like": _crop, "slice_axis": _slice_axis}.get(
        node.op, _slice_like
    )(node, features)
    for axis, ((begin, end), length) in enumerate(zip(bounds, shape, strict=True)):
        if not 0 <= begin < end <= length:
            raise InvalidSymbol(
                f"{node.name} ({node.op}) takes {begin} to {end} of axis {axis}, which has {length}"
            )
        if axis == 0 and (begin, end) != (0, length):
            raise UnsupportedOperator(f"{node.name} ({node.op}) cuts the batch")
    return bounds


def sliced_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape of what is left."""
    return tuple(end - begin for begin, end in slice_bounds(node, features))


def padded_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns the shape with its frame. Raises UnsupportedOperator where the batch or channels get
    one."""
    widths = node.integers("pad_width")
    if len(widths) != 8 or len(features[0]) != 4 or any(widths[:4]) or min(widths) < 0:
        raise UnsupportedOperator(f"{node.name}: only rows and columns can be padded, not {widths}")
    shape = features[0]
    return (*shape[:2], *(shape[i] + widths[2 * i] + widths[2 * i + 1] for i in (2, 3)))


def _crop(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} (Crop) needs a feature map, not {shape}")
    size = features[1][2:] if len(features) > 1 else pair(node, "h_w", (0, 0))
    offset = pair(node, "offset", (0, 0))
    if node.flag("center_crop", False):
        offset = tuple((shape[2 + i] - size[i]) // 2 for i in range(2))
    rows, columns = ((offset[i], offset[i] + size[i]) for i in range(2))
    return ((0, shape[0]), (0, shape[1]), rows, columns)


def _slice_axis(node: Node, features: Sequence[Shape]) -> Bounds:
    shape = features[0]
    axis = node.integer("axis", 0) % len(shape)
    length = shape[axis]
    begin = node.integer("begin", 0)
    end = node.integer("end", length)
    own = (begin + length if begin < 0 else begin, end + length if end < 0 else end)
    return tuple(own if i == axis else (0, n) for i, n in enumerate(shape))


def _slice_like(node: Node, features: Sequence[Shape]) -> Bounds:
    if len(features) != 2:
        raise UnsupportedOperator(f"{node.name}: slice_like reads a parameter")
    shape, like = features
    if len(shape) != len(like):
        raise InvalidSymbol(f"{node.name}: slice_like of {shape} by {like}")
    axes = {axis % len(shape) for axis in node.integers("axes", tuple(range(len(shape))))}
    return tuple((0, like[i] if i in axes else n) for i, n in enumerate(shape))


def parameter_shapes(node: Node, features: Shape) -> list[Shape]:
    """Shapes of the variables that an operator reads, in their order; ``features`` is its input."""
    filters, groups = node.integer("num_filter", 0), node.integer("num_group", 1)
    if node.op == "Convolution" or node.op in DEFORMABLE:
        weight: Shape = (filters, features[1] // groups, *node.integers("kernel"))
        return [weight] if node.flag("no_bias", False) else [weight, (filters,)]
    if node.op == "Deconvolution":
        weight = (features[1], filters // groups, *node.integers("kernel"))
        return [weight] if node.flag("no_bias", True) else [weight, (filters,)]
    if node.op == "UpSampling" and node.text("sample_type", "nearest") == "bilinear":
        kernel, _ = bilinear_upsampling_arithmetic(node.integer("scale", 0))
        return [(features[1], 1, kernel, kernel)]
    if node.op in BATCH_NORMS:
        return [(features[1],)] * 4
    if node.op == "LeakyReLU":
        return [(features[1],)]
    return []


Rule = Callable[[Node, Sequence[Shape]], Shape]
RULES: dict[str, Rule] = {
    "Convolution": _convolution,
    "Deconvolution": _deconvolution,
    "UpSampling": upsampled_shape,
    "Pooling": _pooling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Concat": _concat,
    "concat": _concat,
    "Flatten": flattened_shape,
    "flatten": flattened_shape,
    "Reshape": reshaped_shape,
    "reshape": reshaped_shape,
    "transpose": transposed_shape,
    "mean": _mean,
    "max": _mean,
    "Pad": padded_shape,
    "pad": padded_shape,
    **dict.fromkeys(("Crop", "slice_axis", "slice_like"), sliced_shape),
    **dict.fromkeys(DEFORMABLE, _convolution),
    **dict.fromkeys((*BINARY, *SUMS), _binary),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(BATCH_NORMS, _same),
}
