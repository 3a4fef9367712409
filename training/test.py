"""Scores weights: ``python training/test.py --dataset citys --model icnet --eval --resume ...``."""

from __future__ import annotations

import sys

from export.errors import ExportError
from training.evaluation.options import parse_evaluation


def main() -> None:
    """Scores weights with ``--eval``; writes coloured predictions without it."""
    try:
        options = parse_evaluation(sys.argv[1:])
    except (ValueError, OSError, ExportError) as error:
        sys.exit(f"test.py: {error}")
    # What only scoring needs.
    from rich.console import Console

    from training.evaluation.scoring import ScoringError
    from training.evaluation.weights import run_evaluation

    try:
        run_evaluation(options, Console())
    except (ValueError, OSError, ScoringError, ExportError) as error:
        sys.exit(f"test.py: {error}")


if __name__ == "__main__":
    main()
