"""Trains a network: ``python training/train.py --dataset camvid --model icnet ...``."""

from __future__ import annotations

import sys

from training.options import parse_options


def main() -> None:
    """Trains, or with ``--eval`` only validates."""
    options = parse_options()
    from training.trainers.gluon_trainer import GluonTrainer, load_weights

    try:
        trainer = GluonTrainer(options)
        if options.eval_only:
            load_weights(trainer, options.resume or options.run)
            trainer.validate()
            return
        state = trainer.fit()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    print(
        f"done: best mIoU {state.best_miou:.4f} after epoch {state.best_epoch + 1}; "
        f"weights in {options.run}"
    )


if __name__ == "__main__":
    main()
