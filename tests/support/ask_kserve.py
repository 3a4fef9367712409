"""Asks a server by KServe's SDK over REST; run by the interpreter that has the SDK.

Args: the server's address, and a file of the pixels (NumPy). Prints what it was told as JSON.
"""

import asyncio
import json
import sys

import numpy as np
import numpy.typing as npt
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def ask(address: str, pixels: npt.NDArray[np.uint8]) -> dict[str, object]:
    """Readiness by every call there is, and the mask by JSON and by binary data."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=60))
    told: dict[str, object] = {
        "live": await client.is_server_live(address),
        "ready": await client.is_server_ready(address),
        "model ready": await client.is_model_ready(address, "bands"),
    }
    for binary in (False, True):
        item = InferInput(name="image", shape=list(pixels.shape), datatype="UINT8")
        item.set_data_from_numpy(pixels, binary_data=binary)
        request = InferRequest(model_name="bands", infer_inputs=[item])
        answer = await client.infer(address, data=request, model_name="bands")
        (mask,) = [output for output in answer.outputs if output.name == "mask"]
        told[f"mask, binary {binary}"] = mask.as_numpy().reshape(-1).tolist()
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], np.load(sys.argv[2])))))
