"""What the stages are measured on: a photo, a trained network's logits for it, and noise."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.engines.onnxruntime import OnnxEngine
from serving.formats.label_map import MaskView
from serving.imaging import restore
from serving.imaging.geometry import Size
from serving.models.repository import read_model
from training.datasets.synthetic import render_scene

SIZE = Size(1024, 2048)
SEED = 7
# What a network of 1024x2048 has in front of its last resize.
FINE = Size(SIZE.height // 4, SIZE.width // 4)

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Subjects:
    """One photo in every state that a stage begins with.

    Attributes:
        kind: what the photo is.
        encoded: as JPEG.
        photo: uint8 ``[1024,2048,3]``.
        network: height and width of the network's input.
        served: the network's logits for the whole photo, ``[C,h,w]``.
        fine: its logits for tiles of the photo in full size, put together: ``[C,256,512]``.
        noise: no two neighbours alike, ``[19,256,512]``.
        view: the label map of ``served``, with its confidence.
    """

    kind: str
    encoded: bytes
    photo: Pixels
    network: Size
    served: Logits
    fine: Logits
    noise: Logits
    view: MaskView


def make_subjects(photo: Path | None, repository: Path) -> Subjects:
    """From a photo of 1024x2048, or from a rendered scene, and the model ``icnet``."""
    if photo is None:
        kind, encoded = "a rendered scene", _jpeg(render_scene(SEED, SIZE.height, SIZE.width).image)
    else:
        kind, encoded = "a street photo", photo.read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    if pixels.shape[:2] != (SIZE.height, SIZE.width):
        raise SystemExit(f"{photo}: the stages are measured on {SIZE}, not on {pixels.shape[:2]}")
    folder = read_model(repository / "icnet")
    threads = len(os.sched_getaffinity(0))
    graph = folder.graph(folder.versions[-1])
    engine = OnnxEngine(graph, instances=1, threads=threads, max_batch_size=1)
    network = engine.spec.size
    small = cv2.resize(pixels, (network.width, network.height), interpolation=cv2.INTER_LINEAR)
    served = _run(engine, small)
    fine = _run_on_tiles(engine, pixels)
    engine.close()
    noise = np.random.default_rng(SEED).standard_normal((19, FINE.height, FINE.width), np.float32)
    labels, confidence = restore.labels_and_confidence(served, network, SIZE)
    known = folder.labels
    view = MaskView(labels, known.names, known.colors, known.ignore_label, pixels, confidence)
    return Subjects(kind, encoded, pixels, network, served, fine, noise, view)


def mixed_share(logits: Logits) -> float:
    """The part of the cells whose four corners' labels differ."""
    winner = logits.argmax(axis=0)
    corner = winner[:-1, :-1]
    same = (corner == winner[1:, :-1]) & (corner == winner[:-1, 1:]) & (corner == winner[1:, 1:])
    return float(1 - same.mean())


def _run(engine: OnnxEngine, pixels: Pixels) -> Logits:
    logits = engine.run(pixels[None])[0].logits
    if logits is None:
        raise SystemExit("the model icnet gives no logits")
    return logits


def _run_on_tiles(engine: OnnxEngine, photo: Pixels) -> Logits:
    """Tiles of the network's size side by side, the photo mirrored at its lower right edges."""
    size = engine.spec.size
    down, across = -(-photo.shape[0] // size.height), -(-photo.shape[1] // size.width)
    bottom, right = down * size.height - photo.shape[0], across * size.width - photo.shape[1]
    whole = cv2.copyMakeBorder(photo, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    rows = [
        np.concatenate([_run(engine, tile) for tile in np.split(band, across, axis=1)], axis=2)
        for band in np.split(whole, down, axis=0)
    ]
    together = np.concatenate(rows, axis=1)
    return np.ascontiguousarray(together[:, : FINE.height, : FINE.width])


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
