"""``run_mxnet_backend.py MODEL_FOLDER IMAGES.npy OUTPUTS.npz`` runs a ``model.py`` without Triton.

Executes one request of the first image and one of the others (for the last output alone)
together; then a third that must fail beside the first, whose answer must not change.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


@dataclass
class Tensor:
    tensor_name: str
    array: npt.NDArray[np.uint8]

    def as_numpy(self) -> npt.NDArray[np.uint8]:
        return self.array


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: object = None


@dataclass
class Request:
    image: npt.NDArray[np.uint8]
    names: list[str]

    def requested_output_names(self) -> list[str]:
        return self.names


def main(folder: Path, images: Path, outputs: Path) -> None:
    interface = types.ModuleType("triton_python_backend_utils")
    for name, value in {
        "Tensor": Tensor,
        "InferenceResponse": InferenceResponse,
        "TritonError": str,
        "Logger": types.SimpleNamespace(log_warn=print),
        "get_input_tensor_by_name": lambda request, name: Tensor(name, request.image),
    }.items():
        setattr(interface, name, value)
    sys.modules[interface.__name__] = interface
    path = folder / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), ModelConfig())
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(
                json_format.MessageToDict(
                    config,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
            ),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    image = np.load(images)
    names = [tensor.name for tensor in config.output]
    first, others = model.execute([Request(image[:1], names), Request(image[1:], names[-1:])])
    assert not first.error
    assert not others.error
    found = {f"first_{t.tensor_name}": t.array for t in first.output_tensors}
    found |= {f"others_{t.tensor_name}": t.array for t in others.output_tensors}
    np.savez(outputs, **found)
    bad = Request(np.zeros((1, *image.shape[1:3], 4), np.uint8), names)
    again, failed = model.execute([Request(image[:1], names), bad])
    assert "MXNet" in failed.error
    for tensor in again.output_tensors:
        assert np.array_equal(tensor.array, found[f"first_{tensor.tensor_name}"])
    model.finalize()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
