"""Makes the pictures of docs/outputs.md: ``python docs/make_output_pictures.py``.

Serves the repository's ICNet, sends a rendered street scene, and draws each form as its reader sees
it: pictures as they are, run lengths decoded by pycocotools, polygons drawn from their coordinates,
statistics as bars. Needs the ``test`` extra (pycocotools).
"""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco

from serving.settings import Settings
from serving.testing import ServerThread
from training.datasets.synthetic import render_scene

SEED = 20_051
HEIGHT, WIDTH = 270, 360
IMAGES = Path(__file__).parent / "images"
REPOSITORY = Path(__file__).parent.parent / "model_repository"
# What the polygons' picture shows, as x, y, width and height, and how much larger.
DETAIL, ZOOM = (150, 110, 120, 90), 3
CAR = 8


class Asker:
    """A client that sends one scene repeatedly."""

    def __init__(self, port: int, scene: bytes) -> None:
        self.url = f"http://127.0.0.1:{port}/v2/models/icnet/segment"
        self.scene = scene

    def ask(self, query: str) -> bytes:
        """Returns the body of the answer."""
        request = urllib.request.Request(f"{self.url}?{query}", data=self.scene)
        with urllib.request.urlopen(request, timeout=60) as answer:
            body: bytes = answer.read()
        return body

    def picture(self, query: str) -> Image.Image:
        """Returns the answer, decoded."""
        return Image.open(io.BytesIO(self.ask(query))).convert("RGB")


@contextmanager
def serve() -> Iterator[int]:
    """Serves the repository, and yields the HTTP port."""
    settings = Settings(
        repository=REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, drain_seconds=0.0
    )
    with ServerThread(settings) as server:
        assert server.ports is not None
        yield server.ports.http


def draw_run_lengths(asker: Asker) -> Image.Image:
    """Draws the cars' mask in white, and its box."""
    found = json.loads(asker.ask("format=rle&confidence=true"))["annotations"]
    (entry,) = (entry for entry in found if entry["category_id"] == CAR)
    mask = Image.fromarray(255 * coco.decode(entry["segmentation"])).convert("RGB")
    x, y, width, height = entry["bbox"]
    ImageDraw.Draw(mask).rectangle((x, y, x + width - 1, y + height - 1), outline="red")
    return mask


def draw_polygons(asker: Asker, scene: Image.Image) -> Image.Image:
    """Draws a part of the scene under the regions' outlines, exact and simplified."""
    left, top, width, height = DETAIL
    panels = []
    for tolerance in (0, 3):
        found = json.loads(asker.ask(f"format=polygons&tolerance={tolerance}&min_area=20"))
        panel = scene.crop((left, top, left + width, top + height))
        panel = panel.resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(panel)
        for feature in found["features"]:
            for ring in feature["geometry"]["coordinates"]:
                points = [((x - left) * ZOOM, (y - top) * ZOOM) for x, y in ring]
                draw.line(points, fill="yellow", width=2)
        panels.append(panel)
    return side_by_side(*panels)


def draw_statistics(asker: Asker) -> Image.Image:
    """Draws a bar for each class, with its share and its mean confidence."""
    found = json.loads(asker.ask("format=stats&confidence=true"))["classes"]
    present = [entry for entry in found if entry["pixels"]]
    line, names = 22, 100
    picture = Image.new("RGB", (2 * WIDTH, line * len(present) + 8), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    scale = (2 * WIDTH - names - 190) / max(entry["share"] for entry in present)
    for k, entry in enumerate(present):
        y = 4 + k * line
        draw.text((6, y + 2), entry["name"], fill="black", font=font)
        length = max(2, round(scale * entry["share"]))
        draw.rectangle((names, y + 3, names + length, y + line - 4), fill=entry["color"])
        text = f"{100 * entry['share']:.1f} %, confidence {entry['mean_confidence']:.2f}"
        draw.text((names + length + 8, y + 2), text, fill="black", font=font)
    return picture


def side_by_side(*panels: Image.Image) -> Image.Image:
    """Puts pictures into one row, 4 pixels apart."""
    gap = 4
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    x = 0
    for panel in panels:
        row.paste(panel, (x, 0))
        x += panel.width + gap
    return row


def save(picture: Image.Image, name: str) -> None:
    """Saves a small PNG of 256 colours in ``docs/images``."""
    small = picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(IMAGES / f"output_{name}.png", optimize=True)


def main() -> None:
    """Writes ``docs/images/output_*``."""
    scene = Image.fromarray(render_scene(SEED, HEIGHT, WIDTH).image)
    buffer = io.BytesIO()
    scene.save(buffer, "PNG")
    with serve() as port:
        asker = Asker(port, buffer.getvalue())
        save(side_by_side(scene, asker.picture("format=png")), "png")
        overlays = ("opacity=0.3", "opacity=0.7&legend=true")
        shown = [asker.picture(f"format=overlay&{options}") for options in overlays]
        # Small swatches would lose their colours among 256.
        side_by_side(*shown).save(IMAGES / "output_overlay.jpg", quality=88, subsampling=0)
        save(asker.picture("format=confidence"), "confidence")
        save(draw_run_lengths(asker), "rle")
        save(draw_polygons(asker, scene), "polygons")
        save(draw_statistics(asker), "stats")


if __name__ == "__main__":
    main()
