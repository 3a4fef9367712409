"""Symbols of operators that move values, with attributes drawn at random (``operator_cases``)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Case = Callable[[Any, Any], Any]
Family = Callable[[Random], Case]


def conv(mx: Any, x: Any, filters: int = 6, name: str = "conv", **options: Any) -> Any:
    """A convolution that keeps the size."""
    kernel = {"kernel": (3, 3), "pad": (1, 1), **options}
    return mx.sym.Convolution(x, name=name, num_filter=filters, **kernel)


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


MOVING: dict[str, Family] = {
    "split_channels": split_channels, "split_rows": split_rows, "split_equally": split_equally,
    "slice": slicing, "reverse": reversing, "reshape": reshaping, "reshape_like": reshaping_like,
    "expand_dims": expanding, "squeeze": squeezing, "transposed": transposing,
    "moved_batch": moving_the_batch, "swap_axis": swapping, "stack": stacking, "tile": tiling,
    "tile_wider": tiling_wider, "repeat": repeating, "broadcast": broadcasting,
    **{op: blocks(op) for op in ("depth_to_space", "space_to_depth")},
}  # fmt: skip
