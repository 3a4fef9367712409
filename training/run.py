"""The training loop: epochs, validation, log, checkpoints; knows no framework."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from serving.geometry import Size, plan, prepare
from serving.restore import labels_from_logits
from training.balance import balance_classes
from training.datasets import SegmentationDataset, dataset_labels, open_dataset
from training.datasets.base import check_label_range
from training.evaluation.metrics import ConfusionMatrix
from training.guard.guard import Guard
from training.learner import Learner
from training.loader import Cached, Loader, Mixture
from training.options import TrainOptions
from training.runs.checkpoint import RunFolder, RunState
from training.runs.environment import read_environment
from training.runs.epoch_log import EpochRecord
from training.runs.lock import hold_run
from training.runs.log import RunLog
from training.runs.progress import RunProgress
from training.schedules import Schedule, make_schedule
from training.transforms import Augmentation, normalize


class Run:
    """One run of one learner: ``fit()`` trains and validates, ``validate()`` only scores."""

    def __init__(self, options: TrainOptions, learner: Learner) -> None:
        self.options = options
        self.learner = learner
        self.folder = RunFolder(options.run)
        self.labels = dataset_labels(options.dataset, options.root)

    def fit(self) -> RunState:
        """Trains the epochs that are left; returns the state at the end.

        Raises:
            TrainingStopped: a step's loss or gradients are not finite (see ``guard/guard.py``).
        """
        resumed = self.options.resume is not None and self.options.resume.is_dir()
        if not self.learner.shard.leads:
            return self._follow(resumed)
        if not resumed:
            with hold_run(self.folder.path):
                moved = self.folder.make_room()
            if moved is not None:
                print(f"the earlier run in {self.folder.path} is in {moved} now", flush=True)
        with hold_run(self.folder.path):
            return self._fit(resumed)

    def _fit(self, resumed: bool) -> RunState:
        o, learner = self.options, self.learner
        loader, guard, state = self._start(resumed)
        self.folder.start(asdict(o), read_environment())
        learner.write_symbol(self.folder.symbol)
        schedule = self._schedule(loader)
        left = range(state.epochs_done, o.epochs)
        progress = RunProgress(
            o.epochs, state.epochs_done, loader.batches,
            validations=sum(map(self._is_validated, left)), log_interval=o.log_interval,
        )  # fmt: skip
        with closing(RunLog(self.folder, state.epochs_done, loader.batches)) as log, progress:
            for epoch in left:
                learner.begin_epoch(epoch)
                record = self._train_epoch(epoch, loader, schedule, guard, progress, log)
                state = replace(state, epochs_done=epoch + 1)
                if self._is_validated(epoch):
                    record = self._validate_epoch(record, progress)
                    if state.best_epoch < 0 or record.miou > state.best_miou:
                        state = replace(state, best_miou=record.miou, best_epoch=epoch)
                # Before the checkpoint: resuming drops a line too many, but misses none.
                log.add_epoch(record)
                with self.folder.checkpoint(state) as aside:
                    learner.write_parameters(aside.last)
                    learner.write_optimizer(aside.optimizer)
        return state

    def _follow(self, resumed: bool) -> RunState:
        """The same steps as the first process, which alone validates, tells and writes."""
        loader, guard, state = self._start(resumed)
        schedule = self._schedule(loader)
        for epoch in range(state.epochs_done, self.options.epochs):
            self.learner.begin_epoch(epoch)
            for index, batch in enumerate(loader.epoch(epoch)):
                guard.step(batch, schedule(epoch * loader.batches + index), epoch, index)
        return replace(state, epochs_done=self.options.epochs)

    def _start(self, resumed: bool) -> tuple[Loader, Guard, RunState]:
        loader = self._loader()
        class_weights = self._class_weights(loader)
        self.learner.start(class_weights)
        state = self._read_checkpoint() if resumed else self._read_start()
        return loader, Guard(self.options, self.learner, class_weights), state

    def _schedule(self, loader: Loader) -> Schedule:
        o = self.options
        return make_schedule(
            o.schedule, o.lr, loader.batches, o.epochs, o.warmup_epochs, o.lr_steps, o.lr_factor
        )

    def _read_checkpoint(self) -> RunState:
        checkpoint = self.folder.newest()
        if checkpoint is None:
            raise FileNotFoundError(f"{self.folder.path} has no checkpoint to go on from")
        self.learner.read_parameters(checkpoint.last)
        self.learner.read_optimizer(checkpoint.optimizer)
        return checkpoint.read_state()

    def _read_start(self) -> RunState:
        """The weights that a run starts from, where it is told any."""
        o = self.options
        if o.resume is not None:
            self.learner.read_parameters(o.resume)
        if o.finetune is not None:
            fresh = self.learner.read_parameters(o.finetune, partial=True)
            if self.learner.shard.leads:
                told = ", ".join(fresh) or "none"
                print(f"{o.finetune}: {len(fresh)} arrays start anew: {told}")
        return RunState()

    def _is_validated(self, epoch: int) -> bool:
        o = self.options
        return not o.no_val and (epoch + 1 == o.epochs or (epoch + 1) % o.val_interval == 0)

    def _validate_epoch(self, record: EpochRecord, progress: RunProgress) -> EpochRecord:
        start = time.perf_counter()
        scores = self.validate()
        seconds = time.perf_counter() - start
        progress.add_validation(seconds)
        return replace(
            record, pixel_accuracy=scores["pixel_accuracy"], miou=scores["miou"],
            synthetic_miou=scores["synthetic_miou"], validation_seconds=seconds,
        )  # fmt: skip

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
            data = normalize(prepare(image, plan(original, model)), self.options.pixels)
            logits = self.learner.logits(data)
            confusion.update(label, labels_from_logits(logits, model, original))
        return confusion

    def _loader(self) -> Loader:
        o = self.options
        primary: SegmentationDataset = open_dataset(o.dataset, "train", o.root)
        if o.dataset == "synthetic":
            primary = Cached(primary)
        scenes = Cached(open_dataset("synthetic", "train")) if o.synthetic_share else None
        augmentation = Augmentation(
            o.height, o.crop_width, o.base_size, o.scale_range,
            color_jitter=o.color_jitter, rotation=o.rotation, class_crops=o.class_crops,
            short_size=o.short_size, aspect=o.aspect, blur_probability=o.blur,
        )  # fmt: skip
        return Loader(
            Mixture(primary, scenes, o.synthetic_share),
            augmentation,
            num_classes=len(self.labels.names),
            batch_size=o.batch_size,
            workers=o.workers,
            seed=o.seed,
            shard=self.learner.shard,
            pixels=o.pixels,
        )

    def _class_weights(self, loader: Loader) -> np.ndarray:
        pixels = np.zeros(256, np.int64)
        if self.options.class_balance:
            dataset = loader.mixture.primary
            for index in range(len(dataset)):
                pixels += np.bincount(dataset[index][1].reshape(-1), minlength=256)
        return balance_classes(pixels[: len(self.labels.names)], self.options.class_balance)

    def _train_epoch(
        self,
        epoch: int,
        loader: Loader,
        schedule: Schedule,
        guard: Guard,
        progress: RunProgress,
        log: RunLog,
    ) -> EpochRecord:
        start, total, taken = time.perf_counter(), 0.0, 0
        progress.begin_epoch(epoch)
        for index, batch in enumerate(loader.epoch(epoch)):
            rate = schedule(epoch * loader.batches + index)
            loss = guard.step(batch, rate, epoch, index)
            if loss is not None:
                total, taken = total + loss, taken + 1
                if (index + 1) % self.options.log_interval == 0:
                    log.add_step(epoch, index, loss, rate)
            progress.advance(epoch, index, total / taken if taken else math.nan, rate)
        return EpochRecord(
            epoch=epoch + 1,
            learning_rate=schedule(epoch * loader.batches),
            loss=total / taken if taken else math.nan,
            seconds=time.perf_counter() - start,
            skipped_steps=loader.batches - taken,
        )
