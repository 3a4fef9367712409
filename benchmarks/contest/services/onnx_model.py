"""A network on ONNX Runtime: one session, as its documentation opens it."""

from __future__ import annotations

import numpy as np
import onnxruntime
from job import Job


class OnnxModel:
    """Takes ``image`` uint8 ``[1,H,W,3]``, gives its label map; any thread may call."""

    def __init__(self, job: Job) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        self.session = onnxruntime.InferenceSession(
            str(job.graph), options, providers=["CPUExecutionProvider"]
        )
        _, self.height, self.width, _ = self.session.get_inputs()[0].shape

    def label(self, pixels: np.ndarray) -> np.ndarray:
        """The label map of the only image, uint8 ``[H,W]``."""
        (mask,) = self.session.run(["mask"], {"image": pixels})
        return mask[0]
