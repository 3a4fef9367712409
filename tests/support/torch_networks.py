"""Small segmentation networks in PyTorch and their ONNX files, as people export them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch

F = torch.nn.functional

# Of the exporters; none is about the network.
EXPORT_WARNINGS = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
    "Converting a tensor to a Python",
    "Constant folding",
    "Exporting a model to ONNX with a batch_size other than 1",
    ".*isinstance\\(treespec, LeafSpec\\)",
    ".*torchvision is not installed",
)


@dataclass(frozen=True)
class Head:
    """How a network ends: ``activation`` after the resize to the image, or no resize at all."""

    activation: str = "none"
    aligned: bool = True
    resize: bool = True
    classes: int = 5


class Network(torch.nn.Module):
    """Two strided convolutions with zero padding, a batch norm, a classifier at 1/4."""

    def __init__(self, head: Head, channels_last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 16, 3, 2, 1)
        self.classify = torch.nn.Conv2d(16, head.classes, 1)
        torch.nn.init.normal_(self.classify.weight, std=2)
        for statistic, low, high in (
            (self.norm.running_mean, -0.3, 0.3),
            (self.norm.running_var, 0.5, 2),
        ):
            assert statistic is not None, "the norm tracks its statistics"
            torch.nn.init.uniform_(statistic, low, high)
        self.head, self.channels_last = head, channels_last
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            image = image.permute(0, 3, 1, 2)
        scores = self.logits(image)
        if self.head.resize:
            scores = F.interpolate(
                scores, size=image.shape[2:], mode="bilinear", align_corners=self.head.aligned
            )
        scores = self.activate(scores)
        return scores.permute(0, 2, 3, 1) if self.channels_last else scores

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.first(image)))
        scores: torch.Tensor = self.classify(torch.relu(self.second(features)))
        return scores

    def activate(self, scores: torch.Tensor) -> torch.Tensor:
        choices: dict[str, Callable[[], torch.Tensor]] = {
            "none": lambda: scores,
            "softmax": lambda: scores.softmax(1),
            "log_softmax": lambda: scores.log_softmax(1),
            "sigmoid": lambda: scores.sigmoid(),
            "argmax": lambda: scores.argmax(1),
            "argmax_map": lambda: scores.argmax(1, keepdim=True).int(),
            "compare": lambda: (scores[:, 0] > scores[:, 1]).long(),
        }
        return choices[self.head.activation]()


class AttentionNetwork(torch.nn.Module):
    """A transformer's block on patches of 4x4, as SegFormer has: its reshapes carry the batch."""

    def __init__(self, channels: int = 16, heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.heads = heads
        self.patches = torch.nn.Conv2d(3, channels, 7, 4, 3)
        self.norm = torch.nn.LayerNorm(channels)
        self.mixed = torch.nn.Linear(channels, 3 * channels)
        self.down = torch.nn.Conv2d(channels, channels, 3, 2, 1)
        self.classify = torch.nn.Conv2d(2 * channels, 5, 1)
        torch.nn.init.normal_(self.classify.weight)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.patches(image)
        batch, channels, height, width = features.shape
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        split = self.mixed(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads)
        split = split.permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        weights = (query @ key.transpose(-2, -1) * (channels // self.heads) ** -0.5).softmax(-1)
        tokens = tokens + (weights @ value).transpose(1, 2).reshape(batch, -1, channels)
        features = tokens.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        coarse = F.interpolate(
            self.down(features), size=(height, width), mode="bilinear", align_corners=False
        )
        scores: torch.Tensor = self.classify(torch.cat([features, coarse], 1))
        return scores


def run_network(
    network: torch.nn.Module, values: npt.NDArray[np.float32]
) -> npt.NDArray[np.generic]:
    """PyTorch's own forward pass."""
    with torch.no_grad():
        result: npt.NDArray[np.generic] = network(torch.from_numpy(values)).numpy()
    return result


def export_network(
    network: torch.nn.Module,
    path: Path,
    shape: tuple[int, ...],
    *,
    dynamic: tuple[int, ...] = (),
    opset: int = 17,
    dynamo: bool = False,
    outputs: tuple[str, ...] = ("output",),
) -> Path:
    """Writes the ONNX file for inputs of ``shape``; the axes in ``dynamic`` stay open."""
    images = torch.zeros(shape)
    names: dict[int, str] = {axis: f"axis{axis}" for axis in dynamic}
    with warnings.catch_warnings():
        for message in EXPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        if dynamo:
            open_axes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
            torch.onnx.export(
                network, (images,), path, input_names=["image"], output_names=list(outputs),
                dynamic_shapes=(open_axes,) if dynamic else None, opset_version=opset,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        else:
            torch.onnx.export(
                network, (images,), path, input_names=["image"], output_names=list(outputs),
                dynamic_axes={"image": names} if dynamic else None, opset_version=opset,
                dynamo=False,
            )  # fmt: skip
    return path
