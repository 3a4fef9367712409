"""Makes the pictures of docs/evaluation.md: ``python docs/make_evaluation_pictures.py``.

The shipped model, run in this process, on rendered scenes that it has not seen.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Writes ``docs/images/evaluation_examples.png`` and ``evaluation_confusion.png``."""
    with tempfile.TemporaryDirectory() as folder:
        command = "evaluate --model icnet --dataset synthetic --examples 1 --repository"
        segserve = Path(sys.executable).with_name("segserve")
        subprocess.run(
            [segserve, *command.split(), ROOT / "model_repository", "--output", folder], check=True
        )
        for name in ("examples", "confusion"):
            with Image.open(Path(folder) / f"{name}.png") as picture:
                small = picture.convert("RGB")
            small.thumbnail((1240, 1240), Image.Resampling.LANCZOS)
            small.quantize(
                256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG
            ).save(IMAGES / f"evaluation_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
