"""The training loop: epochs, validation, log, checkpoints; knows no framework."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from training.class_weights import weigh_classes
from training.datasets import SegmentationDataset, dataset_labels, open_dataset
from training.guard.guard import Guard
from training.loader import Cached, Loader, Mixture, Shard
from training.options import TrainOptions
from training.runs.checkpoint import PartOfEpoch, RunFolder, RunState, Saver, hold_run
from training.runs.environment import read_environment
from training.runs.interruption import Interrupted, Interruption
from training.runs.log import EpochRecord, RunLog
from training.runs.progress import RunProgress
from training.schedules import Schedule, make_schedule
from training.trainers import Learner
from training.transforms import Augmentation
from training.validation import Validation, Watch, validate


class Run:
    """A run of one learner: ``fit()`` trains and validates, ``validate()`` only scores."""

    def __init__(self, options: TrainOptions, learner: Learner) -> None:
        self.options = options
        self.learner = learner
        self.folder = RunFolder(options.run)
        self.labels = dataset_labels(options.dataset, options.root)

    def fit(self) -> RunState:
        """Trains the remaining epochs; returns the state at the end.

        Raises:
            TrainingStopped: a step's loss or gradients are not finite (see ``guard/guard.py``).
            Interrupted: by a signal; the place is kept.
            CheckpointNotWritten: the disk is full.
        """
        resumed = self.options.resume is not None and self.options.resume.is_dir()
        if not self.learner.shard.leads:
            return self._follow(resumed)
        if not resumed:
            with hold_run(self.folder.path):
                moved = self.folder.make_room()
            if moved is not None:
                print(f"the earlier run in {self.folder.path} was moved to {moved}", flush=True)
        with hold_run(self.folder.path):
            return self._fit(resumed)

    def _fit(self, resumed: bool) -> RunState:
        o = self.options
        steps, state = self._start(resumed)
        self.folder.start(asdict(o), read_environment())
        self.learner.write_symbol(self.folder.symbol)
        self._report_start(steps.loader, state)
        batches = steps.loader.batches
        left = range(state.epochs_done, o.epochs)
        progress = RunProgress(
            o.epochs, state, batches,
            validations=sum(map(self._is_validated, left)), log_interval=o.log_interval,
        )  # fmt: skip
        interruption = Interruption(self.learner.agree, prints=True)
        saver = Saver(self.folder, self.learner, o.checkpoint_minutes)
        with closing(RunLog(self.folder, state, batches)) as log, progress, interruption:
            for epoch in left:
                state = self._train_epoch(state, steps, progress, log, interruption, saver)
                record = EpochRecord(
                    epoch=epoch + 1,
                    learning_rate=steps.rate(epoch, 0),
                    loss=state.part.mean_loss,
                    seconds=state.part.seconds,
                    skipped_steps=state.part.iterations - state.part.steps,
                )
                if self._is_validated(epoch):
                    record = self._validate_epoch(record, state, progress, interruption, saver)
                    if state.best_epoch < 0 or record.miou > state.best_miou:
                        state = replace(state, best_miou=record.miou, best_epoch=epoch)
                state = replace(state, epochs_done=epoch + 1, part=PartOfEpoch())
                # Before the checkpoint: resuming drops a line too many, but misses none.
                log.add_epoch(record)
                saver.save(state)
                interruption.check()
        return state

    def _train_epoch(
        self,
        state: RunState,
        steps: Steps,
        progress: RunProgress,
        log: RunLog,
        interruption: Interruption,
        saver: Saver,
    ) -> RunState:
        """Returns the iterations that are left of an epoch; the state with all of them in its
        part."""
        epoch = state.epochs_done
        part = replace(state.part, length=steps.loader.batches)
        progress.begin_epoch(epoch, part.iterations)
        before = time.perf_counter()
        with saver.keeping(lambda: replace(state, part=part)):
            for index, rate, loss in steps.of_epoch(epoch, part.iterations):
                now = time.perf_counter()
                part = part.extended(loss, now - before)
                before = now
                if loss is not None and (index + 1) % self.options.log_interval == 0:
                    log.add_step(epoch, index, loss, rate)
                progress.advance(epoch, index, part.mean_loss, rate)
                is_last = part.iterations == part.length
                if interruption.is_agreed() or (saver.is_due() and not is_last):
                    saver.save(replace(state, part=part))
                    interruption.check()
        return replace(state, part=part)

    def _follow(self, resumed: bool) -> RunState:
        """Takes the same steps as the first process, which alone prints and writes."""
        steps, state = self._start(resumed)
        with Interruption(self.learner.agree, prints=False) as interruption:
            while state.epochs_done < self.options.epochs:
                for _ in steps.of_epoch(*state.place):
                    interruption.is_agreed()
                    interruption.check()
                if self._is_validated(state.epochs_done):
                    self.validate(lambda *_: interruption.check_here())
                    interruption.is_agreed()
                    interruption.check()
                state = replace(state, epochs_done=state.epochs_done + 1, part=PartOfEpoch())
        return state

    def _start(self, resumed: bool) -> tuple[Steps, RunState]:
        o = self.options
        loader = open_loader(o, len(self.labels.names), self.learner.shard)
        if not o.no_val:
            # What is missing there is reported now, not after an epoch.
            open_dataset(o.dataset, "val", o.root)
        class_weights = weigh_classes(
            loader.mixture.primary, len(self.labels.names), o.class_balance, o.class_weights
        )
        self.learner.start(class_weights)
        state = self._read_checkpoint(loader) if resumed else self._read_start()
        guard = Guard(o, self.learner, class_weights)
        return Steps(loader, self._schedule(loader), guard), state

    def _report_start(self, loader: Loader, state: RunState) -> None:
        o = self.options
        epoch, iteration = state.place
        images = len(loader.mixture.primary) + loader.mixture.extra
        within = f", from iteration {iteration + 1} on" if iteration else ""
        left = f"epochs {epoch + 1} to {o.epochs}{within}"
        if epoch >= o.epochs:
            left = f"all {epoch} epochs are done; a larger --epochs continues"
        print(
            f"{self.folder.path}: {images} images, {loader.batches} iterations of {o.batch_size} "
            f"an epoch; {left}",
            flush=True,
        )

    def _schedule(self, loader: Loader) -> Schedule:
        o = self.options
        return make_schedule(
            o.schedule, o.lr, loader.batches, o.epochs, o.warmup_epochs, o.lr_steps, o.lr_factor
        )

    def _read_checkpoint(self, loader: Loader) -> RunState:
        checkpoint = self.folder.newest()
        if checkpoint is None:
            raise FileNotFoundError(f"{self.folder.path} has no checkpoint to resume from")
        self.learner.read_parameters(checkpoint.last)
        self.learner.read_optimizer(checkpoint.optimizer)
        state = checkpoint.read_state()
        if not state.part.iterations or state.part.length == loader.batches:
            return state
        if self.learner.shard.leads:
            print(
                f"epoch {state.epochs_done + 1} starts again: it has {loader.batches} iterations "
                f"now instead of {state.part.length}"
            )
        return replace(state, part=PartOfEpoch())

    def _read_start(self) -> RunState:
        """Reads the weights that a run starts from, if any."""
        o = self.options
        if o.resume is not None:
            self.learner.read_parameters(o.resume)
        if o.finetune is not None:
            fresh = self.learner.read_parameters(o.finetune, partial=True)
            if self.learner.shard.leads:
                names = ", ".join(fresh) or "none"
                print(f"{o.finetune}: {len(fresh)} arrays are initialized again: {names}")
        return RunState()

    def _is_validated(self, epoch: int) -> bool:
        o = self.options
        return not o.no_val and (epoch + 1 == o.epochs or (epoch + 1) % o.val_interval == 0)

    def _validate_epoch(
        self, record: EpochRecord, state: RunState, progress: RunProgress,
        interruption: Interruption, saver: Saver,
    ) -> EpochRecord:  # fmt: skip
        def watch(done: int, images: int) -> None:
            interruption.check_here()
            progress.watch_validation(done, images)

        start = time.perf_counter()
        try:
            with saver.keeping(lambda: state):
                scores = self.validate(watch)
        except Interrupted:
            saver.save(state)
            raise
        interruption.is_agreed()
        seconds = time.perf_counter() - start
        progress.add_validation(seconds)
        return replace(
            record,
            pixel_accuracy=scores.main.pixel_accuracy,
            miou=scores.main.mean_iou,
            synthetic_miou=scores.synthetic.mean_iou if scores.synthetic else math.nan,
            validation_seconds=seconds,
        )

    def validate(self, watch: Watch | None = None) -> Validation:
        """Scores the validation split in all processes; the first one prints the scores."""
        scores = validate(self.options, self.learner, len(self.labels.names), watch)
        if self.learner.shard.leads:
            print(scores.describe(self.labels), flush=True)
        return scores

    def load_weights(self, path: Path) -> None:
        """Replaces the network's weights by a run folder's best, or by a ``.params`` file."""
        self.learner.read_parameters(RunFolder(path).best if path.is_dir() else path)


def open_loader(options: TrainOptions, num_classes: int, shard: Shard) -> Loader:
    """Opens the dataset's training split, with the requested share of rendered scenes mixed in.

    Raises:
        FileNotFoundError, ValueError: as ``open_dataset`` and ``Loader`` say.
    """
    o = options
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
        num_classes=num_classes,
        batch_size=o.batch_size,
        workers=o.workers,
        seed=o.seed,
        shard=shard,
        pixels=o.pixels,
    )


@dataclass(frozen=True)
class Steps:
    """The steps of a run, in order: batches, the rate of each, and the guard that takes them."""

    loader: Loader
    schedule: Schedule
    guard: Guard

    def rate(self, epoch: int, iteration: int) -> float:
        """Returns the learning rate of an iteration; both count from 0."""
        return self.schedule(epoch * self.loader.batches + iteration)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[int, float, float | None]]:
        """Takes the steps from iteration ``first`` on; yields (iteration, rate, loss) after each.
        The loss is None if the step was skipped.

        Raises:
            TrainingStopped: see ``guard/guard.py``.
        """
        for iteration, batch in enumerate(self.loader.epoch(epoch, first), first):
            rate = self.rate(epoch, iteration)
            yield iteration, rate, self.guard.step(batch, rate, epoch, iteration)
