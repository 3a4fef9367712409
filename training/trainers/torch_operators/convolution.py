"""``Convolution``, ``Deconvolution`` and ``UpSampling``."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from export.symbols.conv_arithmetic import (
    bilinear_upsampling_arithmetic,
    convolution_arithmetic,
    deconvolution_arithmetic,
)
from training.trainers.torch_operators.call import Call


def convolve(call: Call) -> Tensor:
    """``[N,C,H,W]`` -> ``[N,num_filter,h,w]``."""
    _, stride, dilate, pad = convolution_arithmetic(call.node)
    weight, *bias = call.inputs[1:]
    return functional.conv2d(
        call.data,
        weight,
        bias[0] if bias else None,
        stride,
        pad,
        dilate,
        call.node.integer("num_group", 1),
    )


def deconvolve(call: Call) -> Tensor:
    """The transposed convolution; MXNet's ``adj`` is PyTorch's output padding."""
    geometry = deconvolution_arithmetic(call.node, call.shapes[0][2:])
    weight, *bias = call.inputs[1:]
    return functional.conv_transpose2d(
        call.data,
        weight,
        bias[0] if bias else None,
        geometry.stride,
        geometry.pad,
        geometry.adjust,
        call.node.integer("num_group", 1),
        geometry.dilate,
    )


def upsample(call: Call) -> Tensor:
    """Nearest, or bilinear: a deconvolution a channel with the symbol's own weights."""
    scale, kind = call.node.integer("scale", 0), call.node.text("sample_type", "nearest")
    if kind == "nearest" and len(call.inputs) == 1:
        return functional.interpolate(call.data, scale_factor=float(scale), mode="nearest")
    if kind != "bilinear" or len(call.inputs) != 2:
        raise call.refuse(f"{kind} UpSampling of {len(call.inputs)} inputs")
    _, pad = bilinear_upsampling_arithmetic(scale)
    return functional.conv_transpose2d(
        *call.inputs, stride=scale, padding=pad, groups=call.data.shape[1]
    )
