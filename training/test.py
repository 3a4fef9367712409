"""Scores weights: ``python training/test.py --dataset citys --model icnet --eval --resume ...``."""

from __future__ import annotations

import sys

from training.evaluation.weights_options import parse_evaluation


def main() -> None:
    """Scores with ``--eval``; writes coloured predictions without it."""
    options = parse_evaluation(sys.argv[1:])
    from rich.console import Console

    from training.evaluation.scoring import ScoringError
    from training.evaluation.weights import run_evaluation

    try:
        run_evaluation(options, Console())
    except (ValueError, FileNotFoundError, ScoringError) as error:
        sys.exit(f"test.py: {error}")


if __name__ == "__main__":
    main()
