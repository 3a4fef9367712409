"""gRPC calls of the Open Inference Protocol that two servers are compared by.

The names are those that the table in docs/protocol.md speaks of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as oip


@dataclass(frozen=True)
class GrpcCase:
    """One call of inference.GRPCInferenceService."""

    name: str
    call: str
    message: object
    names: tuple[str, ...] = ()


def infer_message(
    image: npt.NDArray[np.uint8], *outputs: str, **fields: str
) -> oip.ModelInferRequest:
    """A right one, to be spoiled."""
    message = oip.ModelInferRequest(**{"model_name": "icnet", **fields})
    message.inputs.add(name="image", datatype="UINT8", shape=image.shape)
    message.raw_input_contents.append(image.tobytes())
    for name in outputs or ("mask",):
        message.outputs.add(name=name)
    return message


def grpc_cases(image: npt.NDArray[np.uint8]) -> list[GrpcCase]:
    """The same questions over gRPC."""
    cases = [
        GrpcCase("grpc live", "ServerLive", oip.ServerLiveRequest()),
        GrpcCase("grpc ready while a model is broken", "ServerReady", oip.ServerReadyRequest()),
        GrpcCase("grpc server metadata", "ServerMetadata", oip.ServerMetadataRequest()),
    ]
    of = {"a model": ("icnet", ""), "an unknown model": ("nope", ""), "version x": ("icnet", "x"),
          "a broken model": ("broken", ""), "a version": ("icnet", "1"),
          "an unknown version": ("icnet", "9")}  # fmt: skip
    for what, (name, version) in of.items():
        for title, call in (("ready", "ModelReady"), ("metadata", "ModelMetadata"),
                            ("config", "ModelConfig")):  # fmt: skip
            message = getattr(oip, f"{call}Request")(name=name, version=version)
            cases.append(GrpcCase(f"grpc {title} of {what}", call, message))
        if "model" not in what or name == "nope":
            message = oip.ModelStatisticsRequest(name=name, version=version)
            if what != "a version":
                cases.append(GrpcCase(f"grpc statistics of {what}", "ModelStatistics", message))
    return [*cases, *_grpc_control(), *_grpc_infer(image)]


def _grpc_control() -> list[GrpcCase]:
    def control(title: str, call: str, /, *names: str, **fields: object) -> GrpcCase:
        return GrpcCase(f"grpc {title}", call, getattr(oip, f"{call}Request")(**fields), names)

    load, unload = "RepositoryModelLoad", "RepositoryModelUnload"
    status, register = "SystemSharedMemoryStatus", "SystemSharedMemoryRegister"
    return [
        control("index", "RepositoryIndex"),
        control("index of what is ready", "RepositoryIndex", ready=True),
        control("index of another repository", "RepositoryIndex", "repository_name",
                repository_name="x"),
        control("load of an unknown model", load, "nope", model_name="nope"),
        control("load of a broken model", load, "broken", model_name="broken"),
        control("unload of an unknown model", unload, model_name="nope"),
        control("unload", unload, model_name="twin"),
        control("index after unload", "RepositoryIndex"),
        control("load", load, model_name="twin"),
        control("system shared memory status", status),
        control("status of an unknown region", status, "r", name="r"),
        control("registration of what is not there", register, "segserve_nope", name="r",
                key="/segserve_nope", byte_size=10),
        control("unregistration of all", "SystemSharedMemoryUnregister"),
        control("CUDA shared memory status", "CudaSharedMemoryStatus"),
        control("CUDA registration", "CudaSharedMemoryRegister", name="r", raw_handle=b"x",
                byte_size=10),
        control("CUDA unregistration", "CudaSharedMemoryUnregister"),
        control("trace settings", "TraceSetting"),
        control("log settings", "LogSettings"),
    ]  # fmt: skip


def _grpc_infer(image: npt.NDArray[np.uint8]) -> list[GrpcCase]:
    cases: list[GrpcCase] = []

    def add(name: str, message: oip.ModelInferRequest, *names: str) -> oip.ModelInferRequest:
        cases.append(GrpcCase(f"grpc infer {name}".strip(), "ModelInfer", message, names))
        return message

    add("", infer_message(image))
    add("with an id", infer_message(image, id="seven"))
    add("of a version", infer_message(image, model_version="1"))
    del add("of all outputs", infer_message(image)).outputs[:]
    add("with outputs in another order", infer_message(image, "logits", "mask"))
    add("with an output twice", infer_message(image, "mask", "mask"))
    typed = add("from typed contents", infer_message(image))
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(image.reshape(-1).tolist())
    wide = add("with values above 255", oip.ModelInferRequest())
    wide.CopyFrom(typed)
    wide.inputs[0].contents.uint_contents[0] = 300
    signed = add("from contents of another type", infer_message(image), "image")
    del signed.raw_input_contents[:]
    signed.inputs[0].contents.int_contents.extend([0] * image.size)
    add("with contents twice", infer_message(image), "image").inputs[0].contents.uint_contents[
        :
    ] = [0]
    add("with raw contents left over", infer_message(image)).raw_input_contents.append(b"x")
    del add("without data", infer_message(image), "image").raw_input_contents[:]
    for name, value in (("priority", 9), ("timeout", 10**7), ("mine", 3),
                        ("triton_enable_empty_final_response", 1)):  # fmt: skip
        if name.startswith("triton"):
            parameter = add("with an empty final response", infer_message(image)).parameters[name]
            parameter.bool_param = True
        else:
            add(f"with {name}", infer_message(image)).parameters[name].int64_param = value
    add("with a sequence", infer_message(image)).parameters["sequence_id"].int64_param = 7
    add("with timeout of text", infer_message(image), "timeout").parameters[
        "timeout"].string_param = "x"  # fmt: skip
    add("with a negative timeout", infer_message(image)).parameters["timeout"].int64_param = -5
    add("with a reserved parameter", infer_message(image), "triton_").parameters[
        "triton_x"].int64_param = 1  # fmt: skip
    add("with classification", infer_message(image)).outputs[0].parameters[
        "classification"].int64_param = 2  # fmt: skip
    add("of an unknown model", infer_message(image, model_name="nope"), "nope")
    add("of an unknown version", infer_message(image, model_version="9"), "icnet", "9")
    add("of version x", infer_message(image, model_version="x"), "x")
    add("for an unknown output", infer_message(image, "depth"), "depth", "icnet")
    add("with another name", infer_message(image), "foo", "icnet").inputs[0].name = "foo"
    datatype = add("with another datatype", infer_message(image), "image", "FP32")
    datatype.inputs[0].datatype = "FP32"
    datatype.raw_input_contents[0] = image.tobytes() * 4
    add("with another shape", infer_message(image[:, :4, :4]), "image", "icnet")
    add("with too large a batch", infer_message(np.repeat(image, 5, 0)), "icnet", "4")
    few = add("with too few bytes", infer_message(image), "image", "10")
    few.raw_input_contents[0] = image.tobytes()[:10]
    inputs = add("of no inputs", infer_message(image), "image", "icnet")
    del inputs.inputs[:], inputs.raw_input_contents[:]
    region = add("with an unknown region", infer_message(image), "r")
    del region.raw_input_contents[:]
    region.inputs[0].parameters["shared_memory_region"].string_param = "r"
    region.inputs[0].parameters["shared_memory_byte_size"].int64_param = image.size
    return cases
