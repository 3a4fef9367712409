"""MLServer's custom runtime around a network on ONNX Runtime: BYTES in, BYTES out."""

from __future__ import annotations

from job import read_job
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from onnx_model import OnnxModel
from photo import read_photo, write_mask


class MaskRuntime(MLModel):
    """Runs in one of MLServer's parallel workers."""

    async def load(self) -> bool:
        """Opens the network."""
        self.job = read_job()
        self.model = OnnxModel(self.job)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One photo."""
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
