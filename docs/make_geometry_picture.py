"""Makes ``docs/images/geometry.png``: a wide scene, stretched, letterboxed and tiled.

``python docs/make_geometry_picture.py`` serves the repository's ICNet three times, once a way. At
the left what the network is shown, at the right what the server answers.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import numpy.typing as npt
from make_pictures import draw_legend
from PIL import Image, ImageDraw, ImageFont

from serving.imaging.geometry import RESIZES, Plan, Size, cut, plan, scale
from serving.models.repository import CONFIG_FILE
from serving.settings import Settings
from serving.testing import ServerThread
from training.datasets.synthetic import render_scene

SEED = 20_060
SCENE = Size(352, 960)
MODEL = Size(352, 480)
REPOSITORY = Path(__file__).parent.parent / "model_repository"
GAP = 12
HEIGHT = 200
Pixels = npt.NDArray[np.uint8]


def copy_model(repository: Path, way: str) -> None:
    """Writes the shipped model under the name and with the ``resize`` of ``way``."""
    shutil.copytree(REPOSITORY / "icnet", repository / way)
    config = repository / way / CONFIG_FILE
    text = config.read_text("utf-8").replace('name: "icnet"', f'name: "{way}"')
    config.write_text(text.replace('"stretch"', f'"{way}"'), "utf-8")


def segment(port: int, model: str, image: bytes) -> Image.Image:
    """Returns the overlay that the server answers."""
    url = f"http://127.0.0.1:{port}/v2/models/{model}/segment?format=overlay"
    with urllib.request.urlopen(urllib.request.Request(url, data=image), timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def draw_inputs(scene: Pixels, made: Plan) -> Image.Image:
    """Draws the views side by side, as the network gets them."""
    views = [cut(scale(scene, view.canvas), view) for view in made.views]
    shown = [_scaled(Image.fromarray(view)) for view in views]
    width = shown[0].width + 4
    sheet = Image.new("RGB", (len(shown) * width, HEIGHT), "white")
    for k, view in enumerate(shown):
        sheet.paste(view, (k * width, 0))
    return sheet


def _scaled(picture: Image.Image) -> Image.Image:
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT))


def main() -> None:
    """Writes the picture."""
    scene = render_scene(SEED, SCENE.height, SCENE.width).image
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, "PNG")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in RESIZES:
            copy_model(Path(folder), way)
        settings = Settings(repository=Path(folder), http_port=0, grpc_port=0, metrics_port=0)
        with ServerThread(settings) as server:
            for way in RESIZES:
                made = plan(SCENE, MODEL, way)
                answer = segment(server.ports.http, way, buffer.getvalue())
                rows.append((way, draw_inputs(scene, made), _scaled(answer)))
    left = max(inputs.width for _, inputs, _ in rows)
    width = left + rows[0][2].width + 3 * GAP
    step = HEIGHT + 30
    legend = draw_legend(width)
    picture = Image.new("RGB", (width, step * len(rows) + legend.height + GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=17)
    for k, (way, inputs, answer) in enumerate(rows):
        count = plan(SCENE, MODEL, way).view_count
        title = f"{way}: {count} view{'s' if count > 1 else ''} of {MODEL}"
        draw.text((GAP, k * step + 6), title, "black", font)
        draw.text((left + 2 * GAP, k * step + 6), f"answer, {SCENE}", "black", font)
        picture.paste(inputs, (GAP, k * step + 30))
        picture.paste(answer, (left + 2 * GAP, k * step + 30))
    picture.paste(legend, (0, step * len(rows) + GAP))
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(
        Path(__file__).parent / "images" / "geometry.png", optimize=True
    )


if __name__ == "__main__":
    main()
