"""FastAPI around a network, as its tutorial takes an uploaded file."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI, UploadFile
from fastapi.responses import Response
from job import read_job
from photo import read_photo, write_mask

JOB = read_job()
if os.environ["CONTEST_RUNTIME"] == "mxnet":
    from mxnet_model import MxnetModel as Model
else:
    from onnx_model import OnnxModel as Model
MODEL = Model(JOB)
app = FastAPI()


@app.post("/segment")
def segment(image: UploadFile) -> Response:
    """Not ``async``: FastAPI runs it on a thread of its pool."""
    pixels, own = read_photo(image.file.read(), MODEL.height, MODEL.width)
    mask = write_mask(MODEL.label(pixels), JOB.colors, own)
    return Response(mask, media_type="image/png")


@app.get("/health")
def health() -> str:
    """Asked until it answers."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=JOB.port, log_level="warning")
