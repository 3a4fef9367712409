"""The training loop: epochs, validation, log, checkpoints; knows no framework."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.geometry import Size, plan, prepare
from serving.palette import LabelSet, load_labels
from serving.restore import labels_from_logits
from training.balance import balance_classes
from training.checkpoint import RunFolder, RunState
from training.datasets import SegmentationDataset, open_dataset
from training.datasets.base import check_label_range
from training.learner import Learner
from training.loader import Cached, Loader, Mixture
from training.metrics import ConfusionMatrix
from training.options import TrainOptions
from training.schedules import PolySchedule
from training.transforms import Augmentation, normalize

COLUMNS = (
    TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("loss {task.fields[loss]:.3f}"),
)


def dataset_labels(dataset: str) -> LabelSet:
    """Names and colours of a dataset; synthetic scenes have CamVid's."""
    return load_labels("camvid" if dataset == "synthetic" else dataset)


class Run:
    """One run of one learner: ``fit()`` trains and validates, ``validate()`` only scores."""

    def __init__(self, options: TrainOptions, learner: Learner) -> None:
        self.options = options
        self.learner = learner
        self.folder = RunFolder(options.run)
        self.labels = dataset_labels(options.dataset)

    def fit(self) -> RunState:
        """Trains the epochs that are left; returns the state at the end."""
        o, learner = self.options, self.learner
        loader = self._loader()
        learner.start(self._class_weights(loader))
        state = RunState()
        resumed = o.resume is not None and o.resume.is_dir()
        if o.resume is not None:
            learner.read_parameters(self.folder.last if resumed else o.resume)
        if resumed:
            state = self.folder.read_state()
            learner.read_optimizer(self.folder.optimizer)
        self.folder.start(asdict(o), resumed=resumed)
        learner.write_symbol(self.folder.symbol)
        schedule = PolySchedule(
            o.lr, o.epochs * loader.batches, warmup=round(o.warmup_epochs * loader.batches)
        )
        for epoch in range(state.epochs_done, o.epochs):
            learner.begin_epoch(epoch)
            row = self._train_epoch(epoch, loader, schedule)
            state = replace(state, epochs_done=epoch + 1)
            last = epoch + 1 == o.epochs
            if not o.no_val and (last or (epoch + 1) % o.val_interval == 0):
                scores = self.validate()
                row |= scores
                if state.best_epoch < 0 or scores["miou"] > state.best_miou:
                    state = replace(state, best_miou=scores["miou"], best_epoch=epoch)
                    learner.write_parameters(self.folder.best)
            else:
                row |= dict.fromkeys(("pixel_accuracy", "miou", "synthetic_miou"), float("nan"))
            if o.no_val:
                learner.write_parameters(self.folder.best)
            learner.write_parameters(self.folder.last)
            learner.write_optimizer(self.folder.optimizer)
            self.folder.append_log(row)
            self.folder.write_state(state)
        return state

    def validate(self) -> dict[str, float]:
        """Scores the validation split; the label maps are made as the server makes them."""
        o = self.options
        main = self.score(open_dataset(o.dataset, "val", o.root))
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

    def load_weights(self, path: Path) -> None:
        """Replaces the network's weights by a run folder's best, or by a ``.params`` file."""
        self.learner.read_parameters(RunFolder(path).best if path.is_dir() else path)

    def score(self, dataset: SegmentationDataset) -> ConfusionMatrix:
        """Confusion matrix over a dataset, every image at its own size."""
        model = Size(self.options.height, self.options.crop_width)
        confusion = ConfusionMatrix(len(self.labels.names))
        for index in range(len(dataset)):
            image, label = dataset[index]
            check_label_range(label, confusion.num_classes, dataset.name(index))
            original = Size(*image.shape[:2])
            logits = self.learner.logits(normalize(prepare(image, plan(original, model))))
            confusion.update(label, labels_from_logits(logits, model, original))
        return confusion

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
            num_classes=len(self.labels.names),
            batch_size=o.batch_size,
            workers=o.workers,
            seed=o.seed,
        )

    def _class_weights(self, loader: Loader) -> np.ndarray:
        pixels = np.zeros(256, np.int64)
        if self.options.class_balance:
            dataset = loader.mixture.primary
            for index in range(len(dataset)):
                pixels += np.bincount(dataset[index][1].reshape(-1), minlength=256)
        return balance_classes(pixels[: len(self.labels.names)], self.options.class_balance)

    def _train_epoch(self, epoch: int, loader: Loader, schedule: PolySchedule) -> dict[str, float]:
        o = self.options
        start, total = time.perf_counter(), 0.0
        with Progress(*COLUMNS) as progress:
            task = progress.add_task(
                "", total=loader.batches, epoch=epoch + 1, epochs=o.epochs, loss=float("nan")
            )
            for index, batch in enumerate(loader.epoch(epoch)):
                rate = schedule(epoch * loader.batches + index)
                total += self.learner.step(batch, rate)
                mean = total / (index + 1)
                progress.update(task, advance=1, loss=mean)
                if not progress.console.is_terminal and (index + 1) % o.log_interval == 0:
                    print(
                        f"epoch {epoch + 1} iteration {index + 1}/{loader.batches} "
                        f"loss {mean:.4f} lr {rate:.5f}",
                        flush=True,
                    )
        return {
            "epoch": epoch + 1,
            "learning_rate": schedule(epoch * loader.batches),
            "loss": total / loader.batches,
            "seconds": time.perf_counter() - start,
        }
