"""Gives the services their job, a network on ONNX Runtime, and photos and masks by Pillow."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One network to serve, passed to every kind of server by environment variables.

    Attributes:
        graph: ``model.onnx``, or the folder of an MXNet symbol and its parameters.
        colors: 768 bytes, red, green and blue of each class id.
        threads: of one run.
        port: on 127.0.0.1.
    """

    graph: Path
    colors: bytes
    threads: int
    port: int


def read_job() -> Job:
    """Reads the job from the environment. Raises KeyError for a missing variable."""
    return Job(
        Path(os.environ["CONTEST_GRAPH"]),
        Path(os.environ["CONTEST_COLORS"]).read_bytes(),
        int(os.environ["CONTEST_THREADS"]),
        int(os.environ["CONTEST_PORT"]),
    )


class OnnxModel:
    """A network on ONNX Runtime, in one session opened as its documentation does; thread-safe."""

    def __init__(self, job: Job) -> None:
        # Not on top: a service of MXNet loads this module without needing it.
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        self.session = onnxruntime.InferenceSession(
            str(job.graph), options, providers=["CPUExecutionProvider"]
        )
        _, self.height, self.width, _ = self.session.get_inputs()[0].shape

    def label(self, pixels: Pixels) -> Pixels:
        """Returns the label map, uint8 ``[H,W]``, of an image uint8 ``[1,H,W,3]``."""
        masks: Pixels = self.session.run(["mask"], {"image": pixels})[0]
        labels: Pixels = masks[0]
        return labels


def read_photo(data: bytes, height: int, width: int) -> tuple[Pixels, tuple[int, int]]:
    """Returns uint8 ``[1,height,width,3]`` RGB, and the photo's own (width, height)."""
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    own = photo.size
    if own != (width, height):
        photo = photo.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(photo)[None], own


def write_mask(labels: Pixels, colors: bytes, own: tuple[int, int]) -> bytes:
    """Returns class ids, uint8 ``[h,w]``, as an indexed PNG in colour at the photo's own size."""
    mask = Image.fromarray(labels)
    if own != mask.size:
        mask = mask.resize(own, Image.Resampling.NEAREST)
    mask.putpalette(colors)
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()
