"""What the tests of the precisions share: rendered scenes, in a folder or as a dataset."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.synthetic import render_scene

# Not the network's size, so that the resize is a real one.
SCENE_SIZE = (72, 100)


def scene(seed: int) -> npt.NDArray[np.uint8]:
    """A small street scene, uint8 [72, 100, 3] RGB."""
    return render_scene(seed, *SCENE_SIZE).image


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes RGB or one channel as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def write_scenes(folder: Path, count: int = 10) -> Path:
    """A folder of photos without labels."""
    for seed in range(count):
        write_image(folder / f"{seed:02}.png", scene(seed))
    return folder
