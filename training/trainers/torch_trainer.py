"""Trains with PyTorch: executes the network's own symbol and writes the same ``.params``.

Needs MXNet only where no symbol file is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from export.params import Parameters, read_params, write_params
from export.random_params import random_params
from export.shapes import infer_shapes
from export.symbol import Entry, Graph, read_symbol, write_symbol
from training.loader import Batch
from training.options import TrainOptions
from training.parameter_groups import ParameterGroup, group_of
from training.trainers.symbol_module import SymbolModule
from training.transforms import subsample_labels


def choose_device(options: TrainOptions) -> torch.device:
    """The GPU, or the CPU where none is wanted or there is none (said once)."""
    if options.no_cuda or options.ngpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        warnings.warn(f"--ngpus {options.ngpus}: no GPU here, training on the CPU", stacklevel=2)
        return torch.device("cpu")
    return torch.device("cuda")


def make_symbol(options: TrainOptions, num_classes: int) -> Graph:
    """The network's symbol: the file named by ``--symbol``, else built by MXNet elsewhere.

    Raises:
        ValueError: MXNet cannot build it; its own message.
    """
    if options.symbol is not None:
        return read_symbol(options.symbol)
    with tempfile.TemporaryDirectory() as folder:
        size = f"{options.height}x{options.crop_width}"
        command = [
            sys.executable, "-m", "training.symbols", "--model", options.model,
            "--backbone", options.backbone, "--width", str(options.width),
            "--num-classes", str(num_classes), "--size", size, "--output", folder,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"MXNet could not build the network: {reason}; or give --symbol FILE")
        return read_symbol(Path(folder) / "network-symbol.json")


class TorchLearner:
    """``training.learner.Learner`` on PyTorch."""

    def __init__(self, options: TrainOptions, num_classes: int) -> None:
        self.options = options
        self.device = choose_device(options)
        torch.manual_seed(options.seed)
        self.symbol = make_symbol(options, num_classes)
        size = options.height, options.crop_width
        # The first head is a resize of the second: its loss would count the same map twice.
        heads = self.symbol.heads[1:] if len(self.symbol.heads) > 1 else self.symbol.heads
        graph = self.symbol.pruned(heads)
        self.map_sizes = [_map_size(graph, head, size) for head in graph.heads]
        start = random_params(graph, *size, options.seed)
        self.module = SymbolModule(graph, start).to(self.device, memory_format=torch.channels_last)
        self.class_weights: torch.Tensor
        self.optimizer: torch.optim.Optimizer

    def start(self, class_weights: npt.NDArray[np.float32]) -> None:
        o = self.options
        self.class_weights = torch.tensor(class_weights, device=self.device)
        members: dict[ParameterGroup, list[torch.nn.Parameter]] = {}
        for name, weight in self.module.weights.items():
            members.setdefault(group_of(name, o.head_lr_mult, o.no_wd), []).append(weight)
        groups = [
            {"params": weights, "weight_decay": group.decay * o.weight_decay, "rate": group.rate}
            for group, weights in members.items()
        ]
        if o.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
        else:
            self.optimizer = torch.optim.Adam(groups, lr=o.lr)

    def begin_epoch(self, epoch: int) -> None:
        # Dropout depends on it.
        torch.manual_seed(self.options.seed + epoch)

    def step(self, batch: Batch, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.module.train()
        images = torch.from_numpy(batch.images).to(
            self.device, memory_format=torch.channels_last, non_blocking=True
        )
        loss = torch.zeros((), device=self.device)
        maps = self.module(images)
        for weight, logits, size in zip(
            self.options.loss_weights, maps, self.map_sizes, strict=True
        ):
            target = torch.from_numpy(subsample_labels(batch.labels, *size).astype(np.int64))
            loss = loss + weight * self._cross_entropy(logits, target.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.options.clip_grad)
        self.optimizer.step()
        return float(loss.item())

    def _cross_entropy(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The weighted mean of ``losses.WeightedCrossEntropy``: 0 where all is ignored."""
        summed = functional.cross_entropy(
            logits, target, self.class_weights, ignore_index=255, reduction="sum"
        )
        counted = self.class_weights[target[target != 255]].sum()
        return summed / counted.clamp_min(1e-6)

    @torch.no_grad()
    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.module.eval()
        data = torch.from_numpy(image[None]).to(self.device, memory_format=torch.channels_last)
        result: npt.NDArray[np.float32] = self.module(data)[0][0].float().cpu().contiguous().numpy()
        return result

    def write_symbol(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_symbol(self.symbol, path)

    def write_parameters(self, path: Path) -> None:
        aside = path.with_name(path.name + ".part")
        write_params(self.module.parameters_of_symbol(), aside)
        os.replace(aside, path)

    def read_parameters(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no parameters at {path}")
        self._load(read_params(path), path)

    def _load(self, parameters: Parameters, path: Path) -> None:
        problems = []
        found = {}
        for name in [*self.module.weights, *dict(self.module.named_buffers())]:
            array, tensor = parameters.find(name), self.module.variable(name)
            if array is None:
                problems.append(f"{name} is missing")
            elif array.shape != tuple(tensor.shape):
                problems.append(f"{name} is {array.shape}, the network has {tuple(tensor.shape)}")
            else:
                found[name] = torch.tensor(array)
        if problems:
            raise ValueError(
                f"{path} does not fit this network ({len(problems)} problems): "
                + "; ".join(problems[:5])
            )
        with torch.no_grad():
            for name, value in found.items():
                self.module.variable(name).copy_(value)

    def write_optimizer(self, path: Path) -> None:
        aside = path.with_name(path.name + ".part")
        torch.save(self.optimizer.state_dict(), aside)
        os.replace(aside, path)

    def read_optimizer(self, path: Path) -> None:
        self.optimizer.load_state_dict(torch.load(path, weights_only=True))


def _map_size(graph: Graph, head: Entry, size: tuple[int, int]) -> tuple[int, int]:
    shape = infer_shapes(graph, *size).of(head)
    return int(shape[2]), int(shape[3])
