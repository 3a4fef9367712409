"""``segserve inspect``: a model of the repository, or an ONNX file, in numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.errors import ExportError, InvalidNetwork
from export.repository.inspection import Inspection, inspect_file, inspect_mxnet
from export.repository.triton import read_config
from serving.engines.acceleration import read_acceleration
from serving.engines.cpu_choice import describe_choice
from serving.errors import SegserveError
from serving.models.repository import (
    CONFIG_FILE,
    ModelFolder,
    choose_versions,
    describe_remote,
    parse_version_folder,
    read_model,
)
from serving.palette import format_palette


@dataclass(frozen=True)
class _Repository:
    """The facts that the repository holds about a model beside its file."""

    name: str
    version: int
    versions: tuple[int, ...]
    max_batch_size: int
    instances: int
    family: str
    resize: str
    classes: tuple[str, ...]
    palette: str
    dataset: str
    accuracy: str
    provenance: str
    cpu_engine: str
    cpu_precision: str


def inspect(
    model: Annotated[str, typer.Argument(help="Model name, model folder or .onnx file.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("model_repository"),
    version: Annotated[
        int | None, typer.Option(help="Version to inspect. Default: the latest one that is served.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows a model's contract, sizes, operations, parameters, passes and origin."""
    console = Console(stderr=True, highlight=False)
    try:
        stored, found = _read(model, repository, version)
    except (ExportError, SegserveError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        everything = {"repository": asdict(stored) if stored else None, "file": asdict(found)}
        typer.echo(json.dumps(everything, indent=2, ensure_ascii=False))
        return
    for label, text in [*(_about_model(stored) if stored else []), *_about_file(found, stored)]:
        typer.echo(f"{label:<12} {text}")


def _read(
    model: str, repository: Path, version: int | None
) -> tuple[_Repository | None, Inspection]:
    """Returns the facts of the repository, where the model is in one, and those of its file."""
    path = Path(model)
    if path.is_file():
        return None, inspect_file(path)
    if path.suffix == ".onnx":
        raise InvalidNetwork(f"{path} does not exist: expected an .onnx file")
    folder_path = path if (path / "config.pbtxt").is_file() else repository / model
    if not (folder_path / "config.pbtxt").is_file():
        raise InvalidNetwork(
            f"{model!r} is not a valid model: expected a name in {repository}, a model's folder or"
            " an .onnx file; `segserve models` lists the names"
        )
    config = read_config(folder_path)
    is_mxnet = config.backend == "python"  # the server itself refuses those
    if is_mxnet:
        folder = describe_remote(config, choose_versions(folder_path, config))
    else:
        folder = read_model(folder_path)
    names = (parse_version_folder(p.name) for p in folder_path.iterdir() if p.is_dir())
    present = tuple(sorted(name for name in names if name is not None))
    chosen = folder.versions[-1] if version is None else version
    if chosen not in present:
        raise InvalidNetwork(
            f"{folder.name} has no version {chosen}; it has {', '.join(map(str, present))}"
        )
    if is_mxnet:
        found = inspect_mxnet(folder_path / str(chosen), config)
    else:
        found = inspect_file(folder.graph(chosen))
    return _facts_of(folder, chosen, found.precision), found


def _facts_of(folder: ModelFolder, version: int, precision: str) -> _Repository:
    parameters = {key: value.string_value for key, value in folder.config.parameters.items()}
    if folder.config.backend == "python":  # in Triton alone
        engine = ("", "")
    else:
        acceleration = read_acceleration(folder.path / CONFIG_FILE, folder.config)
        engine = describe_choice(precision, acceleration)
    return _Repository(
        folder.name,
        version,
        folder.versions,
        folder.max_batch_size,
        folder.instances,
        folder.family,
        folder.resize,
        folder.labels.names,
        format_palette(folder.labels.colors),
        parameters.get("dataset", ""),
        parameters.get("accuracy", ""),
        parameters.get("provenance", ""),
        *engine,
    )


def _about_model(stored: _Repository) -> list[tuple[str, str]]:
    served = ", ".join(map(str, stored.versions))
    return [
        (
            "model",
            f"{stored.name} version {stored.version} (served: {served}), family {stored.family}",
        ),
        ("batches", f"up to {stored.max_batch_size}, {stored.instances} instances"),
        *(
            [("CPU engine", f"{stored.cpu_engine}, {stored.cpu_precision} (docs/engines.md)")]
            if stored.cpu_engine
            else []
        ),
        ("classes", f"{len(stored.classes)}: {', '.join(stored.classes)}"),
        ("dataset", stored.dataset or "unknown"),
        ("accuracy", stored.accuracy or "not measured"),
        ("provenance", stored.provenance or "unknown"),
    ]


def _about_file(found: Inspection, stored: _Repository | None) -> list[tuple[str, str]]:
    """Returns what the file says; what the repository has said already is left out."""
    made = f", made by {found.producer}" if found.producer else ""
    lines = [("file", f"{found.path}, {_bytes(found.file_bytes)}{made}")]
    lines += [("input", str(tensor)) for tensor in found.inputs]
    lines += [("output", str(tensor)) for tensor in found.outputs]
    lines += [
        ("format", f"{_format(found)}, {found.precision}"),
        ("parameters", f"{found.parameters:,}"),
        ("operations", f"{_macs(found.macs)} an image, {found.nodes} nodes: {_counts(found)}"),
        ("served", _served(found)),
        ("passes", ", ".join(found.passes) or "unknown"),
    ]
    known = {"classes", "palette", "accuracy", "provenance", "dataset", "family", "resize",
             "ignore_label"} if stored else {"palette"}  # fmt: skip
    lines += [(key, value) for key, value in sorted(found.metadata.items()) if key not in known]
    return lines


def _format(found: Inspection) -> str:
    return "MXNet" if found.opset is None else f"opset {found.opset}, IR {found.ir_version}"


def _served(found: Inspection) -> str:
    if found.opset is None:
        return "by Triton's Python backend alone (deploy/triton/start.py --mxnet)"
    if found.served_output is None:
        return "not servable as is; convert it with `segserve import-onnx`"
    dropped = found.nodes - found.served_nodes
    return (
        f"the embedded engine cuts it to {found.served_output}: {dropped} of {found.nodes} nodes"
        f" go, {_macs(found.served_macs)} stay"
    )


def _counts(found: Inspection) -> str:
    shown = list(found.operators.items())[:6]
    more = [f"{len(found.operators) - 6} other types"] if len(found.operators) > 6 else []
    return ", ".join([*(f"{count} {name}" for name, count in shown), *more])


def _macs(count: int | None) -> str:
    if count is None:
        return "unknown MAC (not all shapes are known)"
    return f"{count / 1e9:.2f} GMAC" if count >= 1e8 else f"{count / 1e6:.3f} MMAC"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
