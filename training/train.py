"""Trains a network: ``python training/train.py --dataset camvid --model icnet ...``."""

from __future__ import annotations

import sys

from training.learner import Learner
from training.options import TrainOptions, parse_options


def make_learner(options: TrainOptions, num_classes: int) -> Learner:
    """The framework's part; only the chosen one is imported."""
    if options.trainer == "torch":
        from training.trainers.torch_trainer import TorchLearner

        return TorchLearner(options, num_classes)
    from training.trainers.gluon_trainer import GluonLearner

    return GluonLearner(options, num_classes)


def main() -> None:
    """Trains, or with ``--eval`` only validates."""
    options = parse_options()
    from training.run import Run, dataset_labels

    try:
        run = Run(options, make_learner(options, len(dataset_labels(options.dataset).names)))
        if options.eval_only:
            run.load_weights(options.resume or options.run)
            run.validate()
            return
        state = run.fit()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    print(
        f"done: best mIoU {state.best_miou:.4f} after epoch {state.best_epoch + 1}; "
        f"weights in {options.run}"
    )


if __name__ == "__main__":
    main()
