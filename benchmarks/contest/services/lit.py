"""LitServe around a network on ONNX Runtime: one worker, as many threads as the others."""

# No `from __future__ import annotations`: LitServe reads the annotation of decode_request.
import litserve
from fastapi import Request
from fastapi.responses import Response
from job import read_job
from onnx_model import OnnxModel
from photo import read_photo, write_mask


class MaskAPI(litserve.LitAPI):
    """The four steps that LitServe asks for."""

    def setup(self, device: str) -> None:
        """Runs in the worker's process."""
        self.job = read_job()
        self.model = OnnxModel(self.job)

    def decode_request(self, request: Request) -> tuple:
        """The file of the form."""
        return read_photo(request["image"].file.read(), self.model.height, self.model.width)

    def predict(self, photo: tuple) -> tuple:
        """The label map, and the size that it shall have."""
        pixels, own = photo
        return self.model.label(pixels), own

    def encode_response(self, output: tuple) -> Response:
        """The picture as it is."""
        labels, own = output
        return Response(write_mask(labels, self.job.colors, own), media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(MaskAPI(), accelerator="cpu", devices=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=read_job().port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
