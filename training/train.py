"""Trains a network: ``python training/train.py --dataset camvid --model icnet ...``."""

from __future__ import annotations

import os
import sys
import warnings

from export.errors import ExportError
from training.class_weights import check_class_weights
from training.datasets import dataset_labels
from training.options import TrainOptions, parse_options
from training.trainers import make_learner


def start_replicas(options: TrainOptions) -> None:
    """Replaces this process by one for each GPU if several GPUs train together."""
    if options.trainer == "torch" and options.ngpus > 1:
        from training.trainers import torch_replicas

        count = torch_replicas.count_replicas(options)
        if count > 1:
            torch_replicas.check_replicas(options, count)
            torch_replicas.start_replicas(count, sys.argv)


def train(options: TrainOptions) -> None:
    """Trains, or with ``--eval`` only validates."""
    from training.guard.guard import TrainingStopped
    from training.run import Run
    from training.runs.interruption import Interrupted

    if options.resume is not None and not options.resume.exists():
        raise ValueError(
            f"--resume {options.resume}: not a run folder or a .params file; `segserve runs` lists "
            "the runs"
        )
    names = dataset_labels(options.dataset, options.root).names
    check_class_weights(options.class_weights, names)
    classes = len(names)
    if os.environ.get("RANK", "0") == "0":
        # Building a network takes seconds.
        width = f" of width {options.width:g}" if options.width != 1 else ""
        print(
            f"{options.model} {options.backbone}{width}, {classes} classes, "
            f"{options.height}x{options.crop_width}, trainer {options.trainer}",
            flush=True,
        )
    learner = make_learner(options, classes)
    run = Run(options, learner)
    if options.eval_only:
        run.load_weights(options.resume or options.run)
        run.validate()
        learner.close()
        return
    try:
        state = run.fit()
    except TrainingStopped as error:
        # All processes stop at the same step; the first one says why.
        if learner.shard.leads:
            print(f"train.py: {error}", file=sys.stderr, flush=True)
        learner.close()
        sys.exit(1)
    except Interrupted as error:
        learner.close()
        if learner.shard.leads:
            print(
                f"train.py: stopped by {error}; --resume {options.run} continues from that step",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        sys.exit(128 + error.signal_number)
    if learner.shard.leads:
        print(
            f"done: best mIoU {state.best_miou:.4f} after epoch {state.best_epoch + 1}; "
            f"weights in {options.run}",
            flush=True,
        )
    learner.close()


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Prints a warning in place of ``warnings.showwarning``, without a line of code."""
    print(f"train.py: warning: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the command line; exits with a message if something is wrong."""
    warnings.showwarning = print_warning
    try:
        options = parse_options()
        start_replicas(options)
        train(options)
    except (ValueError, OSError, ExportError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "train.py: stopped immediately; use --resume to continue from the last checkpoint, if "
            "there is one"
        )


if __name__ == "__main__":
    main()
