"""Dense-prediction networks as MXNet symbols, small: what they are made of, not how large.

Each takes ``mxnet`` and the image ``data`` [N, 3, 64, 96] and returns scores [N, 5, 64, 96], or
what it ends in. Written from the papers; the names are those by which people know the networks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

SIZE = (64, 96)
CLASSES = 5


class Layers:
    """Adds layers with names of their own."""

    def __init__(self, mx: Any) -> None:
        self.sym, self.count = mx.sym, 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def conv(self, x: Any, filters: int, kernel: Any = 3, stride: int = 1, **options: Any) -> Any:
        """A convolution that keeps the size but for its stride."""
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        dilate = options.pop("dilate", 1)
        pad = options.pop("pad", tuple(dilate * (side // 2) for side in sides))
        return self.sym.Convolution(
            x, num_filter=filters, kernel=sides, stride=(stride, stride), pad=pad,
            dilate=(dilate, dilate), name=self.name("conv"), **options,
        )  # fmt: skip

    def norm(self, x: Any) -> Any:
        return self.sym.BatchNorm(x, fix_gamma=False, eps=1e-5, name=self.name("bn"))

    def relu(self, x: Any) -> Any:
        return self.sym.Activation(x, act_type="relu")

    def cbr(self, x: Any, filters: int, kernel: Any = 3, stride: int = 1, **options: Any) -> Any:
        """Convolution, batch norm, ReLU."""
        return self.relu(self.norm(self.conv(x, filters, kernel, stride, no_bias=True, **options)))

    def residual(self, x: Any, filters: int, stride: int = 1, dilate: int = 1) -> Any:
        inner = self.cbr(x, filters, 3, stride, dilate=dilate)
        inner = self.norm(self.conv(inner, filters, no_bias=True, dilate=dilate))
        return self.relu(inner + self.norm(self.conv(x, filters, 1, stride, no_bias=True)))

    def stages(self, x: Any) -> list[Any]:
        """Features at 1/2, 1/4, 1/8 and 1/16."""
        found = [self.cbr(x, 8, 3, 2)]
        for filters in (8, 16, 16):
            found.append(self.residual(found[-1], filters, 2))
        return found

    def pool(self, x: Any, size: int) -> Any:
        return self.sym.contrib.AdaptiveAvgPooling2D(x, output_size=size)

    def resize(self, x: Any, height: int, width: int) -> Any:
        return self.sym.contrib.BilinearResize2D(x, height=height, width=width)

    def like(self, x: Any, other: Any) -> Any:
        return self.sym.contrib.BilinearResize2D(x, other, mode="like")

    def deconv(self, x: Any, filters: int, scale: int = 2, **options: Any) -> Any:
        return self.sym.Deconvolution(
            x, num_filter=filters, kernel=(2 * scale,) * 2, stride=(scale,) * 2,
            pad=(scale // 2,) * 2, name=self.name("deconv"), **options,
        )  # fmt: skip

    def classify(self, x: Any) -> Any:
        """The classifier, and its resize to the image."""
        return self.resize(self.conv(x, CLASSES, 1), *SIZE)

    def gate(self, x: Any) -> Any:
        """A weight for each channel, from the map's mean."""
        mean = self.sym.mean(x, axis=(2, 3), keepdims=True)
        return self.sym.sigmoid(self.conv(mean, 16, 1))

    def rows(self, x: Any) -> Any:
        """Positions in a row: [N, C, H * W]."""
        return self.sym.reshape(x, shape=(0, 0, -1))


Network = Callable[[Any, Any], Any]


def danet(mx: Any, x: Any) -> Any:
    """Fu et al., arXiv 1809.02983: attention between positions, and between channels."""
    net = Layers(mx)
    features = net.cbr(net.stages(x)[2], 16)
    query, key = (net.rows(net.conv(features, 4, 1)) for _ in range(2))
    value = net.rows(net.conv(features, 16, 1))
    energy = mx.sym.softmax(mx.sym.batch_dot(query, key, transpose_a=True))
    placed = mx.sym.reshape_like(mx.sym.batch_dot(value, energy, transpose_b=True), features)
    alpha = mx.sym.Variable("alpha", shape=(1,), init="zeros")
    position = mx.sym.broadcast_add(mx.sym.broadcast_mul(alpha, placed), features)
    flat = net.rows(features)
    energy = mx.sym.batch_dot(flat, flat, transpose_b=True)
    largest = mx.sym.broadcast_like(mx.sym.max(energy, axis=-1, keepdims=True), energy)
    weighed = mx.sym.batch_dot(mx.sym.softmax(largest - energy), flat)
    beta = mx.sym.Variable("beta", shape=(1,), init="zeros")
    channel = mx.sym.broadcast_mul(beta, mx.sym.reshape_like(weighed, features)) + features
    return net.classify(net.cbr(position, 8) + net.cbr(channel, 8))


def acfnet(mx: Any, x: Any) -> Any:
    """Zhang et al., arXiv 1909.09408: every position sees the centres of the classes."""
    net = Layers(mx)
    features = net.cbr(net.stages(x)[2], 16)
    coarse = net.conv(features, CLASSES, 1)
    shares = mx.sym.softmax(net.rows(coarse), axis=1)
    total = mx.sym.expand_dims(mx.sym.sum(shares, axis=2), axis=2)
    centres = mx.sym.batch_dot(shares, mx.sym.SwapAxis(net.rows(features), dim1=1, dim2=2))
    centres = mx.sym.broadcast_div(centres, total + 1e-3)
    seen = mx.sym.batch_dot(mx.sym.transpose(centres, axes=(0, 2, 1)), shares)
    seen = mx.sym.reshape_like(seen, features)
    return net.classify(net.cbr(mx.sym.concat(features, seen, dim=1), 8))


def attanet(mx: Any, x: Any) -> Any:
    """Song et al., arXiv 2103.05930: attention to strips, fusion by learned weights."""
    net = Layers(mx)
    low, high = net.stages(x)[2:]
    query, key = net.rows(net.conv(high, 4, 1)), net.conv(high, 4, 1)
    strip = mx.sym.squeeze(mx.sym.mean(key, axis=2, keepdims=True), axis=2)
    energy = mx.sym.softmax(mx.sym.batch_dot(query, strip, transpose_a=True), axis=-1)
    value = mx.sym.mean(net.conv(high, 16, 1), axis=2)
    high = high + mx.sym.reshape_like(mx.sym.batch_dot(value, energy, transpose_b=True), high)
    high = mx.sym.UpSampling(high, scale=2, sample_type="nearest")
    weight = net.gate(mx.sym.concat(low, high, dim=1))
    fused = mx.sym.broadcast_mul(low, 1 - weight) + mx.sym.broadcast_mul(high, weight)
    return net.classify(fused)


def resnest(mx: Any, x: Any) -> Any:
    """Zhang et al., arXiv 2004.08955, in DeepLab: attention among the splits of a convolution."""
    net, radix = Layers(mx), 2
    features = net.stages(x)[2]
    splits = net.cbr(features, 16 * radix, num_group=2 * radix)
    splits = mx.sym.reshape(mx.sym.expand_dims(splits, axis=1), shape=(0, radix, 16, 0, 0))
    gap = mx.sym.contrib.AdaptiveAvgPooling2D(mx.sym.sum(splits, axis=1), output_size=1)
    weights = net.conv(net.cbr(gap, 8, 1, num_group=2), 16 * radix, 1, num_group=2)
    weights = mx.sym.reshape(weights, shape=(0, 2, radix, -1))
    weights = mx.sym.softmax(mx.sym.SwapAxis(weights, dim1=1, dim2=2), axis=1)
    weights = mx.sym.reshape(weights, shape=(0, radix, 16, 1, 1))
    features = mx.sym.sum(mx.sym.broadcast_mul(weights, splits), axis=1)
    aspp = [net.cbr(features, 8, 3, dilate=rate) for rate in (1, 2, 3)]
    whole = net.like(net.cbr(net.pool(features, 1), 8, 1), features)
    return net.classify(net.cbr(mx.sym.concat(*aspp, whole, dim=1), 8))


def canet(mx: Any, x: Any) -> Any:
    """Chained context (Tang et al., arXiv 2002.12041): pooled flows, each fed by the one before."""
    net = Layers(mx)
    features = net.stages(x)[2]
    flow = mx.sym.broadcast_like(net.cbr(net.pool(features, 1), 16, 1), features)
    for stride in (2, 4):
        small = mx.sym.Pooling(features + flow, kernel=(stride,) * 2, stride=(stride,) * 2,
                               pool_type="avg")  # fmt: skip
        flow = mx.sym.slice_like(
            mx.sym.UpSampling(net.cbr(small, 16), scale=stride, sample_type="nearest"),
            features, axes=(2, 3),
        )  # fmt: skip
        features = mx.sym.broadcast_mul(features, net.gate(flow)) + flow
    return net.classify(features)


def alignseg(mx: Any, x: Any) -> Any:
    """Huang et al., arXiv 2003.00872: coarse features moved by a flow before they are added."""
    net = Layers(mx)
    low, high = net.stages(x)[1:3]
    low, high = net.cbr(low, 8, 1), net.like(net.cbr(high, 8, 1), low)
    flow = net.conv(net.cbr(mx.sym.concat(low, high, dim=1), 8), 4, no_bias=True)
    parts = mx.sym.split_v2(flow, indices_or_sections=2, axis=1)
    moved = [
        mx.sym.BilinearSampler(features, mx.sym.GridGenerator(flow, transform_type="warp"))
        for features, flow in zip((low, high), (parts[0], parts[1]), strict=True)
    ]
    return net.classify(net.cbr(moved[0] + moved[1], 8))


def fapn(mx: Any, x: Any) -> Any:
    """Huang et al., arXiv 2108.07058: feature selection, alignment by a modulated deformable
    convolution."""
    net = Layers(mx)
    low, high = net.stages(x)[1:3]
    low = net.conv(low, 16, 1)
    low = net.conv(low + mx.sym.broadcast_mul(low, net.gate(low)), 8, 1)
    high = net.like(net.conv(high, 8, 1), low)
    steering = net.conv(mx.sym.concat(low, high * 2, dim=1), 27)
    offset = mx.sym.slice_axis(steering, axis=1, begin=0, end=18)
    mask = mx.sym.sigmoid(mx.sym.slice_axis(steering, axis=1, begin=18, end=27))
    aligned = mx.sym.contrib.ModulatedDeformableConvolution(
        data=high, offset=offset, mask=mask, num_filter=8, kernel=(3, 3), pad=(1, 1), name="align"
    )
    return net.classify(net.relu(aligned) + low)


def duc(mx: Any, x: Any) -> Any:
    """Wang et al., arXiv 1702.08502: dense upsampling convolution, hybrid dilations."""
    net, cell = Layers(mx), 8
    features = net.stages(x)[2]
    for rate in (1, 2, 5):
        features = net.residual(features, 16, dilate=rate)
    scores = net.conv(features, CLASSES * cell * cell, 1)
    rows, columns = (length // cell for length in SIZE)
    scores = mx.sym.reshape(scores, shape=(0, CLASSES, cell, cell, rows, columns))
    scores = mx.sym.transpose(scores, axes=(0, 1, 4, 2, 5, 3))
    scores = mx.sym.reshape(scores, shape=(0, 0, rows * cell, columns * cell))
    return mx.sym.SoftmaxOutput(scores, multi_output=True, use_ignore=True, ignore_label=255,
                                normalization="valid", name="softmax")  # fmt: skip


def fcn(mx: Any, x: Any, stride: int) -> Any:
    """Long et al., arXiv 1411.4038, as MXNet's example had it: padding by 100, and crops."""
    net = Layers(mx)
    features = net.relu(net.conv(x, 8, pad=(100, 100)))
    kept = []
    for filters in (8, 8, 8, 16, 16):
        features = net.relu(net.conv(features, filters))
        features = mx.sym.Pooling(features, kernel=(2, 2), stride=(2, 2), pool_type="max",
                                  pooling_convention="full")  # fmt: skip
        kept.append(features)
    features = mx.sym.Dropout(net.relu(net.conv(features, 16, 7, pad=(0, 0))), p=0.5)
    scores = net.conv(features, CLASSES, 1)
    for pooled in {32: (), 16: (kept[3],), 8: (kept[3], kept[2])}[stride]:
        large = mx.sym.Deconvolution(scores, kernel=(4, 4), stride=(2, 2), num_filter=CLASSES,
                                     no_bias=True, name=net.name("up"))  # fmt: skip
        own = mx.sym.Crop(net.conv(pooled, CLASSES, 1), large, num_args=2, offset=(5, 5))
        scores = own + large
    full = mx.sym.Deconvolution(scores, kernel=(2 * stride,) * 2, stride=(stride,) * 2,
                                num_filter=CLASSES, num_group=CLASSES, name="bigscore")  # fmt: skip
    full = mx.sym.Crop(full, x, num_args=2, offset=(19, 19))
    return mx.sym.SoftmaxOutput(full, multi_output=True, use_ignore=True, ignore_label=255,
                                name="softmax")  # fmt: skip


def denseaspp(mx: Any, x: Any) -> Any:
    """Yang et al., CVPR 2018: dilated convolutions, each reading all before it."""
    net = Layers(mx)
    features = net.stages(x)[2]
    for rate in (1, 2, 3):
        inner = net.cbr(net.cbr(features, 8, 1), 8, 3, dilate=rate)
        features = mx.sym.concat(inner, features, dim=1)
    return net.classify(mx.sym.Dropout(features, p=0.1))


def pspnet(mx: Any, x: Any) -> Any:
    """Zhao et al., arXiv 1612.01105, with an auxiliary head."""
    net = Layers(mx)
    *_, middle, features = net.stages(x)
    # MXNet 1.9 differentiates several ``like`` the same map wrongly: finite differences show it.
    size = (SIZE[0] // 16, SIZE[1] // 16)
    pooled = [net.resize(net.cbr(net.pool(features, bins), 4, 1), *size) for bins in (1, 2, 3, 6)]
    scores = net.classify(net.cbr(mx.sym.concat(features, *pooled, dim=1), 8))
    return mx.sym.Group([scores, net.classify(net.cbr(middle, 8))])


def hrnet(mx: Any, x: Any) -> Any:
    """Wang et al., arXiv 1908.07919: resolutions side by side that exchange features."""
    net = Layers(mx)
    branches = [net.cbr(net.cbr(x, 8, 3, 2), 8, 3, 2)]
    branches.append(net.cbr(branches[0], 16, 3, 2))
    for _ in range(2):
        fine, coarse = net.residual(branches[0], 8), net.residual(branches[1], 16)
        up = mx.sym.UpSampling(net.norm(net.conv(coarse, 8, 1)), scale=2, sample_type="nearest")
        down = net.norm(net.conv(fine, 16, 3, 2))
        branches = [net.relu(fine + up), net.relu(mx.sym.add_n(coarse, down))]
    large = mx.sym.contrib.BilinearResize2D(branches[1], scale_height=2.0, scale_width=2.0)
    return net.classify(mx.sym.concat(branches[0], large, dim=1))


def unet(mx: Any, x: Any) -> Any:
    """Ronneberger et al., arXiv 1505.04597: valid convolutions, crops of what is copied."""
    net = Layers(mx)
    first = net.relu(net.conv(mx.sym.Pad(x, mode="reflect", pad_width=(0, 0, 0, 0) + (8,) * 4), 8,
                              pad=(0, 0)))  # fmt: skip
    second = net.relu(net.conv(mx.sym.Pooling(first, kernel=(2, 2), stride=(2, 2),
                                              pool_type="max"), 16, pad=(0, 0)))  # fmt: skip
    large = mx.sym.Deconvolution(second, kernel=(2, 2), stride=(2, 2), num_filter=8, name="up")
    copied = mx.sym.Crop(first, large, num_args=2, center_crop=True)
    merged = net.relu(net.conv(mx.sym.concat(copied, large, dim=1), 8, pad=(0, 0)))
    cropped = mx.sym.Crop(merged, h_w=SIZE, center_crop=True)
    return mx.sym.softmax(net.conv(cropped, CLASSES, 1), axis=1)


def binary_unet(mx: Any, x: Any) -> Any:
    """One channel for the foreground, trained by logistic regression."""
    net = Layers(mx)
    first, second = net.cbr(x, 8), net.cbr(x, 8, 3, 2)
    large = mx.sym.UpSampling(second, scale=2, sample_type="bilinear", num_filter=8, name="up")
    score = net.conv(mx.sym.concat(first, large, dim=1), 1)
    return mx.sym.LogisticRegressionOutput(score, name="softmax")


def enet(mx: Any, x: Any) -> Any:
    """Paszke et al., arXiv 1606.02147: PReLU, asymmetric and dilated bottlenecks."""
    net = Layers(mx)

    def prelu(y: Any) -> Any:
        return mx.sym.LeakyReLU(y, act_type="prelu", name=net.name("prelu"))

    half = mx.sym.concat(
        net.conv(x, 5, 3, 2), mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max")
    )
    features = prelu(net.norm(half))
    pooled = mx.sym.Pooling(features, kernel=(2, 2), stride=(2, 2), pool_type="max")
    padded = mx.sym.concat(pooled, mx.sym.zeros_like(pooled), dim=1)
    features = prelu(
        padded + net.norm(net.conv(prelu(net.conv(features, 4, 2, 2, pad=(0, 0))), 16))
    )
    for kernel, rate in (((5, 1), 1), ((1, 5), 1), (3, 2), (3, 4)):
        inner = prelu(net.norm(net.conv(features, 4, 1)))
        inner = prelu(net.norm(net.conv(inner, 4, kernel, dilate=rate)))
        features = prelu(features + mx.sym.Dropout(net.conv(inner, 16, 1), p=0.1))
    features = prelu(net.norm(net.deconv(features, 8)))
    return net.deconv(features, CLASSES)


def linknet(mx: Any, x: Any) -> Any:
    """Chaurasia et al., arXiv 1707.03718: each decoder adds the encoder's features."""
    net = Layers(mx)
    stages = net.stages(x)
    features = stages[-1]
    for stage, filters in zip(reversed(stages[:-1]), (16, 8, 8), strict=True):
        inner = net.relu(net.norm(net.deconv(net.cbr(features, 4, 1), 4)))
        features = net.cbr(inner, filters, 1) + stage
    return net.deconv(net.cbr(features, 8), CLASSES)


def bisenet(mx: Any, x: Any) -> Any:
    """Yu et al., arXiv 1808.00897: a spatial and a context path, attention and fusion modules."""
    net = Layers(mx)
    spatial = net.cbr(net.cbr(net.cbr(x, 8, 3, 2), 8, 3, 2), 16, 3, 2)
    *_, middle, last = net.stages(x)
    tail = mx.sym.broadcast_mul(last, net.gate(last))
    tail = mx.sym.broadcast_add(tail, mx.sym.mean(last, axis=(2, 3), keepdims=True))
    context = net.like(tail, middle) + mx.sym.broadcast_mul(middle, net.gate(middle))
    fused = net.cbr(mx.sym.concat(spatial, context, dim=1), 16, 1)
    return net.classify(fused + mx.sym.broadcast_mul(fused, net.gate(fused)))


def fastscnn(mx: Any, x: Any) -> Any:
    """Poudel et al., arXiv 1902.04502: depthwise convolutions, a pyramid, a fusion."""
    net = Layers(mx)

    def separable(y: Any, channels: int, filters: int, stride: int = 1) -> Any:
        inner = net.cbr(y, channels, 3, stride, num_group=channels)
        return net.cbr(inner, filters, 1)

    high = separable(separable(net.cbr(x, 8, 3, 2), 8, 8, 2), 8, 16, 2)
    low = separable(separable(high, 16, 16, 2), 16, 16)
    pooled = [net.like(net.cbr(net.pool(low, size), 4, 1), low) for size in (1, 2, 3)]
    low = net.cbr(mx.sym.concat(low, *pooled, dim=1), 16, 1)
    low = net.norm(net.conv(net.like(low, high), 16, 3, num_group=16, dilate=2))
    return net.classify(separable(net.relu(low + net.conv(high, 16, 1)), 16, 8))


def shuffled(mx: Any, x: Any) -> Any:
    """Channel split and shuffle (ShuffleNetV2, arXiv 1807.11164), hard swish, pixel shuffle."""
    net = Layers(mx)
    features = net.cbr(net.cbr(x, 8, 3, 2), 16, 3, 2)
    for _ in range(2):
        parts = mx.sym.SliceChannel(features, num_outputs=2)
        moved = net.cbr(net.cbr(parts[1], 8, 1), 8, 3, num_group=8)
        merged = mx.sym.concat(parts[0], moved, dim=1)
        shuffled = mx.sym.reshape(merged, shape=(0, -4, 2, -1, -2))
        features = mx.sym.reshape(mx.sym.SwapAxis(shuffled, dim1=1, dim2=2), shape=(0, -3, -2))
    features = features * mx.sym.clip(features + 3, 0, 6) / 6
    return mx.sym.depth_to_space(net.conv(features, CLASSES * 16), block_size=4)


def transformer(mx: Any, x: Any) -> Any:
    """Patches with positions, layer norms, attention in heads and a GELU (SETR, arXiv
    2012.15840)."""
    net, heads, width, places = Layers(mx), 2, 16, SIZE[0] * SIZE[1] // 64
    tokens = mx.sym.transpose(net.rows(net.conv(x, width, 8, 8, pad=(0, 0))), axes=(0, 2, 1))
    tokens = mx.sym.broadcast_add(tokens, mx.sym.Variable("position", shape=(1, places, width)))

    def dense(y: Any, units: int) -> Any:
        return mx.sym.FullyConnected(y, num_hidden=units, flatten=False, name=net.name("fc"))

    def normal(y: Any) -> Any:
        return mx.sym.LayerNorm(y, name=net.name("ln"))

    def split(y: Any) -> Any:
        y = mx.sym.transpose(mx.sym.reshape(y, shape=(0, 0, -4, heads, -1)), axes=(0, 2, 1, 3))
        return mx.sym.reshape(y, shape=(-1, 0, 0), reverse=True)

    inner = normal(tokens)
    query, key, value = (split(dense(inner, width)) for _ in range(3))
    shares = mx.sym.softmax(
        mx.sym.batch_dot(mx.sym.contrib.div_sqrt_dim(query), key, transpose_b=True)
    )
    mixed = mx.sym.reshape(mx.sym.batch_dot(shares, value), shape=(-4, -1, heads, 0, 0))
    mixed = mx.sym.reshape(mx.sym.transpose(mixed, axes=(0, 2, 1, 3)), shape=(0, 0, -1))
    tokens = tokens + dense(mixed, width)
    gelu = mx.sym.LeakyReLU(dense(normal(tokens), 32), act_type="gelu")
    tokens = tokens + dense(gelu, width)
    back = mx.sym.transpose(tokens, axes=(0, 2, 1))
    return net.classify(mx.sym.reshape(back, shape=(0, 0, SIZE[0] // 8, SIZE[1] // 8)))


def grouped(mx: Any, x: Any) -> Any:
    """Group, instance and L2 norms, squeeze and excitation, efficient channel attention."""
    net = Layers(mx)
    features = mx.sym.GroupNorm(net.conv(x, 16, 3, 4), num_groups=4, name="gn")
    features = mx.sym.LeakyReLU(
        mx.sym.InstanceNorm(features, name="in"), act_type="leaky", slope=0.1
    )
    squeezed = mx.sym.FullyConnected(
        mx.sym.Flatten(net.pool(features, 1)), num_hidden=16, name="se"
    )
    gate = mx.sym.expand_dims(mx.sym.expand_dims(mx.sym.sigmoid(squeezed), axis=2), axis=3)
    features = mx.sym.broadcast_mul(features, gate)
    means = mx.sym.reshape(mx.sym.mean(features, axis=(2, 3)), shape=(0, 1, -1))
    line = mx.sym.Convolution(means, kernel=(3,), pad=(1,), num_filter=1, no_bias=True, name="eca")
    line = mx.sym.reshape(mx.sym.sigmoid(line), shape=(0, -1, 1, 1))
    features = mx.sym.L2Normalization(mx.sym.broadcast_mul(features, line), mode="channel")
    return net.classify(features)


NETWORKS: Mapping[str, Network] = {
    "danet": danet, "acfnet": acfnet, "attanet": attanet, "resnest_deeplab": resnest,
    "canet": canet, "alignseg": alignseg, "fapn": fapn, "tusimple_duc": duc,
    **{f"fcn_{stride}s": functools.partial(fcn, stride=stride) for stride in (8, 16, 32)},
    "denseaspp": denseaspp, "pspnet": pspnet, "hrnet": hrnet, "unet": unet,
    "binary_unet": binary_unet, "enet": enet, "linknet": linknet, "bisenet": bisenet,
    "fastscnn": fastscnn, "shufflenet": shuffled, "transformer": transformer,
    "normalisations": grouped,
}  # fmt: skip
