"""Makes the README picture from a running server: ``python docs/make_pictures.py localhost:8000``.

A rendered street scene, the label map and the overlay, the last two as the server answered them.
"""

from __future__ import annotations

import io
import sys
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serving.palette import load_labels
from training.datasets.synthetic import render_scene

SEED = 20_051
HEIGHT, WIDTH = 360, 480
LEGEND_HEIGHT = 30
IMAGES = Path(__file__).parent / "images"


def segment(server: str, image: bytes, format: str) -> Image.Image:
    """Returns the server's answer as a picture."""
    url = f"http://{server}/v2/models/icnet/segment?format={format}"
    with urllib.request.urlopen(urllib.request.Request(url, data=image), timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read()))


def draw_legend(width: int) -> Image.Image:
    """Draws the classes and their colours in one row."""
    labels = load_labels("camvid")
    legend = Image.new("RGB", (width, LEGEND_HEIGHT), "white")
    draw = ImageDraw.Draw(legend)
    font = ImageFont.load_default(size=15)
    step = width / len(labels.names)
    for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True)):
        left = round(index * step) + 4
        draw.rectangle((left, 8, left + 14, 22), fill=color)
        draw.text((left + 20, 6), name, fill="black", font=font)
    return legend


def main(server: str) -> None:
    """Writes ``docs/images/segment.png``."""
    scene = render_scene(SEED, HEIGHT, WIDTH).image
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    panels = [Image.open(io.BytesIO(data)), segment(server, data, "png"),
              segment(server, data, "overlay")]  # fmt: skip
    row = np.hstack([np.asarray(panel.convert("RGB")) for panel in panels])
    picture = Image.new("RGB", (row.shape[1], HEIGHT + LEGEND_HEIGHT))
    picture.paste(Image.fromarray(row))
    picture.paste(draw_legend(row.shape[1]), (0, HEIGHT))
    IMAGES.mkdir(exist_ok=True)
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(
        IMAGES / "segment.png", optimize=True
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:8000")
