"""One rule an operator: the shape of its output, and those of its parameters.

Sizes follow MXNet: pooling ``valid`` is ``1 + floor((x + 2p - k) / s)``, ``full`` takes the
ceiling. The rules of operators that only move values are in ``reshape_rules``.
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
from export.symbols.elementwise import ATTRIBUTED, BINARY, FORMULAS, SCALAR, UNARY
from export.symbols.graph import BATCH_NORMS, Node
from export.symbols.reduction_rules import (
    affine_product_shape,
    batch_dot_shape,
    dot_shape,
    index_reduction_shape,
    moments_shapes,
    one_hot_shape,
    pick_shape,
    ranked_shapes,
    reduction_shape,
    take_shape,
)
from export.symbols.reshape_rules import (
    axis_of,
    blocks_shape,
    broadcast_shape,
    concatenated_shape,
    expanded_shape,
    flattened_shape,
    like_shape,
    padded_shape,
    repeated_shape,
    reshaped_shape,
    sliced_shape,
    split_shapes,
    squeezed_shape,
    stacked_shape,
    tiled_shape,
    transposed_shape,
)

# Output layers: their backward pass is a loss of their own, which reads the label.
SOFTMAX_OUTPUT = "SoftmaxOutput"
REGRESSIONS = ("LinearRegressionOutput", "LogisticRegressionOutput", "MAERegressionOutput")
LABELLED = frozenset({SOFTMAX_OUTPUT, *REGRESSIONS})
MODULATED = "_contrib_ModulatedDeformableConvolution"
DEFORMABLE = ("_contrib_DeformableConvolution", MODULATED)
CONVOLUTIONS = ("Convolution", "Convolution_v1")
POOLINGS = ("Pooling", "Pooling_v1")
SUM = "add_n"
IDENTITIES = ("_copy", "BlockGrad", "Cast", "amp_cast", "MakeLoss", "make_loss",
              "_contrib_gradientmultiplier", "_identity_with_attr_like_rhs")  # fmt: skip
SOFTMAXES = ("softmax", "log_softmax", "softmin", "SoftmaxActivation", SOFTMAX_OUTPUT)
RESHAPES = ("Reshape", "Flatten", "reshape_like", "expand_dims", "squeeze")
SLICES = ("Crop", "slice", "slice_axis", "slice_like", "reverse")
BROADCASTS = ("broadcast_to", "broadcast_axis", "broadcast_like")
REDUCTIONS = ("sum", "mean", "prod", "max", "min", "nansum", "nanprod", "norm")
INDEX_REDUCTIONS = ("argmax", "argmin", "argmax_channel")
SPLITS = ("SliceChannel", "_split_v2")
RANKINGS = ("topk", "sort", "argsort")
CONSTANTS = ("_zeros", "_ones", "_full", "_arange", "_linspace", "_eye")
_SAME = ("Dropout", "LRN", "_np_cumsum", "L2Normalization", "InstanceNorm", "LayerNorm",
         "GroupNorm", "_contrib_div_sqrt_dim", *SOFTMAXES, *REGRESSIONS, *IDENTITIES, *UNARY,
         *SCALAR, *ATTRIBUTED)  # fmt: skip


def _convolution(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = features[0] if _is_1d(node) else _map(node, features[0])
    groups, filters = node.integer("num_group", 1), node.integer("num_filter", 0)
    if groups < 1 or filters < 1 or channels % groups or filters % groups:
        raise InvalidSymbol(f"{node.name}: {groups} groups for {channels} -> {filters} channels")
    return (batch, filters, *convolved_lengths(node, lengths))


def _is_1d(node: Node) -> bool:
    return len(node.integers("kernel")) == 1


def _deconvolution(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    groups, filters = node.integer("num_group", 1), node.integer("num_filter", 0)
    if groups < 1 or filters < 1 or channels % groups or filters % groups:
        raise InvalidSymbol(f"{node.name}: {groups} groups for {channels} -> {filters} channels")
    return (batch, filters, *deconvolution_arithmetic(node, lengths).lengths)


def _fully_connected(node: Node, features: Sequence[Shape]) -> Shape:
    hidden, shape = node.integer("num_hidden", 0), features[0]
    if hidden < 1:
        raise InvalidSymbol(f"{node.name}: num_hidden={hidden} is not valid: expected at least 1")
    return (shape[0], hidden) if node.flag("flatten", True) else (*shape[:-1], hidden)


def _pooling(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    if node.flag("global_pool", False):
        return (batch, channels, 1, 1)
    kernel = node.integers("kernel")
    stride, pad = node.integers("stride", (1, 1)), node.integers("pad", (0, 0))
    if node.op == "Pooling_v1" and node.text("pool_type", "max") == "max" and any(pad):
        raise UnsupportedOperator(f"{node.name}: Pooling_v1 takes zeros of its padding into a max")
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
    scales = [node.text(f"scale_{side}", "") for side in ("height", "width")]
    lengths = shape[2:]
    if mode == "size" and not all(scales):
        return (*shape[:2], node.integer("height", 1), node.integer("width", 1))
    if mode in ("size", "odd_scale"):
        factors = node.number("scale_height", 1), node.number("scale_width", 1)
        # Of an odd length the distance of the outer pixels is scaled.
        odd = [n % 2 if mode == "odd_scale" else 0 for n in lengths]
        return (*shape[:2], *(int((n - o) * f) + o
                              for n, o, f in zip(lengths, odd, factors, strict=True)))  # fmt: skip
    steps = {"to_even_down": (0, -1), "to_even_up": (0, 1), "to_odd_down": (1, -1),
             "to_odd_up": (1, 1)}  # fmt: skip
    if mode not in steps:
        raise UnsupportedOperator(f"{node.name}: resizes of mode {mode!r} are not known")
    rest, step = steps[mode]
    return (*shape[:2], *(n if n % 2 == rest else n + step for n in lengths))


def _upsampling(node: Node, features: Sequence[Shape]) -> Shape:
    """Returns height and width of the first input times ``scale``; further inputs are brought to
    that size and concatenated or added."""
    scale, kind = node.integer("scale", 0), node.text("sample_type", "nearest")
    if kind not in ("nearest", "bilinear") or scale < 1:
        raise UnsupportedOperator(f"{node.name}: {kind} UpSampling by {scale}")
    batch, channels, height, width = _map(node, features[0])
    size = (height * scale, width * scale)
    for shape in features[1:]:
        if any(n % own for n, own in zip(size, _map(node, shape)[2:], strict=True)):
            raise InvalidSymbol(f"{node.name}: {shape} does not go into {size} in whole steps")
    if len(features) > 1:
        if node.text("multi_input_mode", "concat") == "concat":
            channels = sum(shape[1] for shape in features)
        elif any(shape[1] != channels for shape in features):
            raise InvalidSymbol(f"{node.name}: cannot add maps of the shapes {features}")
    return (batch, channels, *size)


def _binary(node: Node, features: Sequence[Shape]) -> Shape:
    if len(features) != 2:
        raise InvalidSymbol(f"{node.name} ({node.op}) needs two feature maps, not {features}")
    first, second = features
    rank = max(len(first), len(second))
    broadcast = node.op.startswith("broadcast")
    if broadcast:
        first, second = ((1,) * (rank - len(shape)) + shape for shape in features)
    fits = len(first) == len(second) and all(
        a == b or (broadcast and 1 in (a, b)) for a, b in zip(first, second, strict=True)
    )
    if not fits:
        raise InvalidSymbol(
            f"{node.name}: the shapes {features[0]} and {features[1]} differ; was the symbol made"
            " for another size?"
        )
    return tuple(b if a == 1 else a for a, b in zip(first, second, strict=True))


def _sum(node: Node, features: Sequence[Shape]) -> Shape:
    for shape in features[1:]:
        if shape != features[0]:
            raise InvalidSymbol(f"{node.name}: the shapes {features[0]} and {shape} differ")
    return features[0]


def _same(node: Node, features: Sequence[Shape]) -> Shape:
    return features[0]


def _where(node: Node, features: Sequence[Shape]) -> Shape:
    if len(features) != 3 or len(set(features)) != 1:
        raise UnsupportedOperator(f"{node.name}: where of the shapes {features}, which differ")
    return features[0]


def _grid(node: Node, features: Sequence[Shape]) -> Shape:
    shape = features[0]
    if node.text("transform_type", "") == "warp":
        if len(shape) != 4 or shape[1] != 2 or min(shape[2:]) < 2:
            raise InvalidSymbol(f"{node.name}: a flow is [N, 2, H, W], not {shape}")
        return shape
    size = pair(node, "target_shape", (0, 0), 1)
    if math.prod(shape[1:]) != 6:
        raise InvalidSymbol(f"{node.name}: an affine transformation is [N, 6], not {shape}")
    return (shape[0], 2, *size)


def _sampler(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *_ = _map(node, features[0])
    if node.op == "SpatialTransformer":
        if math.prod(features[1][1:]) != 6:
            raise InvalidSymbol(f"{node.name}: a transformation is [N, 6], not {features[1]}")
        return (batch, channels, *pair(node, "target_shape", (0, 0), 1))
    grid = features[1]
    if len(grid) != 4 or grid[1] != 2 or grid[0] != batch:
        raise InvalidSymbol(f"{node.name}: a grid is [N, 2, h, w], not {grid}")
    return (batch, channels, *grid[2:])


def _columns(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, *lengths = _map(node, features[0])
    positions = math.prod(convolved_lengths(node, lengths))
    return (batch, channels * math.prod(node.integers("kernel")), positions)


def _image_of_columns(node: Node, features: Sequence[Shape]) -> Shape:
    batch, channels, positions = features[0]
    size, taps = pair(node, "output_size", (), 1), math.prod(node.integers("kernel"))
    if channels % taps or math.prod(convolved_lengths(node, size)) != positions:
        raise InvalidSymbol(f"{node.name}: col2im of {features[0]} into {size}")
    return (batch, channels // taps, *size)


def _constant(node: Node, features: Sequence[Shape]) -> Shape:
    if node.op == "_eye":
        return (node.integer("N", 0), node.integer("M", 0) or node.integer("N", 0))
    if node.op == "_linspace":
        return (node.integer("num", 1),)
    if node.op == "_arange":
        start, step = node.number("start", 0), node.number("step", 1)
        stop = node.number("stop", math.nan)
        if math.isnan(stop):
            start, stop = 0, start
        if not step:
            raise InvalidSymbol(f"{node.name}: step=0 is not valid: expected another number")
        return (max(math.ceil((stop - start) / step), 0) * node.integer("repeat", 1),)
    return node.integers("shape", (1,))


def _arange_like(node: Node, features: Sequence[Shape]) -> Shape:
    if not node.text("axis", ""):
        raise UnsupportedOperator(f"{node.name}: arange_like without an axis counts the batch")
    return (features[0][axis_of(node, len(features[0]))],)


def _map(node: Node, shape: Shape) -> Shape:
    if len(shape) != 4:
        raise InvalidSymbol(f"{node.name} ({node.op}) needs a feature map, not {shape}")
    return shape


def data_inputs(node: Node) -> int | None:
    """Returns how many inputs of an operator come before its own parameters; None is all."""
    if node.op in (*CONVOLUTIONS, "Deconvolution", "FullyConnected", *BATCH_NORMS, *NORMS):
        return 1
    if node.op in DEFORMABLE:
        return 3 if node.op == MODULATED else 2
    prelu = node.op == "LeakyReLU" and node.text("act_type", "leaky") == "prelu"
    bilinear = node.op == "UpSampling" and node.text("sample_type", "nearest") == "bilinear"
    return 1 if prelu or bilinear or node.op == "Embedding" else None


NORMS = ("InstanceNorm", "LayerNorm", "GroupNorm")


def keeps_winner(node: Node) -> bool:
    """Returns whether the largest of a map's channels stays the largest behind an operator: a
    softmax over them, an output layer, a sigmoid, or nothing at all."""
    if node.op in ("softmax", "log_softmax"):
        return node.integer("axis", -1) in (1, -3) and node.number("temperature", 1) > 0
    if node.op == "SoftmaxActivation":
        return node.text("mode", "instance") == "channel"
    return node.op in (*LABELLED, *IDENTITIES) or is_sigmoid(node)


def is_sigmoid(node: Node) -> bool:
    """Returns whether an operator makes a probability of every score by itself."""
    activation = node.op == "Activation" and node.text("act_type", "") == "sigmoid"
    return activation or node.op in ("sigmoid", "LogisticRegressionOutput")


def parameter_shapes(node: Node, features: Shape) -> list[Shape]:
    """Shapes of the variables that an operator reads, in their order; ``features`` is its input."""
    filters, groups = node.integer("num_filter", 0), node.integer("num_group", 1)
    if node.op in CONVOLUTIONS or node.op in DEFORMABLE:
        weight: Shape = (filters, features[1] // groups, *node.integers("kernel"))
        return [weight] if node.flag("no_bias", False) else [weight, (filters,)]
    if node.op == "Deconvolution":
        weight = (features[1], filters // groups, *node.integers("kernel"))
        return [weight] if node.flag("no_bias", True) else [weight, (filters,)]
    if node.op == "FullyConnected":
        hidden = node.integer("num_hidden", 0)
        inner = math.prod(features[1:]) if node.flag("flatten", True) else features[-1]
        return [(hidden, inner)] if node.flag("no_bias", False) else [(hidden, inner), (hidden,)]
    if node.op == "UpSampling" and node.text("sample_type", "nearest") == "bilinear":
        kernel, _ = bilinear_upsampling_arithmetic(node.integer("scale", 0))
        return [(features[1], 1, kernel, kernel)]
    if node.op in BATCH_NORMS:
        return [(features[axis_of(node, len(features), default=1)],)] * 4
    if node.op == "LayerNorm":
        return [(features[axis_of(node, len(features), default=-1)],)] * 2
    if node.op == "GroupNorm":
        return [(node.integer("num_groups", 1),)] * 2
    if node.op == "InstanceNorm":
        return [(features[1],)] * 2
    if node.op == "LeakyReLU":
        return [(features[1],)]
    if node.op == "Embedding":
        return [(node.integer("input_dim", 0), node.integer("output_dim", 0))]
    return []


Rule = Callable[[Node, Sequence[Shape]], Shape]
RULES: dict[str, Rule] = {
    "Deconvolution": _deconvolution,
    "FullyConnected": _fully_connected,
    "UpSampling": _upsampling,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pooling,
    "_contrib_BilinearResize2D": _resize,
    "Concat": concatenated_shape,
    "stack": stacked_shape,
    "Flatten": flattened_shape,
    "Reshape": reshaped_shape,
    "reshape_like": like_shape,
    "expand_dims": expanded_shape,
    "squeeze": squeezed_shape,
    "tile": tiled_shape,
    "repeat": repeated_shape,
    "Pad": padded_shape,
    "where": _where,
    "take": take_shape,
    "Embedding": take_shape,
    "pick": pick_shape,
    "one_hot": one_hot_shape,
    "batch_dot": batch_dot_shape,
    "_linalg_gemm2": batch_dot_shape,
    "_linalg_gemm": affine_product_shape,
    "_linalg_syrk": affine_product_shape,
    "dot": dot_shape,
    "GridGenerator": _grid,
    "BilinearSampler": _sampler,
    "SpatialTransformer": _sampler,
    "im2col": _columns,
    "col2im": _image_of_columns,
    "_contrib_arange_like": _arange_like,
    SUM: _sum,
    **dict.fromkeys(CONSTANTS, _constant),
    **dict.fromkeys(REDUCTIONS, reduction_shape),
    **dict.fromkeys(INDEX_REDUCTIONS, index_reduction_shape),
    **dict.fromkeys(("transpose", "SwapAxis"), transposed_shape),
    **dict.fromkeys(("depth_to_space", "space_to_depth"), blocks_shape),
    **dict.fromkeys(BROADCASTS, broadcast_shape),
    **dict.fromkeys(SLICES, sliced_shape),
    **dict.fromkeys((*CONVOLUTIONS, *DEFORMABLE), _convolution),
    **dict.fromkeys(POOLINGS, _pooling),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(BATCH_NORMS, _same),
}
# Operators with several outputs.
SEVERAL: dict[str, Callable[[Node, Sequence[Shape]], list[Shape]]] = {
    "moments": moments_shapes,
    **dict.fromkeys(SPLITS, split_shapes),
    **dict.fromkeys(RANKINGS, ranked_shapes),
}
assert set(RULES) >= FORMULAS
