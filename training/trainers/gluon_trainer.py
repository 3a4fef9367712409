"""Trains with MXNet Gluon: hybridized static-shape network, its losses, SGD or Adam."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.mxnet_import import mx
from training.guard.guard import NonFiniteStep, choose_finding
from training.loader import Batch, step_seed
from training.networks import build
from training.networks.layers import Map, Norm, Operators, SyncBatchNorm
from training.networks.tracing import read_parameters, write_parameters, write_symbol
from training.options import IDLE_GPU, TrainOptions
from training.parameters import frozen_names, group_of
from training.trainers import Learner
from training.trainers.gluon_guard import GuardedArrays, inspect_forward
from training.transforms import subsample_labels


def choose_contexts(options: TrainOptions) -> list[mx.context.Context]:
    """Returns the devices to train on; warns once and takes the CPU if the requested GPUs are
    missing.
    """
    if options.no_cuda:
        return [mx.cpu()]
    present = mx.context.num_gpus()
    if options.ngpus <= 0:
        if present:
            warnings.warn(IDLE_GPU, stacklevel=2)
        return [mx.cpu()]
    if present == 0:
        warnings.warn(
            f"--ngpus {options.ngpus}: no GPU is available, training on the CPU", stacklevel=2
        )
        return [mx.cpu()]
    if present < options.ngpus:
        warnings.warn(f"--ngpus {options.ngpus}: only {present} available", stacklevel=2)
    return [mx.gpu(index) for index in range(min(present, options.ngpus))]


def batch_norms(block: mx.gluon.Block) -> Iterator[mx.gluon.nn.BatchNorm]:
    """Yields all batch norms of a network."""
    if isinstance(block, mx.gluon.nn.BatchNorm):
        yield block
    for child in block._children.values():
        yield from batch_norms(child)


class GluonLearner(Learner):
    """The :class:`training.trainers.Learner` on MXNet; one process drives all devices."""

    def __init__(self, options: TrainOptions, num_classes: int) -> None:
        self.options = options
        self.contexts = choose_contexts(options)
        mx.random.seed(options.seed)
        self.network = build(
            options.model,
            options.backbone,
            num_classes,
            options.height,
            options.crop_width,
            self._norm(),
            channel_multiplier=options.width,
            aux=options.aux,
            output_stride=options.output_stride,
        )
        self.network.initialize(mx.init.MSRAPrelu(slope=0), ctx=self.contexts)
        if options.freeze_bn:
            for parameter in self.network.collect_params(".*(gamma|beta)").values():
                parameter.grad_req = "null"
        self._freeze(frozen_names(self.network.collect_params(), options.freeze))
        self.network.full_output = False
        self.network.hybridize(static_alloc=True, static_shape=True)
        # The graph is built here, once, in the main thread.
        shape = (1, 3, options.height, options.crop_width)
        outputs = self.network(mx.nd.zeros(shape, ctx=self.contexts[0]))
        self.map_sizes = [output.shape[2:] for output in outputs]
        self.loss: CascadeLoss
        self.optimizer: mx.gluon.Trainer
        self.guarded = GuardedArrays(self.network)

    def start(self, class_weights: npt.NDArray[np.float32]) -> None:
        self.loss = CascadeLoss(
            self.options.loss_weights, class_weights, self.options.ohem, self.options.ohem_share
        )
        self.loss.initialize(ctx=self.contexts)
        self.loss.hybridize()
        self.optimizer = self._optimizer()

    def begin_step(self, epoch: int, iteration: int) -> None:
        # Dropout depends on it.
        mx.random.seed(step_seed(self.options.seed, epoch, iteration))

    def step(self, batch: Batch, rate: float) -> float:
        self.optimizer.set_learning_rate(rate)
        devices = len(self.contexts)
        before = self.guarded.copy_statistics()
        terms = []
        with mx.autograd.record():
            for images, labels in self._shards(batch, devices):
                targets = [
                    mx.nd.array(subsample_labels(labels, *size), ctx=images.ctx)
                    for size in self.map_sizes
                ]
                terms.append(self.loss(*self.network(images), *targets))
        for term in terms:
            term.backward()
        if not self.guarded.all_finite(terms):
            raise self._refuse(batch, before, terms)
        if self.options.clip_grad:
            self._clip_gradients(self.options.clip_grad)
        # The loss is a mean already: only the sum over devices is divided.
        self.optimizer.step(devices)
        return float(np.mean([term.asscalar() for term in terms]))

    def _refuse(
        self, batch: Batch, before: list[mx.nd.NDArray], terms: list[mx.nd.NDArray]
    ) -> NonFiniteStep:
        """Undoes the step; returns what was not finite."""
        loss = float(np.mean([term.asscalar() for term in terms]))
        symptoms = self.guarded.read_symptoms()
        self.guarded.restore_statistics(before)
        forward = [
            inspect_forward(self.network, images.asnumpy(), images.context)
            for images, _ in self._shards(batch, len(self.contexts))
        ]
        first = next((found for found in forward if found is not None), None)
        finding = choose_finding(first, bool(np.isfinite(loss)), symptoms)
        return NonFiniteStep(loss, finding, batch)

    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self.logits_together([image])[0]

    @property
    def devices(self) -> int:
        return len(self.contexts)

    def logits_together(
        self, images: Sequence[npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        data = [
            mx.nd.array(image[None], ctx=context)
            for image, context in zip(images, self.contexts, strict=False)
        ]
        # All are under way before the first is waited for.
        outputs = [self.network(image)[0] for image in data]
        return [output.asnumpy()[0] for output in outputs]

    def align(self) -> None:
        if len(self.contexts) == 1:
            return
        for parameter in self.network.collect_params(".*(running|moving)_(mean|var)").values():
            # Files have the first one's too.
            parameter.set_data(parameter.data(self.contexts[0]))

    def write_symbol(self, path: Path) -> None:
        write_symbol(self.network, path, self.options.height, self.options.crop_width)

    def write_parameters(self, path: Path) -> None:
        write_parameters(self.network, path)

    def read_parameters(self, path: Path, partial: bool = False) -> tuple[str, ...]:
        try:
            return read_parameters(self.network, path, self.contexts, partial)
        except mx.MXNetError as error:
            raise ValueError(f"{path} is not a file of parameters: {error}") from error

    def write_optimizer(self, path: Path) -> None:
        self.optimizer.save_states(str(path))

    def read_optimizer(self, path: Path) -> None:
        self.optimizer.load_states(str(path))

    def _freeze(self, names: frozenset[str]) -> None:
        """Freezes these parameters before the graph is built; their batch norms keep their
        statistics.
        """
        for name in names:
            self.network.collect_params()[name].grad_req = "null"
        norms = {norm.gamma.name: norm for norm in batch_norms(self.network)}
        for name in names & norms.keys():
            norms[name]._kwargs["use_global_stats"] = True
        if names and not norms and self._synchronised:
            raise ValueError(
                f"--freeze with --syncbn: {self.options.model} is one symbol, whose batch norms "
                "take their statistics over all devices; without --syncbn they keep them"
            )

    @property
    def _synchronised(self) -> bool:
        return self.options.syncbn and len(self.contexts) > 1

    def _norm(self) -> Norm:
        if self._synchronised:
            return Norm(SyncBatchNorm, num_devices=len(self.contexts))
        batch_norm = mx.gluon.nn.BatchNorm
        if self.options.freeze_bn:
            batch_norm = partial(batch_norm, use_global_stats=True)
        return Norm(batch_norm)

    def _optimizer(self) -> mx.gluon.Trainer:
        o = self.options
        for name, parameter in self.network.collect_params().items():
            group = group_of(name, o.head_lr_mult, o.no_wd)
            parameter.lr_mult, parameter.wd_mult = group.rate, group.decay
        settings: dict[str, float] = {"learning_rate": o.lr, "wd": o.weight_decay}
        if o.optimizer == "sgd":
            settings["momentum"] = o.momentum
        return mx.gluon.Trainer(self.network.collect_params(), o.optimizer, settings)

    def _clip_gradients(self, norm: float) -> None:
        """Clips on each device; the mean over devices is then not longer than ``norm`` either."""
        parameters = self.network.collect_params().values()
        for context in self.contexts:
            gradients = [p.grad(context) for p in parameters if p.grad_req != "null"]
            mx.gluon.utils.clip_global_norm(gradients, norm)

    def _shards(
        self, batch: Batch, devices: int
    ) -> Iterator[tuple[mx.nd.NDArray, npt.NDArray[np.uint8]]]:
        images = np.array_split(batch.images, devices)
        labels = np.array_split(batch.labels, devices)
        for image, label, context in zip(images, labels, self.contexts, strict=True):
            yield mx.nd.array(image, ctx=context), label


class WeightedCrossEntropy(mx.gluon.HybridBlock):
    """The mean of ``-log softmax(logits)[label]`` over the pixels that count.

    Inputs: logits float32 ``[N,C,h,w]``, labels float32 ``[N,h,w]`` (ids, 255 ignored). A pixel
    weighs ``class_weights[label]``; the mean divides by the weights' sum, and is 0 where every
    pixel is ignored. With ``hard_below`` P > 0 only pixels whose own class has a probability below
    P count, but at least the hardest ``least_share`` of those that are not ignored (Shrivastava et
    al., arXiv 1604.03540; by pixels as in Wu et al., arXiv 1611.10080).
    """

    def __init__(
        self,
        class_weights: npt.NDArray[np.float32],
        hard_below: float = 0.0,
        least_share: float = 1.0,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.limit = -math.log(hard_below) if hard_below else 0.0
        self.least_share = least_share
        # One entry more: ignored pixels look it up and get 0.
        table = np.concatenate([class_weights, np.zeros(1, np.float32)])
        with self.name_scope():
            self.table = self.params.get_constant("table", mx.nd.array(table))
        self.num_classes = len(class_weights)

    def hybrid_forward(self, F: Operators, logits: Map, labels: Map, table: Map) -> Map:
        index = F.minimum(labels, self.num_classes)
        weights = F.take(table, index)
        log_probability = F.log_softmax(logits, axis=1)
        picked = F.pick(log_probability, F.minimum(index, self.num_classes - 1), axis=1)
        if self.limit:
            weights = weights * self._hard(F, F.BlockGrad(-picked), index < self.num_classes)
        return -F.sum(picked * weights) / F.maximum(F.sum(weights), 1e-6)

    def _hard(self, F: Operators, losses: Map, counted: Map) -> Map:
        """Returns 1 where a pixel is hard; the k-th largest loss is read from a sorted row."""
        # Ignored pixels sort behind all others.
        row = F.sort(F.where(counted, losses, -F.ones_like(losses)).reshape((-1,)), is_ascend=False)
        kept = F.ceil(F.sum(counted) * self.least_share)
        kth = F.take(row, F.maximum(kept - 1, 0))
        return counted * F.broadcast_greater_equal(losses, F.minimum(kth, self.limit))


class CascadeLoss(mx.gluon.HybridBlock):
    """The weighted sum of one cross-entropy per output, each at that output's own resolution."""

    def __init__(
        self,
        weights: Sequence[float],
        class_weights: npt.NDArray[np.float32],
        hard_below: float = 0.0,
        least_share: float = 1.0,
        **scope: str,
    ) -> None:
        super().__init__(**scope)
        self.weights = tuple(weights)
        with self.name_scope():
            self.cross_entropy = WeightedCrossEntropy(class_weights, hard_below, least_share)

    def hybrid_forward(self, F: Operators, *maps: Map) -> Map:
        logits, labels = maps[: len(self.weights)], maps[len(self.weights) :]
        terms = [
            weight * self.cross_entropy(output, target)
            for weight, output, target in zip(self.weights, logits, labels, strict=True)
        ]
        return F.add_n(*terms)
