"""TensorFlow's DeepLab V3+ on Xception-65, computed with PyTorch from TensorFlow's variables.

Written from TensorFlow's sources and apart from ``training/networks``: variables have TensorFlow's
names and order of axes, and are made as they are asked for. ``SAME`` padding is TensorFlow's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

BACKBONE_EPSILON, HEAD_EPSILON = 1e-3, 1e-5


class TensorFlowDeepLab:
    """``network(image)`` -> logits at 1/4, ``[1,C,h,w]``, of uint8 RGB ``[H,W,3]``.

    In float64: with 130 batch norms, float32 is 3e-4 off. ``variables`` fills while it is called
    for the first time. ``width`` scales all channels.
    """

    def __init__(self, classes: int, width: float, output_stride: int) -> None:
        self.classes, self.width, self.output_stride = classes, width, output_stride
        self.variables: dict[str, npt.NDArray[np.float32]] = {}
        self.random = np.random.default_rng(11)

    def scale(self, channels: int) -> int:
        """To multiples of 8; at width 1 as published."""
        return max(8, round(channels * self.width / 8) * 8)

    def variable(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if name not in self.variables:
            values = self.random.uniform(low, high, shape)
            self.variables[name] = values.astype(np.float32)
        assert self.variables[name].shape == shape
        return torch.from_numpy(self.variables[name]).double()

    def norm(self, x: Tensor, scope: str, epsilon: float) -> Tensor:
        """Statistics near those of the first image, as a trained network has them."""
        shape = (x.shape[1],)
        gamma = self.variable(f"{scope}/BatchNorm/gamma", shape, 0.7, 1.3)
        beta = self.variable(f"{scope}/BatchNorm/beta", shape, -0.2, 0.2)
        mean, variance = f"{scope}/BatchNorm/moving_mean", f"{scope}/BatchNorm/moving_variance"
        if mean not in self.variables:
            factor = self.random.uniform(0.7, 1.5, shape).astype(np.float32)
            flat = x.transpose(0, 1).flatten(1)
            self.variables[mean] = flat.mean(1).numpy().astype(np.float32) * factor
            # A map of one pixel has none.
            spread = flat.var(1) if flat.shape[1] > 1 else torch.full(shape, 0.05)
            self.variables[variance] = (spread.numpy() * factor + 1e-3).astype(np.float32)
        average = torch.from_numpy(self.variables[mean]).double()
        spread = torch.from_numpy(self.variables[variance]).double()
        return functional.batch_norm(x, average, spread, gamma, beta, eps=epsilon)

    def conv(
        self, x: Tensor, scope: str, channels: int, kernel: int, epsilon: float, stride: int = 1
    ) -> Tensor:
        shape = (kernel, kernel, x.shape[1], channels)
        # Variances of 0.04 or so: an epsilon of 1e-3 is seen.
        bound = float(np.sqrt(0.12 / (kernel * kernel * x.shape[1])))
        weight = self.variable(f"{scope}/weights", shape, -bound, bound)
        # conv2d_same: the same padding on both sides.
        x = functional.conv2d(x, weight.permute(3, 2, 0, 1), None, stride, kernel // 2)
        return self.norm(x, scope, epsilon)

    def separable(
        self, x: Tensor, scope: str, channels: int, epsilon: float, stride: int, rate: int,
        inside: bool,
    ) -> Tensor:  # fmt: skip
        before = x.shape[1]
        weight = self.variable(f"{scope}_depthwise/depthwise_weights", (3, 3, before, 1), -0.1, 0.1)
        kernel = weight.permute(2, 3, 0, 1)
        x = functional.conv2d(x, kernel, None, stride, rate, rate, groups=before)
        x = self.norm(x, f"{scope}_depthwise", epsilon)
        x = torch.relu(x) if inside else x
        x = self.conv(x, f"{scope}_pointwise", channels, 1, epsilon)
        return torch.relu(x) if inside else x

    def module(
        self, x: Tensor, scope: str, depths: tuple[int, int, int], skip: str, stride: int,
        rate: int, inside: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """An Xception module, and the output of its second separable convolution."""
        scope = f"xception_65/{scope}/xception_module"
        residual, second = x, x
        for number, channels in enumerate(depths, start=1):
            residual = residual if inside else torch.relu(residual)
            residual = self.separable(
                residual, f"{scope}/separable_conv{number}", channels, BACKBONE_EPSILON,
                stride if number == 3 else 1, rate, inside,
            )  # fmt: skip
            second = residual if number == 2 else second
        if skip == "conv":
            shortcut = self.conv(x, f"{scope}/shortcut", depths[2], 1, BACKBONE_EPSILON, stride)
            return residual + shortcut, second
        return (residual + x if skip == "sum" else residual), second

    def __call__(self, image: npt.NDArray[np.uint8]) -> Tensor:
        entry_stride = 2 if self.output_stride == 16 else 1
        rate = 16 // self.output_stride
        x = (torch.from_numpy(image).double() * (2 / 255) - 1).permute(2, 0, 1)[None]
        flow = "xception_65/entry_flow"
        x = torch.relu(self.conv(x, f"{flow}/conv1_1", self.scale(32), 3, BACKBONE_EPSILON, 2))
        x = torch.relu(self.conv(x, f"{flow}/conv1_2", self.scale(64), 3, BACKBONE_EPSILON))
        skip = x
        for number, (channels, stride) in enumerate(((128, 2), (256, 2), (728, entry_stride)), 1):
            depths = (self.scale(channels),) * 3
            x, second = self.module(
                x, f"entry_flow/block{number}/unit_1", depths, "conv", stride, 1
            )
            skip = second if number == 2 else skip
        for number in range(1, 17):
            depths = (self.scale(728),) * 3
            unit = f"middle_flow/block1/unit_{number}"
            x, _ = self.module(x, unit, depths, "sum", 1, rate)
        deep = (self.scale(728), self.scale(1024), self.scale(1024))
        x, _ = self.module(x, "exit_flow/block1/unit_1", deep, "conv", 1, rate)
        deep = (self.scale(1536), self.scale(1536), self.scale(2048))
        x, _ = self.module(x, "exit_flow/block2/unit_1", deep, "none", 1, 2 * rate, inside=True)
        return self.head(x, skip, rate)

    def head(self, x: Tensor, skip: Tensor, rate: int) -> Tensor:
        channels, e = self.scale(256), HEAD_EPSILON
        pooled = x.mean((2, 3), keepdim=True)
        pooled = torch.relu(self.conv(pooled, "image_pooling", channels, 1, e))
        branches = [pooled.expand(-1, -1, *x.shape[2:])]
        branches.append(torch.relu(self.conv(x, "aspp0", channels, 1, e)))
        for number, base in enumerate((6, 12, 18), start=1):
            branches.append(
                self.separable(x, f"aspp{number}", channels, e, 1, base * rate, inside=True)
            )
        x = torch.relu(self.conv(torch.cat(branches, 1), "concat_projection", channels, 1, e))
        skip = torch.relu(self.conv(skip, "decoder/feature_projection0", self.scale(48), 1, e))
        x = functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, skip], 1)
        for number in range(2):
            scope = f"decoder/decoder_conv{number}"
            x = self.separable(x, scope, channels, e, 1, 1, inside=True)
        shape = (1, 1, channels, self.classes)
        weight = self.variable("logits/semantic/weights", shape, -0.5, 0.5)
        bias = self.variable("logits/semantic/biases", (self.classes,), -0.5, 0.5)
        return functional.conv2d(x, weight.permute(3, 2, 0, 1), bias)
