"""This server beside others: ``python benchmarks/peers.py icnet --loads 1,2,4,8,open``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

from benchmarks.contest.cli import main

if __name__ == "__main__":
    main()
