"""Serves a network on ONNX Runtime as a custom runtime of MLServer: BYTES in, BYTES out."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from network import OnnxModel, read_job, read_photo, write_mask


# MLServer has no types here: it is installed in its own environment.
class MaskRuntime(MLModel):  # type: ignore[misc]
    """A runtime that MLServer runs in one of its parallel workers."""

    async def load(self) -> bool:
        """Opens the network."""
        self.job = read_job()
        self.model = OnnxModel(self.job)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Returns the mask of one photo."""
        (photo,) = payload.inputs[0].data
        pixels, own = read_photo(photo, self.model.height, self.model.width)
        picture = write_mask(self.model.label(pixels), self.job.colors, own)
        output = ResponseOutput(
            name="picture",
            shape=[1],
            datatype="BYTES",
            data=[picture],
            parameters=Parameters(content_type="raw"),
        )
        return InferenceResponse(model_name=self.name, outputs=[output])
