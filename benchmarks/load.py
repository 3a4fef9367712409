"""A server under load: ``python benchmarks/load.py --percent 50,100,200``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

from benchmarks.loadgen.cli import main

if __name__ == "__main__":
    main()
