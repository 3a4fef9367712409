"""Time an image and frames per second: ``python benchmarks/fps.py --model icnet``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path; benchmarks/ is not installed

from benchmarks.fps_command import main

if __name__ == "__main__":
    main()
