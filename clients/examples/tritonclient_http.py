"""Sends a JPEG as BYTES, then its pixels as UINT8, over HTTP with NVIDIA's tritonclient.

Usage: python tritonclient_http.py PHOTO.jpg [MODEL] [SERVER]; needs tritonclient[http] and pillow.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tritonclient.http as triton
from PIL import Image


def infer(
    client: triton.InferenceServerClient, model: str, image: npt.NDArray[np.generic]
) -> npt.NDArray[np.uint8]:
    """Returns the mask, uint8 [1,H,W] in the model's size."""
    datatype = "BYTES" if image.dtype == np.object_ else "UINT8"
    tensor = triton.InferInput("image", list(image.shape), datatype)
    tensor.set_data_from_numpy(image)
    answer = client.infer(model, [tensor], outputs=[triton.InferRequestedOutput("mask")])
    mask: npt.NDArray[np.uint8] = answer.as_numpy("mask")
    return mask


photo = Path(sys.argv[1])
model = sys.argv[2] if len(sys.argv) > 2 else "icnet"
client = triton.InferenceServerClient(sys.argv[3] if len(sys.argv) > 3 else "localhost:8000")

# As a file: the server decodes and resizes.
encoded = infer(client, model, np.array([photo.read_bytes()], dtype=np.object_))
print("BYTES [1]", "->", encoded.shape, "classes", np.unique(encoded))

# As pixels, which must have the model's size: [1,H,W,3] RGB.
_, height, width, _ = (int(size) for size in client.get_model_metadata(model)["inputs"][0]["shape"])
pixels = np.asarray(Image.open(photo).convert("RGB").resize((width, height)), np.uint8)[None]
mask = infer(client, model, pixels)
print("UINT8", list(pixels.shape), "->", mask.shape, f"{np.mean(mask == encoded):.2%} the same")
