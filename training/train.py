"""Trains a network: ``python training/train.py --dataset camvid --model icnet ...``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from training.datasets import dataset_labels
from training.learner import Learner
from training.options import TrainOptions, parse_options


def make_learner(options: TrainOptions, num_classes: int) -> Learner:
    """The framework's part; only the chosen one is imported."""
    if options.trainer == "torch":
        if find_spec("torch") is None:
            raise ValueError(
                "--trainer torch needs PyTorch: pip install 'segserve[torch]', or the build for "
                "your GPU"
            )
        from training.trainers.torch_trainer import TorchLearner

        return TorchLearner(options, num_classes)
    from training.trainers.gluon_trainer import GluonLearner

    return GluonLearner(options, num_classes)


def start_replicas(options: TrainOptions) -> None:
    """Where several GPUs are to train together: goes on as one process each."""
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

    classes = len(dataset_labels(options.dataset, options.root).names)
    learner = make_learner(options, classes)
    run = Run(options, learner)
    if options.eval_only:
        if learner.shard.leads:
            run.load_weights(options.resume or options.run)
            run.validate()
        learner.close()
        return
    try:
        state = run.fit()
    except TrainingStopped as error:
        # All processes stop at the same step; the first one tells why.
        if learner.shard.leads:
            print(f"train.py: {error}", file=sys.stderr, flush=True)
        learner.close()
        sys.exit(1)
    if learner.shard.leads:
        print(
            f"done: best mIoU {state.best_miou:.4f} after epoch {state.best_epoch + 1}; "
            f"weights in {options.run}",
            flush=True,
        )
    learner.close()


def main() -> None:
    """Reads the command line; exits with a message where something is wrong."""
    options = parse_options()
    try:
        start_replicas(options)
        train(options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
