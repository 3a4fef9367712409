"""Trains with PyTorch: executes the network's own symbol and writes the same ``.params``.

Needs MXNet only where no symbol file is given. Several processes, one a GPU, train one network
(``torch_replicas``): each has its rows of every batch, and a step is that of the whole batch.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from export.datasets import IGNORE_LABEL
from export.symbols.graph import write_symbol
from export.symbols.params import start_parameters
from training.guard.guard import NonFiniteStep, choose_finding, first_finding
from training.loader import Batch, Shard, join_shards, step_seed
from training.options import TrainOptions
from training.parameters import ParameterGroup, frozen_names, group_of
from training.trainers import Learner, torch_states
from training.trainers.network_symbol import (
    freeze_batch_norms,
    frozen_parameters,
    make_symbol,
    map_sizes,
    trained_graph,
)
from training.trainers.symbol_module import SymbolModule
from training.trainers.torch_guard import (
    BeforeStep,
    StepHealth,
    check_step,
    gradient_norm,
    inspect_forward,
    read_symptoms,
)
from training.trainers.torch_replicas import (
    ALONE,
    check_replicas,
    choose_device,
    explain_out_of_memory,
    join_replicas,
)
from training.trainers.torch_states import WeightAverage
from training.transforms import subsample_labels

T = TypeVar("T")


class TorchLearner(Learner):
    """The :class:`training.trainers.Learner` on PyTorch."""

    def __init__(self, options: TrainOptions, num_classes: int) -> None:
        self.options = options
        self.device = choose_device(options)
        self.replicas = join_replicas(self.device)
        check_replicas(options, self.replicas.world)
        torch.manual_seed(options.seed)
        self.symbol = make_symbol(options, num_classes)
        size = options.height, options.crop_width
        graph = trained_graph(self.symbol, options)
        held = frozen_names(graph.variables(), options.freeze)
        graph = freeze_batch_norms(graph, held)
        self.map_sizes = map_sizes(graph, size, num_classes)
        start = start_parameters(graph, *size, options.seed)
        together = self.replicas if options.syncbn else ALONE
        self.module = SymbolModule(graph, start, together)
        # PyTorch's types leave memory_format out.
        self.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in frozen_parameters(graph) | (held & set(self.module.weights)):
            self.module.weights[name].requires_grad_(False)
        self.average = WeightAverage(self.module, options.ema) if options.ema else None
        # Only half precision can underflow; the scaler is idle otherwise.
        self.scaler = torch.amp.GradScaler(
            self.device.type, options.loss_scale or 2.0**16, enabled=options.dtype == "float16"
        )
        self.forward: torch.nn.Module
        self.loss: PixelLoss
        self.optimizer: torch.optim.Optimizer

    @property
    def shard(self) -> Shard:
        return Shard(self.replicas.rank, self.replicas.world, self.options.accumulate)

    def start(self, class_weights: npt.NDArray[np.float32]) -> None:
        o = self.options
        weights = torch.tensor(class_weights, device=self.device)
        self.loss = PixelLoss(weights, o.ohem, o.ohem_share)
        self.optimizer = make_optimizer(o, self.module)
        self.forward = self.module
        if o.compile:
            self.forward = cast(torch.nn.Module, torch.compile(self.module, dynamic=False))
        if not self.replicas.alone:
            # Of running statistics those of the first process count; with --syncbn all are equal.
            self.forward = DistributedDataParallel(self.forward)

    def begin_step(self, epoch: int, iteration: int) -> None:
        # Dropout depends on it; no two processes draw the same.
        torch.manual_seed(step_seed(self.options.seed, epoch, iteration, self.replicas.rank))

    def step(self, batch: Batch, rate: float) -> float:
        set_rate(self.optimizer, rate)
        self.module.train()
        before = BeforeStep(self.module, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        targets = [self._targets(batch, size) for size in self.map_sizes]
        # One denominator for all parts of all processes: they add up to the undivided batch.
        weights = [self.replicas.sum(self.loss.weight_of(target)) for target in targets]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = self._parts(batch)
        for rows in parts:
            with self._exchanged(rows is parts[-1]), explain_out_of_memory():
                loss = self._loss(batch.images[rows], [t[rows] for t in targets], weights)
                torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.module)
        health = check_step(self.module, total, norm, self.replicas)
        if not health.finite and not self._is_overflow(health):
            raise self._refuse(batch, before, health, targets, weights)
        if self.options.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(
                self.module.parameters(), self.options.clip_grad, norm
            )
        self.scaler.step(self.optimizer)
        self._update_scale()
        if self.average is not None and health.finite:
            self.average.update(self.module)
        return health.loss

    def _parts(self, batch: Batch) -> list[slice]:
        part = len(batch.images) // self.options.accumulate
        return [slice(first, first + part) for first in range(0, len(batch.images), part)]

    def _exchanged(self, last: bool) -> AbstractContextManager[None]:
        """Sends gradients to the other processes only once per step, with the last part."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def _update_scale(self) -> None:
        self.scaler.update(self.options.loss_scale or None)

    def _is_overflow(self, health: StepHealth) -> bool:
        """Returns whether only scaled gradients overflow: the scaler skips the step and reduces the
        scale.
        """
        if self.options.loss_scale:
            # Nothing would make a static scale smaller.
            return False
        return self.scaler.get_scale() > 1.0 and health.loss_is_finite and health.statistics

    def _refuse(
        self,
        batch: Batch,
        before: BeforeStep,
        health: StepHealth,
        targets: list[torch.Tensor],
        weights: list[torch.Tensor],
    ) -> NonFiniteStep:
        """Undoes the step; returns what was not finite, and in which of all processes' images."""
        symptoms = read_symptoms(self.module)
        before.restore_statistics()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_scale()

        def forward() -> None:
            # Not compiled: every layer is looked at.
            kept, self.forward = self.forward, self.module
            try:
                for rows in self._parts(batch):
                    self._loss(batch.images[rows], [t[rows] for t in targets], weights)
            finally:
                self.forward = kept

        found = inspect_forward(self.module, before, batch.images, forward)
        finding = choose_finding(found, health.loss_is_finite, symptoms)
        findings, batches = zip(*self.replicas.gather((finding, batch)), strict=True)
        layers = [node.name for node in self.module.graph.nodes]
        whole = join_shards(batches, self.shard)
        return NonFiniteStep(health.loss, first_finding(findings, layers), whole)

    def _targets(self, batch: Batch, size: tuple[int, int]) -> torch.Tensor:
        labels = subsample_labels(batch.labels, *size).astype(np.int64)
        return torch.from_numpy(labels).to(self.device, non_blocking=True)

    def _loss(
        self,
        images: npt.NDArray[np.float32],
        targets: list[torch.Tensor],
        weights: list[torch.Tensor],
    ) -> torch.Tensor:
        data = torch.from_numpy(images).to(
            self.device, memory_format=torch.channels_last, non_blocking=True
        )
        with self._autocast():
            maps = self.forward(data)
        loss = torch.zeros((), device=self.device)
        for share, logits, target, weight in zip(
            self.options.loss_weights, maps, targets, weights, strict=True
        ):
            exact = logits if logits.dtype == torch.float64 else logits.float()
            summed, counted = self.loss(exact, target)
            if self.options.ohem:
                # Which pixels are hard is known part by part.
                weight = self.replicas.sum(counted) * self.options.accumulate
            loss = loss + share * summed / weight.clamp_min(LEAST_WEIGHT)
        # Gradients of several processes are averaged; they are to be added.
        return loss * self.replicas.world

    def _autocast(self) -> torch.autocast:
        dtype = getattr(torch, self.options.dtype)
        half = dtype != torch.float32
        return torch.autocast(self.device.type, dtype if half else None, enabled=half)

    @torch.no_grad()
    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.module.eval()
        data = torch.from_numpy(image[None]).to(self.device, memory_format=torch.channels_last)
        with self._averaged():
            maps = self.module(data)
        result: npt.NDArray[np.float32] = maps[0][0].float().cpu().contiguous().numpy()
        return result

    def align(self) -> None:
        statistics = dict(self.module.named_buffers())
        averages = self.average.values if self.average is not None else {}
        for name, state in statistics.items():
            self.replicas.broadcast(state)
            if name in averages:
                self.replicas.broadcast(averages[name])

    def _averaged(self) -> AbstractContextManager[None]:
        """Returns the averaged weights take the place of the trained ones, where there are any."""
        return nullcontext() if self.average is None else self.average.swapped(self.module)

    def write_symbol(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_symbol(self.symbol, path)

    def write_parameters(self, path: Path) -> None:
        with self._averaged():
            torch_states.write_parameters(self.module, path)

    def read_parameters(self, path: Path, partial: bool = False) -> tuple[str, ...]:
        missing = torch_states.read_parameters(self.module, path, partial)
        if self.average is not None:
            self.average.restart(self.module)
        return missing

    def write_optimizer(self, path: Path) -> None:
        torch_states.write_optimizer(path, self.optimizer, self.scaler, self.module, self.average)

    def read_optimizer(self, path: Path) -> None:
        torch_states.read_optimizer(path, self.optimizer, self.scaler, self.module, self.average)

    def wait(self) -> None:
        self.replicas.wait()

    def agree(self, wish: bool) -> bool:
        if self.replicas.alone:
            return wish
        return bool(self.replicas.sum(torch.tensor(float(wish), device=self.device)).item())

    def gather(self, item: T) -> list[T]:
        return self.replicas.gather(item)

    def close(self) -> None:
        self.replicas.leave()


def make_optimizer(options: TrainOptions, module: SymbolModule) -> torch.optim.Optimizer:
    """Returns SGD or Adam of all parameters that learn; each group keeps its multiplier as
    ``rate``.
    """
    o = options
    members: dict[ParameterGroup, list[torch.nn.Parameter]] = {}
    for name, weight in module.weights.items():
        if weight.requires_grad:
            members.setdefault(group_of(name, o.head_lr_mult, o.no_wd), []).append(weight)
    groups = [
        {"params": weights, "weight_decay": group.decay * o.weight_decay, "rate": group.rate}
        for group, weights in members.items()
    ]
    if o.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
    return torch.optim.Adam(groups, lr=o.lr)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


# Divides in place of a weight of zero, where every pixel is ignored: the loss is then 0.
LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class PixelLoss:
    """The sum of ``-log softmax(logits)[label] * class_weights[label]`` over the pixels that count.

    Ignored pixels (255) do not. With ``hard_below`` P > 0 only those do whose own class has a
    probability below P, but at least the hardest ``least_share`` of them.
    """

    class_weights: Tensor
    hard_below: float = 0.0
    least_share: float = 1.0

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sum and the weight behind it, of logits ``[N,C,h,w]`` and labels int64
        ``[N,h,w]``.
        """
        if not self.hard_below:
            summed = functional.cross_entropy(
                logits, labels, self.class_weights, ignore_index=IGNORE_LABEL, reduction="sum"
            )
            return summed, self.weight_of(labels)
        losses = functional.cross_entropy(
            logits, labels, ignore_index=IGNORE_LABEL, reduction="none"
        )
        counted = labels != IGNORE_LABEL
        hard = counted & (losses.detach() >= self._least_loss(losses.detach()[counted]))
        weights = self.class_weights[labels.clamp_max(len(self.class_weights) - 1)] * hard
        return (losses * weights).sum(), weights.sum()

    def weight_of(self, labels: Tensor) -> Tensor:
        """Returns the summed weight of all pixels that are not ignored."""
        return self.class_weights[labels[labels != IGNORE_LABEL]].sum()

    def _least_loss(self, losses: Tensor) -> Tensor:
        limit = losses.new_tensor(-math.log(self.hard_below))
        if not losses.numel():
            return limit
        kept = math.ceil(losses.numel() * self.least_share)
        return torch.minimum(limit, losses.topk(kept).values[-1])
