"""``Deconvolution`` and ``UpSampling`` as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from export.errors import UnsupportedOperator
from export.geometry import Shape, bilinear_upsampling_geometry, deconvolution_geometry
from export.lowering import Lowering, Site, constant
from export.symbol import Node


def deconvolution(site: Site) -> Lowering:
    """ConvTranspose; MXNet's ``adj`` is its output padding."""
    geometry = deconvolution_geometry(site.node, site.input_shapes[0][2:])
    node = helper.make_node(
        "ConvTranspose",
        list(site.inputs),
        [site.name],
        name=site.name,
        kernel_shape=geometry.kernel,
        strides=geometry.stride,
        dilations=geometry.dilate,
        pads=geometry.pad * 2,
        output_padding=geometry.adjust,
        group=site.node.integer("num_group", 1),
    )
    return Lowering((node,), site.name)


def upsampled_shape(node: Node, features: Sequence[Shape]) -> Shape:
    """Height and width times ``scale``. Raises UnsupportedOperator for several inputs."""
    scale = node.integer("scale", 0)
    kind = node.text("sample_type", "nearest")
    if kind not in ("nearest", "bilinear") or len(features) != 1 or scale < 1:
        raise UnsupportedOperator(f"{node.name}: {kind} UpSampling of {len(features)} inputs")
    batch, channels, *lengths = features[0]
    return (batch, channels, *(length * scale for length in lengths))


def upsampling(site: Site) -> Lowering:
    """Nearest: Resize. Bilinear: a deconvolution a channel, with the symbol's own weights."""
    scale = site.node.integer("scale", 0)
    if site.node.text("sample_type", "nearest") == "nearest":
        scales = f"{site.name}_scales"
        node = helper.make_node(
            "Resize", [site.inputs[0], "", scales], [site.name], name=site.name, mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
        values = np.array([1, 1, scale, scale], np.float32)
        return Lowering((node,), site.name, (constant(scales, values),))
    kernel, pad = bilinear_upsampling_geometry(scale)
    node = helper.make_node(
        "ConvTranspose", list(site.inputs), [site.name], name=site.name,
        kernel_shape=[kernel] * 2, strides=[scale] * 2, pads=[pad] * 4, group=site.shape[1],
    )  # fmt: skip
    return Lowering((node,), site.name)
