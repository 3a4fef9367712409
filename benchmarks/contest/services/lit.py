"""Serves a network on ONNX Runtime with LitServe: one worker, as many threads as the others."""

# No `from __future__ import annotations`: LitServe reads the annotation of decode_request.
import litserve
from fastapi import Request
from fastapi.responses import Response
from network import OnnxModel, Pixels, read_job, read_photo, write_mask


# LitServe has no types here: it is installed in its own environment.
class MaskAPI(litserve.LitAPI):  # type: ignore[misc]
    """Implements the four steps of a LitServe API."""

    def setup(self, device: str) -> None:
        """Opens the network, in the worker's process."""
        self.job = read_job()
        self.model = OnnxModel(self.job)

    def decode_request(self, request: Request) -> tuple[Pixels, tuple[int, int]]:
        """Returns the form's file as pixels, and the photo's own size."""
        photo: tuple[Pixels, tuple[int, int]] = read_photo(
            request["image"].file.read(), self.model.height, self.model.width
        )
        return photo

    def predict(self, photo: tuple[Pixels, tuple[int, int]]) -> tuple[Pixels, tuple[int, int]]:
        """Returns the label map, and the size that it is to have."""
        pixels, own = photo
        return self.model.label(pixels), own

    def encode_response(self, output: tuple[Pixels, tuple[int, int]]) -> Response:
        """Returns the mask as a picture."""
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
