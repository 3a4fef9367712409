"""Describes the machine of a benchmark, and writes ``benchmarks/results/NAME.json`` and ``.png``.

Every file holds the command, the date, the commit, and what the machine was and was doing: figures
without these cannot be compared.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from training.runs.environment import read_environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
ResultsFolder: TypeAlias = Annotated[Path, typer.Option(help="Folder of the result files.")]
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "opencv-python", "numba", "torch")
# Instructions that decide how fast convolutions are, as /proc/cpuinfo names them.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp")
# They change which kernels a library takes, or how many threads.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Machine:
    """The machine at one moment.

    Attributes:
        date: UTC, ISO 8601.
        commit: of the project's checkout; None where there is none.
        changed: whether a tracked file differed from that commit.
        cores: those that the process may use.
        features: of :data:`FEATURES`, those that the processor has.
        load: tasks that ran or waited in the minute before, as ``uptime`` reports it: 0 is quiet.
        variables: of :data:`VARIABLES`, those that are set.
    """

    date: str
    commit: str | None
    changed: bool | None
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_gib: float
    gpus: tuple[str, ...]
    load: float
    system: str
    python: str
    packages: Mapping[str, str]
    variables: Mapping[str, str]

    def line(self) -> str:
        """Returns the line for the footer of a table or a plot."""
        gpu = f", {self.gpus[0]}" if self.gpus else ""
        runtime = self.packages.get("onnxruntime") or self.packages.get("onnxruntime-gpu")
        vnni = "VNNI" if any("vnni" in name for name in self.features) else "no VNNI"
        commit = (self.commit or "no commit")[:10] + ("+" if self.changed else "")
        return (
            f"{self.cores} cores of {self.cpu} ({vnni}){gpu}; ONNX Runtime {runtime}; "
            f"load {self.load:.1f}; {commit}"
        )


def read_machine(packages: Sequence[str] = PACKAGES) -> Machine:
    """Reads this machine now, and the versions of those ``packages`` that are installed."""
    here = read_environment()
    return Machine(
        date=here.started,
        commit=here.git_revision,
        changed=here.git_dirty,
        cpu=here.cpu,
        cores=here.cores,
        features=_features(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpus=here.gpus,
        load=round(os.getloadavg()[0], 2),
        system=here.platform,
        python=here.python,
        packages=_versions(packages),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def write_result(
    name: str, content: Mapping[str, object], machine: Machine, folder: Path = RESULTS
) -> Path:
    """Writes ``NAME.json``: the command, the machine, then ``content``; returns its path.

    Args:
        content: may hold dataclasses.
        machine: read before the measurement, so that its load is not that of the benchmark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    written = {"command": command_line(), "machine": asdict(machine), **content}
    path.write_text(json.dumps(written, indent=1, default=_as_json) + "\n", "utf-8")
    return path


def save_plot(name: str, figure: Figure, machine: Machine, folder: Path = RESULTS) -> Path:
    """Writes ``NAME.png`` with the machine at its foot; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.text(0.01, 0.004, machine.line(), fontsize=7, color="gray")
    figure.savefig(path, dpi=110)
    return path


def above_footer(figure: Figure, height: float, right: float = 1.0) -> None:
    """Lays a constrained figure out above its footer, a share (0-1) of the figure's height."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine), "the figure's layout is constrained"
    engine.set(rect=(0, height, right, 1 - height))


def command_line() -> str:
    """Returns the command that started this process, as one would type it."""
    script, *arguments = sys.argv
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    path, root = Path(script).resolve(), RESULTS.parents[1]
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    started = ["-m", module.name] if module is not None else [str(inside)]
    return shlex.join(["python", *started, *arguments])


def _features() -> tuple[str, ...]:
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return ()
    for line in described.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            return tuple(name for name in FEATURES if name in present)
    return ()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{type(value).__name__} is not valid in a result: expected JSON, dataclasses or paths"
    )
