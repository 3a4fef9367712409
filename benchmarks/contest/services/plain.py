"""Serves a network with FastAPI, which takes an uploaded file as its tutorial does."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.responses import Response
from network import Job, OnnxModel, Pixels, read_job, read_photo, write_mask


class MxnetModel:
    """A network on MXNet 1.9.1, its symbol bound once for one image; thread-safe.

    An executor holds one input, so callers take turns.
    """

    def __init__(self, job: Job) -> None:
        # MXNet 1.9.1 uses the alias that numpy 1.24 dropped.
        setattr(np, "bool", np.bool_)  # noqa: B010
        import mxnet as mx

        self._array = mx.nd.array
        symbol = mx.sym.load(str(job.graph / "network-symbol.json"))
        values = {
            name.partition(":")[2]: array
            for name, array in mx.nd.load(str(job.graph / "network.params")).items()
        }
        self.height, self.width = json.loads((job.graph / "size.json").read_text())
        image = mx.nd.zeros((1, self.height, self.width, 3), dtype=np.uint8)
        arguments = {n: image if n == "image" else values[n] for n in symbol.list_arguments()}
        auxiliary = {n: values[n] for n in symbol.list_auxiliary_states()}
        self.executor = symbol.bind(mx.cpu(), arguments, grad_req="null", aux_states=auxiliary)
        self.lock = threading.Lock()

    def label(self, pixels: Pixels) -> Pixels:
        """Returns the label map, uint8 ``[H,W]``, of an image uint8 ``[1,H,W,3]``."""
        with self.lock:
            image = self._array(pixels, dtype=np.uint8)
            labels: Pixels = self.executor.forward(is_train=False, image=image)[0].asnumpy()[0]
        return labels


JOB = read_job()
MODEL = (MxnetModel if os.environ["CONTEST_RUNTIME"] == "mxnet" else OnnxModel)(JOB)
app = FastAPI()


@app.post("/segment")
def segment(image: UploadFile) -> Response:
    """Returns the mask of a photo. Not ``async``: FastAPI runs it on a thread of its pool."""
    pixels, own = read_photo(image.file.read(), MODEL.height, MODEL.width)
    mask = write_mask(MODEL.label(pixels), JOB.colors, own)
    return Response(mask, media_type="image/png")


@app.get("/health")
def health() -> str:
    """Answers once the service is ready."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=JOB.port, log_level="warning")
