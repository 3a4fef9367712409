"""The fixed scene and the label maps that the shipped model must give for it.

``python -m tests.support.golden`` makes them again after the model has changed: the network's
logits by plain ONNX Runtime on the whole graph, the label maps by the float64 reference.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from serving.imaging.geometry import Size, plan, prepare
from serving.imaging.restore import labels_reference
from serving.models.repository import read_model
from serving.palette import load_labels, plte
from training.datasets.synthetic import render_scene

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "golden"
REPOSITORY = ROOT / "model_repository"
SCENE = FOLDER / "scene.jpg"
SCENE_SEED = 20_002
# Neither the model's size nor its aspect: the way back has to be right.
SCENE_SIZE = Size(400, 640)


def expected(name: str) -> npt.NDArray[np.uint8]:
    """``original`` (the scene's size) or ``model`` (the network's): uint8 ids."""
    return np.asarray(Image.open(FOLDER / f"{name}.png"), np.uint8)


def read_scene() -> npt.NDArray[np.uint8]:
    """RGB uint8, as the server decodes it."""
    pixels = cv2.imread(str(SCENE), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.ascontiguousarray(pixels[..., ::-1])


def main() -> None:
    """Renders the scene and writes both label maps."""
    FOLDER.mkdir(exist_ok=True)
    scene = render_scene(SCENE_SEED, SCENE_SIZE.height, SCENE_SIZE.width)
    Image.fromarray(scene.image).save(SCENE, quality=92)
    folder = read_model(REPOSITORY / "icnet")
    session = onnxruntime.InferenceSession(str(folder.graph(folder.versions[-1])))
    _, height, width, _ = session.get_inputs()[0].shape
    size = Size(height, width)
    pixels = prepare(read_scene(), plan(SCENE_SIZE, size))
    (logits,) = session.run(["logits"], {"image": pixels[None]})
    for name, target in (("original", SCENE_SIZE), ("model", size)):
        picture = Image.fromarray(labels_reference(logits[0], size, target), "P")
        picture.putpalette(plte(load_labels("camvid").colors, 255))
        picture.save(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
