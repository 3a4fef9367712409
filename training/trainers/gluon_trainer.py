"""Trains with MXNet Gluon: hybridized static-shape network, SGD or Adam, poly schedule."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.geometry import Size, plan, prepare
from serving.palette import load_labels
from serving.restore import labels_from_logits
from training.checkpoint import RunFolder, RunState
from training.datasets import SegmentationDataset, open_dataset
from training.datasets.base import check_label_range
from training.loader import Batch, Cached, Loader, Mixture
from training.losses import CascadeLoss, balance_classes
from training.metrics import ConfusionMatrix
from training.mxnet_import import mx
from training.networks import build
from training.options import TrainOptions
from training.schedules import PolySchedule
from training.symbols import read_parameters, write_parameters, write_symbol
from training.transforms import Augmentation, normalize, subsample_labels

BACKBONE_BLOCKS = ("conv1_", "layer1_", "layer2_", "layer3_", "layer4_")


def choose_contexts(options: TrainOptions) -> list[mx.context.Context]:
    """The devices to train on; warns once and takes the CPU where GPUs are asked for in vain."""
    if options.no_cuda or options.ngpus <= 0:
        return [mx.cpu()]
    present = mx.context.num_gpus()
    if present == 0:
        warnings.warn(f"--ngpus {options.ngpus}: no GPU here, training on the CPU", stacklevel=2)
        return [mx.cpu()]
    if present < options.ngpus:
        warnings.warn(f"--ngpus {options.ngpus}: only {present} here", stacklevel=2)
    return [mx.gpu(index) for index in range(min(present, options.ngpus))]


class GluonTrainer:
    """One run: ``fit()`` trains and validates, ``validate()`` only scores."""

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.folder = RunFolder(options.run)
        self.contexts = choose_contexts(options)
        self.labels = load_labels("camvid" if options.dataset == "synthetic" else options.dataset)
        self.num_classes = len(self.labels.names)
        mx.random.seed(options.seed)
        self.network = build(
            options.model,
            options.backbone,
            self.num_classes,
            options.height,
            options.crop_width,
            *self._norm(),
            channel_multiplier=options.width,
        )
        self.network.initialize(mx.init.MSRAPrelu(slope=0), ctx=self.contexts)
        self.network.full_output = False
        self.network.hybridize(static_alloc=True, static_shape=True)
        # The graph is built here, once, in the main thread.
        shape = (1, 3, options.height, options.crop_width)
        outputs = self.network(mx.nd.zeros(shape, ctx=self.contexts[0]))
        self.map_sizes = [output.shape[2:] for output in outputs]

    def _norm(self) -> tuple[type, dict[str, int]]:
        if self.options.syncbn and len(self.contexts) > 1:
            sync = mx.gluon.contrib.nn.SyncBatchNorm
            return sync, {"num_devices": len(self.contexts)}
        return mx.gluon.nn.BatchNorm, {}

    def _loader(self) -> Loader:
        o = self.options
        primary: SegmentationDataset = open_dataset(o.dataset, "train", o.root)
        if o.dataset == "synthetic":
            primary = Cached(primary)
        scenes = Cached(open_dataset("synthetic", "train")) if o.synthetic_share else None
        augmentation = Augmentation(
            o.height, o.crop_width, o.base_size, o.scale_range, color_jitter=o.color_jitter
        )
        return Loader(
            Mixture(primary, scenes, o.synthetic_share),
            augmentation,
            num_classes=self.num_classes,
            batch_size=o.batch_size,
            workers=o.workers,
            seed=o.seed,
        )

    def _loss(self, loader: Loader) -> CascadeLoss:
        pixels = np.zeros(256, np.int64)
        if self.options.class_balance:
            dataset = loader.mixture.primary
            for index in range(len(dataset)):
                pixels += np.bincount(dataset[index][1].reshape(-1), minlength=256)
        weights = balance_classes(pixels[: self.num_classes], self.options.class_balance)
        loss = CascadeLoss(self.options.loss_weights, weights)
        loss.initialize(ctx=self.contexts)
        loss.hybridize()
        return loss

    def _optimizer(self) -> mx.gluon.Trainer:
        o = self.options
        for name, parameter in self.network.collect_params().items():
            local = name[len(self.network.prefix) :]
            if not local.startswith(BACKBONE_BLOCKS) and not local.startswith("batchnorm"):
                parameter.lr_mult = o.head_lr_mult
            if o.no_wd and name.endswith(("gamma", "beta", "bias")):
                parameter.wd_mult = 0.0
        settings: dict[str, float] = {"learning_rate": o.lr, "wd": o.weight_decay}
        if o.optimizer == "sgd":
            settings["momentum"] = o.momentum
        return mx.gluon.Trainer(self.network.collect_params(), o.optimizer, settings)

    def fit(self) -> RunState:
        """Trains the epochs that are left; returns the state at the end."""
        o = self.options
        loader = self._loader()
        loss = self._loss(loader)
        optimizer = self._optimizer()
        state = RunState()
        if o.resume is not None:
            weights = self.folder.last if o.resume.is_dir() else o.resume
            read_parameters(self.network, weights, self.contexts)
            if o.resume.is_dir():
                state = self.folder.read_state()
                optimizer.load_states(str(self.folder.optimizer))
        self.folder.start(asdict(o), resumed=o.resume is not None and o.resume.is_dir())
        write_symbol(self.network, self.folder.symbol, o.height, o.crop_width)
        schedule = PolySchedule(
            o.lr, o.epochs * loader.batches, warmup=round(o.warmup_epochs * loader.batches)
        )
        for epoch in range(state.epochs_done, o.epochs):
            # Dropout depends on it: seeded by epoch, a resumed run draws the same masks.
            mx.random.seed(o.seed + epoch)
            row = self._train_epoch(epoch, loader, loss, optimizer, schedule)
            state = replace(state, epochs_done=epoch + 1)
            last = epoch + 1 == o.epochs
            if not o.no_val and (last or (epoch + 1) % o.val_interval == 0):
                scores = self.validate()
                row |= scores
                if state.best_epoch < 0 or scores["miou"] > state.best_miou:
                    state = replace(state, best_miou=scores["miou"], best_epoch=epoch)
                    write_parameters(self.network, self.folder.best)
            else:
                row |= dict.fromkeys(("pixel_accuracy", "miou", "synthetic_miou"), float("nan"))
            if o.no_val:
                write_parameters(self.network, self.folder.best)
            write_parameters(self.network, self.folder.last)
            optimizer.save_states(str(self.folder.optimizer))
            self.folder.append_log(row)
            self.folder.write_state(state)
        return state

    def _train_epoch(
        self,
        epoch: int,
        loader: Loader,
        loss: CascadeLoss,
        optimizer: mx.gluon.Trainer,
        schedule: PolySchedule,
    ) -> dict[str, float]:
        start, total, value = time.perf_counter(), 0.0, float("nan")
        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(
                "", total=loader.batches, epoch=epoch + 1, epochs=self.options.epochs, loss=value
            )
            for index, batch in enumerate(loader.epoch(epoch)):
                rate = schedule(epoch * loader.batches + index)
                optimizer.set_learning_rate(rate)
                value = self._step(batch, loss, optimizer)
                total += value
                progress.update(task, advance=1, loss=total / (index + 1))
                if (
                    not progress.console.is_terminal
                    and (index + 1) % self.options.log_interval == 0
                ):
                    print(
                        f"epoch {epoch + 1} iteration {index + 1}/{loader.batches} "
                        f"loss {total / (index + 1):.4f} lr {rate:.5f}",
                        flush=True,
                    )
        return {
            "epoch": epoch + 1,
            "learning_rate": schedule(epoch * loader.batches),
            "loss": total / loader.batches,
            "seconds": time.perf_counter() - start,
        }

    def _step(self, batch: Batch, loss: CascadeLoss, optimizer: mx.gluon.Trainer) -> float:
        """One update; the loss is the mean over the batch, so ``step(1)`` adds no scale."""
        devices = len(self.contexts)
        terms = []
        with mx.autograd.record():
            for images, labels in self._shards(batch, devices):
                targets = [
                    mx.nd.array(subsample_labels(labels, *size), ctx=images.ctx)
                    for size in self.map_sizes
                ]
                terms.append(loss(*self.network(images), *targets))
        for term in terms:
            term.backward()
        if self.options.clip_grad:
            self._clip_gradients(self.options.clip_grad)
        optimizer.step(devices)
        return float(np.mean([term.asscalar() for term in terms]))

    def _clip_gradients(self, norm: float) -> None:
        """On each device; the mean over devices is then no longer than ``norm`` either."""
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

    def validate(self) -> dict[str, float]:
        """Scores the validation split; the label maps are made as the server makes them."""
        o = self.options
        dataset = open_dataset(o.dataset, "val", o.root)
        main = self.score(dataset)
        scores = {"pixel_accuracy": main.pixel_accuracy, "miou": main.mean_iou}
        # A second score where scenes are mixed in, so that neither is learnt at the other's cost.
        scores["synthetic_miou"] = (
            self.score(open_dataset("synthetic", "val")).mean_iou
            if o.synthetic_share
            else float("nan")
        )
        per_class = " ".join(
            f"{name} {score * 100:.0f}"
            for name, score in zip(
                self.labels.names, main.intersection_over_union.tolist(), strict=True
            )
        )
        print(
            f"validation: pixAcc {main.pixel_accuracy:.4f} mIoU {main.mean_iou:.4f} "
            f"(absent classes left out: {len(main.absent)}) "
            f"synthetic mIoU {scores['synthetic_miou']:.4f}\n  {per_class}",
            flush=True,
        )
        return scores

    def score(self, dataset: SegmentationDataset) -> ConfusionMatrix:
        """Confusion matrix over a dataset, every image at its own size."""
        o = self.options
        model = Size(o.height, o.crop_width)
        confusion = ConfusionMatrix(self.num_classes)
        for index in range(len(dataset)):
            image, label = dataset[index]
            check_label_range(label, self.num_classes, dataset.name(index))
            original = Size(*image.shape[:2])
            pixels = prepare(image, plan(original, model))
            data = mx.nd.array(normalize(pixels)[None], ctx=self.contexts[0])
            logits = self.network(data)[0].asnumpy()[0]
            confusion.update(label, labels_from_logits(logits, model, original))
        return confusion


def load_weights(trainer: GluonTrainer, path: Path) -> None:
    """Replaces the network's weights by a run folder's best, or by a ``.params`` file."""
    weights = RunFolder(path).best if path.is_dir() else path
    read_parameters(trainer.network, weights, trainer.contexts)
