"""Reads how a model is to be run from ``config.pbtxt``: engine, devices, providers, threads.

Keys and values are those of Triton's onnxruntime backend; what is not done here is refused by name.
``cpu_engine`` among the parameters and those of the accelerator "openvino" are this server's own.

Source: triton-inference-server/onnxruntime_backend README.md, src/onnxruntime.cc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tritonclient.grpc import model_config_pb2

from serving.errors import InvalidModel

ModelConfig: TypeAlias = model_config_pb2.ModelConfig
Options: TypeAlias = Mapping[str, str]

AUTO, CPU, GPU = "auto", "cpu", "gpu"
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
CPU_ENGINES = (AUTO, ONNXRUNTIME, OPENVINO)
# What a network's floating-point operators may compute in, by OpenVINO's names and by ours.
_OPENVINO_PRECISIONS = {
    "auto": AUTO, "fp32": "fp32", "f32": "fp32", "bf16": "bf16", "fp16": "fp16", "f16": "fp16",
}  # fmt: skip
_OPENVINO_PARAMETERS = ("device", "precision", "streams", "threads")

# optimization.graph.level -> ONNX Runtime's own name of the level.
GRAPH_LEVELS = {0: "all", -1: "basic", 1: "extended", 2: "none"}
_BOOLS = {"1": True, "true": True, "0": False, "false": False}

# Keys of gpu_execution_accelerator "tensorrt" that are options of the provider as they stand.
TENSORRT_OPTIONS = frozenset({
    "trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_enable", "trt_dla_core",
    "trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix",
    "trt_dump_subgraphs", "trt_force_sequential_engine_build", "trt_context_memory_sharing_enable",
    "trt_layer_norm_fp32_fallback", "trt_timing_cache_enable", "trt_timing_cache_path",
    "trt_force_timing_cache", "trt_detailed_build_log", "trt_build_heuristics_enable",
    "trt_sparsity_enable", "trt_builder_optimization_level", "trt_auxiliary_streams",
    "trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes",
    "trt_profile_max_shapes", "trt_profile_opt_shapes", "trt_cuda_graph_enable",
    "trt_dump_ep_context_model", "trt_ep_context_file_path", "trt_ep_context_embed_mode",
})  # fmt: skip
_TENSORRT_RENAMED = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_TENSORRT_PRECISIONS: Mapping[str, Options] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
# Keys of gpu_execution_accelerator "cuda": the provider's options, but for the device and the
# stream, which the engine sets.
CUDA_OPTIONS = frozenset({
    "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d", "do_copy_in_default_stream",
    "enable_cuda_graph", "tunable_op_enable", "tunable_op_tuning_enable",
    "tunable_op_max_tuning_duration_ms", "enable_skip_layer_norm_strict_mode", "prefer_nhwc",
    "use_ep_level_unified_stream", "use_tf32", "fuse_conv_bias", "sdpa_kernel",
})  # fmt: skip
# The older way to set four of them: parameters of the model, some by number.
_CUDA_PARAMETERS: Mapping[str, Mapping[str, str] | None] = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "gpu_mem_limit": None,
    "do_copy_in_default_stream": None,
}
_OPTIMIZATIONS = frozenset(
    {"graph", "execution_accelerators", "input_pinned_memory", "output_pinned_memory"}
)


@dataclass(frozen=True)
class OpenVinoOptions:
    """The options of OpenVINO for one model.

    Attributes:
        device: ``CPU``, or ``GPU`` for Intel graphics.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: what suits the processor.
        streams: runs that share the cores side by side; 0 for one an instance.
        threads: cores of all streams together; 0 leaves it to the engine.
    """

    device: str = "CPU"
    precision: str = AUTO
    streams: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Acceleration:
    """The execution settings of one model.

    Attributes:
        device: ``cpu``, ``gpu`` (an error where there is none), or ``auto``: a GPU where one is.
        gpus: the GPU of each instance, as often as there are instances; empty where the
            configuration names no instance group, and the engine chooses.
        graph_level: of ``GRAPH_LEVELS``.
        cuda, tensorrt: options of the providers; ``tensorrt`` is None where it is not asked for.
        pinned: whether host memory is page-locked for the copies.
        intra_op_threads: 0 leaves it to the engine.
        parallel: whether branches of the graph run at once.
        arena, pattern: ONNX Runtime's memory arena, and its planning of memory.
        winograd: whether convolutions may be made by fewer products, on CPUs.
        cpu_engine: what runs the model on CPUs, of ``CPU_ENGINES``.
        openvino: how, where that is OpenVINO.
    """

    device: str = AUTO
    gpus: tuple[int, ...] = ()
    graph_level: str = "all"
    cuda: Options = field(default_factory=dict)
    tensorrt: Options | None = None
    pinned: bool = True
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    parallel: bool = False
    arena: bool = True
    pattern: bool = True
    winograd: bool = True
    cpu_engine: str = AUTO
    openvino: OpenVinoOptions = OpenVinoOptions()


def read_acceleration(where: Path, config: ModelConfig) -> Acceleration:
    """Reads ``instance_group``, ``optimization`` and the backend's ``parameters``.

    Raises:
        InvalidModel: what is not supported, or malformed; the message names the field.
    """
    optimization = config.optimization
    set_fields = {descriptor.name for descriptor, _ in optimization.ListFields()}
    refused = sorted(set_fields - _OPTIMIZATIONS)
    if refused:
        raise InvalidModel(
            f"{where}: not supported: {', '.join(f'optimization.{name}' for name in refused)}"
            + ("; CUDA graphs: gpu_execution_accelerator cuda, enable_cuda_graph"
               if "cuda" in refused else "")
        )  # fmt: skip
    level = optimization.graph.level
    if level not in GRAPH_LEVELS:
        raise InvalidModel(f"{where}: optimization.graph.level is {level}; known: -1, 0, 1, 2")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    cuda, tensorrt = _read_accelerators(where, optimization.execution_accelerators)
    openvino = _read_openvino(where, optimization.execution_accelerators)
    device, gpus = _read_groups(where, config)
    pinned = [
        part.enable
        for part, name in (
            (optimization.input_pinned_memory, "input_pinned_memory"),
            (optimization.output_pinned_memory, "output_pinned_memory"),
        )
        if name in set_fields
    ]
    if _flag(where, parameters, "share_session_between_instances", default=False):
        raise InvalidModel(
            f"{where}: not supported: parameters.share_session_between_instances; "
            f"each instance has its own session"
        )
    return Acceleration(
        device=device,
        gpus=gpus,
        graph_level=GRAPH_LEVELS[level],
        cuda={**_read_parameters(where, parameters), **cuda},
        tensorrt=tensorrt,
        pinned=all(pinned),
        intra_op_threads=_count(where, parameters, "intra_op_thread_count"),
        inter_op_threads=_count(where, parameters, "inter_op_thread_count"),
        parallel=_flag(where, parameters, "execution_mode", default=False),
        arena=_flag(where, parameters, "enable_mem_arena", default=True),
        pattern=_flag(where, parameters, "enable_mem_pattern", default=True),
        winograd=_flag(where, parameters, "winograd", default=True),
        cpu_engine=_read_cpu_engine(where, parameters, openvino),
        openvino=openvino or OpenVinoOptions(),
    )


def _read_cpu_engine(where: Path, parameters: Options, openvino: OpenVinoOptions | None) -> str:
    """Returns OpenVINO where its accelerator is named; else what the parameter ``cpu_engine``
    says."""
    default = AUTO if openvino is None else OPENVINO
    engine = parameters.get("cpu_engine", default).strip()
    if engine not in CPU_ENGINES:
        raise InvalidModel(
            f"{where}: parameters.cpu_engine is {engine[:40]!r}; expected {', '.join(CPU_ENGINES)}"
        )
    if openvino is not None and engine == ONNXRUNTIME:
        raise InvalidModel(
            f"{where}: parameters.cpu_engine is onnxruntime, but cpu_execution_accelerator names "
            f"openvino; remove one of them"
        )
    return default if engine == AUTO else engine


def _read_openvino(
    where: Path, accelerators: model_config_pb2.ModelOptimizationPolicy.ExecutionAccelerators
) -> OpenVinoOptions | None:
    """Returns the options of ``cpu_execution_accelerator`` "openvino"; None where it is not
    named."""
    found = None
    for accelerator in accelerators.cpu_execution_accelerator:
        if accelerator.name != OPENVINO:
            raise InvalidModel(
                f"{where}: cpu_execution_accelerator {accelerator.name!r} is not supported; "
                f"known: openvino"
            )
        field_name = f"{where}: cpu_execution_accelerator openvino"
        given = dict(accelerator.parameters)
        unknown = sorted(set(given) - set(_OPENVINO_PARAMETERS))
        if unknown:
            raise InvalidModel(
                f"{field_name}: not supported: {', '.join(unknown)}; known: "
                f"{', '.join(_OPENVINO_PARAMETERS)}"
            )
        precision = given.get("precision", AUTO).strip().lower()
        if precision not in _OPENVINO_PRECISIONS:
            raise InvalidModel(
                f"{field_name}: precision is {precision[:40]!r}; expected auto, fp32, bf16 or fp16"
            )
        device = given.get("device", "CPU").strip().upper()
        if not re.fullmatch(r"CPU|GPU(\.[0-9]{1,2})?", device):
            raise InvalidModel(
                f"{field_name}: device is {device[:40]!r}; expected CPU, or GPU (Intel graphics)"
            )
        found = OpenVinoOptions(
            device,
            _OPENVINO_PRECISIONS[precision],
            _count(field_name, given, "streams"),
            _count(field_name, given, "threads"),
        )
    return found


def _read_groups(where: Path, config: ModelConfig) -> tuple[str, tuple[int, ...]]:
    """Returns the device, and the GPU of each instance: Triton makes ``count`` on each of
    ``gpus``."""
    devices = {_DEVICES.get(group.kind, AUTO) for group in config.instance_group}
    if len(devices) > 1:
        raise InvalidModel(f"{where}: instance_group: one kind for all groups of a model")
    gpus = [
        gpu
        for group in config.instance_group
        for gpu in (list(group.gpus) or [0])
        for _ in range(max(1, group.count))
    ]
    return (devices.pop() if devices else AUTO), tuple(gpus)


_DEVICES = {
    model_config_pb2.ModelInstanceGroup.KIND_CPU: CPU,
    model_config_pb2.ModelInstanceGroup.KIND_GPU: GPU,
}


def _read_accelerators(
    where: Path, accelerators: model_config_pb2.ModelOptimizationPolicy.ExecutionAccelerators
) -> tuple[dict[str, str], dict[str, str] | None]:
    cuda: dict[str, str] = {}
    tensorrt: dict[str, str] | None = None
    for accelerator in accelerators.gpu_execution_accelerator:
        field_name = f"gpu_execution_accelerator {accelerator.name!r}"
        given = dict(accelerator.parameters)
        if accelerator.name == "cuda":
            unknown = sorted(set(given) - CUDA_OPTIONS)
            cuda |= given
        elif accelerator.name == "tensorrt":
            known = {*TENSORRT_OPTIONS, *_TENSORRT_RENAMED, "precision_mode"}
            unknown = sorted(set(given) - known)
            tensorrt = {} if unknown else _translate_tensorrt(where, given)
        else:
            raise InvalidModel(f"{where}: {field_name} is not supported; known: cuda, tensorrt")
        if unknown:
            raise InvalidModel(f"{where}: {field_name}: not supported: {', '.join(unknown)}")
    return cuda, tensorrt


def _translate_tensorrt(where: Path, given: Options) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in given.items():
        if key == "precision_mode":
            if value not in _TENSORRT_PRECISIONS:
                known = ", ".join(_TENSORRT_PRECISIONS)
                raise InvalidModel(f"{where}: precision_mode {value!r} of tensorrt; known: {known}")
            options |= _TENSORRT_PRECISIONS[value]
        else:
            options[_TENSORRT_RENAMED.get(key, key)] = value
    return options


def _read_parameters(where: Path, parameters: Options) -> dict[str, str]:
    """Options of CUDA among the model's parameters."""
    options = {}
    for key, names in _CUDA_PARAMETERS.items():
        if key not in parameters:
            continue
        value = parameters[key]
        if names is not None and value not in names:
            known = ", ".join(f"{number} ({name})" for number, name in names.items())
            raise InvalidModel(f"{where}: parameters.{key} is {value!r}; known: {known}")
        options[key] = value if names is None else names[value]
    return options


def _flag(where: Path, parameters: Options, key: str, *, default: bool) -> bool:
    value = parameters.get(key, str(int(default))).strip().lower()
    if value not in _BOOLS:
        raise InvalidModel(f"{where}: parameters.{key} is {value!r}; known: 0, 1, false, true")
    return _BOOLS[value]


def _count(where: Path | str, parameters: Options, key: str) -> int:
    value = parameters.get(key, "0").strip()
    if not re.fullmatch("[0-9]{1,4}", value):
        raise InvalidModel(
            f"{where}: parameters.{key} is {value[:40]!r}, not a number of threads, 0 to 9999"
        )
    return int(value)
