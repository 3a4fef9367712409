"""``run_onnx.py MODEL IMAGES.npy OUTPUTS.npz`` in an environment with numpy and onnxruntime alone.

Prints ONNX Runtime's version.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

if __name__ == "__main__":
    model, images, outputs = sys.argv[1:]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {session.get_inputs()[0].name: np.load(images)})
    np.savez(outputs, **dict(zip(names, results)))  # noqa: B905
    print(onnxruntime.__version__)
