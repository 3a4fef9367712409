"""Starts Triton Inference Server without a container: ``python deploy/triton/start.py --help``.

The server comes from the nvidia-pytriton wheel, installed once into an environment of its own
in a cache folder; the ``onnxruntime`` backend, which the wheel lacks, is the Python-based one
beside this file. Needs nothing but this Python, and its shared library (``libpython3.11``).
The process becomes the server: SIGTERM stops it.
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
SHARED_MEMORY_PREFIX = "segserve_triton_"


def main() -> None:
    """Sets up what is missing and replaces this process by tritonserver."""
    options = _parser().parse_args()
    environment = set_up(options.cache, mxnet=options.mxnet)
    if options.setup_only:
        print(environment)
        return
    remove_stale_shared_memory()
    variables = server_variables(environment)
    command = server_command(environment, options) + options.arguments
    os.execve(command[0], command, variables)


def set_up(cache: Path, *, mxnet: bool) -> Path:
    """Creates the environment and the backends folder; returns the folder that holds both.

    Its name is that of the requirements, so another version of them is another folder.
    """
    requirements = [HERE / "requirements.txt"]
    if mxnet:
        requirements.append(HERE / "requirements-mxnet.txt")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in requirements)).hexdigest()
    folder = cache / f"python{PYTHON}-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            print(f"installing tritonserver into {folder}", file=sys.stderr, flush=True)
            venv.create(folder / "env", with_pip=True, clear=True)
            python: str | Path = folder / "env/bin/python"
            pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
            files = [part for path in requirements for part in ("-r", path)]
            command = [*pip, "--disable-pip-version-check", *files]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"error: pip could not install tritonserver into {folder}")
            _install_backend(folder)
            done.touch()
        # It may have been edited since; a server that is running keeps what it has read.
        shared = folder / "backends" / "onnxruntime"
        shared.mkdir(exist_ok=True)
        shutil.copy(HERE / "onnxruntime" / "model.py", shared / "model.py.part")
        os.replace(shared / "model.py.part", shared / "model.py")
    return folder


def _install_backend(folder: Path) -> None:
    server = site_packages(folder) / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.exists():
        sys.exit(f"error: tritonserver has no backend for Python {PYTHON}: expected Python 3.11")
    python = folder / "backends" / "python"
    shutil.copytree(server / "backends" / "python", python, dirs_exist_ok=True)
    (python / stub.name).unlink(missing_ok=True)
    Path(shutil.copy(stub, python)).chmod(0o755)


def site_packages(folder: Path) -> Path:
    """Returns the folder of the environment's packages."""
    return folder / "env" / "lib" / f"python{PYTHON}" / "site-packages"


def server_variables(folder: Path) -> dict[str, str]:
    """Returns the environment variables that the server and its model processes need."""
    libraries = [str(site_packages(folder) / "nvidia_pytriton.libs")]
    own = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")
    if (own / LIBPYTHON).exists():
        libraries.append(str(own))
    elif ctypes.util.find_library(f"python{PYTHON}") is None:
        sys.exit(
            f"error: {LIBPYTHON} is missing; install it with: apt-get install libpython{PYTHON}"
        )
    # The embedded Python finds its packages through PATH; PYTHONPATH would do nothing.
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    path = [str(folder / "env" / "bin"), variables.get("PATH", os.defpath)]
    return {
        **variables,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join(path),
    }


def server_command(folder: Path, options: argparse.Namespace) -> list[str]:
    """Returns the command: tritonserver and its arguments."""
    command = [
        str(site_packages(folder) / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={options.repository.resolve()}",
        f"--backend-directory={folder / 'backends'}",
        "--allow-gpu-metrics=false",
        "--backend-config=python,shm-default-byte-size=1048576",
        # The process id is the server's too, which tells whose a left-over region is.
        f"--backend-config=python,shm-region-prefix-name={SHARED_MEMORY_PREFIX}{os.getpid()}_",
    ]
    for service in ("http", "grpc", "metrics"):
        command.append(f"--{service}-address={options.host}")
        command.append(f"--{service}-port={getattr(options, f'{service}_port')}")
    return command


def remove_stale_shared_memory() -> None:
    """Removes the shared memory of our servers that were killed."""
    for region in Path("/dev/shm").glob(f"{SHARED_MEMORY_PREFIX}*"):
        owner = region.name.removeprefix(SHARED_MEMORY_PREFIX).partition("_")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            region.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serves a model repository with Triton.")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--mxnet", action="store_true", help="install MXNet for its models")
    parser.add_argument(
        "--setup-only", action="store_true", help="install, print the folder, and exit"
    )
    root = os.environ.get("SEGSERVE_CACHE_DIR") or Path.home() / ".cache" / "segserve"
    parser.add_argument("--cache", type=Path, default=Path(root) / "triton")
    parser.add_argument("arguments", nargs="*", help="options of tritonserver, after --")
    return parser


if __name__ == "__main__":
    main()
