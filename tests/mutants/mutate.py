"""Puts one fault at a time into a copy of the project, and asks whether its tests notice.

``make mutants`` tries the files that differ from main; ``make mutants ARGS="--files
serving/batching/*.py --sample 60 --seed 3"`` a sample of others; ``ARGS=--known`` the faults of
``known.toml``, all of which were once unnoticed. What survives is printed with its place.

A file's tests are those of ``near.toml``, else those that import it by the fewest steps. They run
in a fork of this process, in which other people's packages are imported already, and end at the
first failure, or when their time is over, which counts as noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fnmatch
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

sys.path.insert(0, str(Path(__file__).parent))
from mutation_edits import Edit, find_edits

HERE = Path(__file__).parent
# Others (schemathesis, playwright) take longer to start than most tests to run; they are loaded for
# the tests that name them.
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin")
PRELOADED = (
    "numpy", "numba", "cv2", "onnx", "onnxruntime", "grpc", "hypothesis", "PIL.Image", "fastapi",
    "uvicorn", "pydantic_settings", "tritonclient.grpc", "prometheus_client", "httpx",
)  # fmt: skip
LARGE_PLUGINS = ("schemathesis", "playwright")
OWN_PACKAGES = ("serving", "export", "training", "benchmarks", "segserve_client")
ROOTS = ("serving", "export", "training", "benchmarks", "clients/python/segserve_client")


@dataclass(frozen=True)
class Mutant:
    """One fault: an edit of a file, and the tests that should notice it."""

    path: str
    edit: Edit
    tests: tuple[str, ...]

    def describe(self, source: bytes) -> str:
        """Returns place and kind, the line before, and what it became."""
        old, new = source.split(b"\n"), self.edit.apply(source).split(b"\n")
        index = self.edit.line - 1
        last = index + 1 + self.edit.new.count(b"\n")
        lines = [f"{self.path}:{self.edit.line} ({self.edit.kind})", f"  - {_strip(old[index])}"]
        return "\n".join([*lines, *(f"  + {_strip(line)}" for line in new[index:last][:3])])


@dataclass
class Outcome:
    """What became of the mutants tried so far."""

    noticed: int = 0
    timed_out: int = 0
    survivors: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.noticed + len(self.survivors)

    @property
    def share(self) -> float:
        """Returns the share that was noticed, in percent; 100 where nothing was tried."""
        return 100.0 * self.noticed / self.tried if self.tried else 100.0


class Project:
    """The files of a checkout, which module imports which, and the tests of each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        self.files = [name for name in listed.split("\0") if name and (root / name).is_file()]
        self.modules = {self._module(n): n for n in self.files if n.endswith(".py")}
        self.imports = {name: self._imports_of(name) for name in self.modules.values()}
        near = HERE / "near.toml"
        self.near: dict[str, list[str]] = tomllib.loads(near.read_text("utf-8"))

    def changed(self) -> list[str]:
        """Returns the source files that differ from main, committed or not."""
        names = self._git("diff", "--name-only", "main").splitlines()
        names += self._git("ls-files", "--others", "--exclude-standard").splitlines()
        return [name for name in dict.fromkeys(names) if self.is_source(name)]

    def is_source(self, name: str) -> bool:
        """Whether a file is part of the product: no test, nothing generated."""
        return (
            name.endswith(".py")
            and name in self.files
            and name.startswith(tuple(f"{root}/" for root in ROOTS))
            and "/proto/" not in name
        )

    def tests_of(self, name: str, most: int) -> tuple[str, ...]:
        """Returns the test files of a source file, the nearest first."""
        named = [t for p, tests in self.near.items() if fnmatch.fnmatch(name, p) for t in tests]
        if named:
            return tuple(dict.fromkeys(f"tests/{test}" for test in named))
        stem = Path(name).stem
        tests = [t for t in self.files if fnmatch.fnmatch(t, "tests/*/test_*.py")]
        steps = {name: 0}
        edge = [name]
        while edge:
            importers = [m for m, read in self.imports.items() if read & set(edge)]
            edge = [m for m in importers if m not in steps]
            steps.update({m: steps[next(iter(self.imports[m] & steps.keys()))] + 1 for m in edge})
        reached = [t for t in tests if t in steps]
        area = name.removesuffix(".py").split("/")[0]
        # Tests of another part of the product count as two steps further.
        reached.sort(
            key=lambda t: (
                steps[t] + 2 * (t.split("/")[1] != area) - 2 * (stem in Path(t).stem),
                len(self.imports[t]),
                t,
            )
        )
        return tuple(reached[:most])

    def copy_to(self, target: Path) -> None:
        """Copies every file that git knows, or would."""
        for name in self.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.root / name, target / name)

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _module(self, name: str) -> str:
        name = name.removeprefix("clients/python/")
        return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def _imports_of(self, name: str) -> frozenset[str]:
        try:
            tree = ast.parse((self.root / name).read_bytes())
        except SyntaxError:
            return frozenset()
        wanted: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        return frozenset(self.modules[w] for w in wanted if w in self.modules)


class Runner:
    """Tries mutants in a copy of the project, one after the other."""

    def __init__(self, project: Project, copy: Path, seconds: float) -> None:
        self.project, self.copy, self.seconds = project, copy, seconds
        self.outcome = Outcome()
        self._green: dict[tuple[str, ...], bool] = {}

    def try_one(self, mutant: Mutant) -> None:
        path = self.copy / mutant.path
        source = path.read_bytes()
        if not self._is_green(mutant.tests):
            self.outcome.skipped.append(f"{mutant.path}: {', '.join(mutant.tests) or 'no tests'}")
            return
        path.write_bytes(mutant.edit.apply(source))
        try:
            code = self._run(mutant.tests, self.seconds)
        finally:
            path.write_bytes(source)
        if code == 0:
            self.outcome.survivors.append(mutant.describe(source))
            print(f"survived  {self.outcome.survivors[-1]}", flush=True)
        else:
            self.outcome.noticed += 1
            self.outcome.timed_out += code is None

    def _is_green(self, tests: tuple[str, ...]) -> bool:
        """Whether the tests pass without a fault: tried once."""
        if tests not in self._green:
            self._green[tests] = bool(tests) and self._run(tests, 10 * self.seconds) == 0
        return self._green[tests]

    def _run(self, tests: Sequence[str], seconds: float) -> int | None:
        """Returns the exit status of pytest; None where its time was over."""
        arguments = [
            "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={seconds:g}",
        ]  # fmt: skip
        texts = [(self.copy / test).read_text("utf-8") for test in tests]
        large = any(plugin in text for plugin in LARGE_PLUGINS for text in texts)
        if large:
            arguments += ["-p", "no:randomly"]
        else:
            arguments += [word for plugin in PLUGINS for word in ("-p", plugin)]
        process = os.fork()
        if process == 0:
            os._exit(self._run_here([*arguments, *tests], all_plugins=large))
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
            return None
        finally:
            # Also what the tests started: the session is theirs alone.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)

    def _run_here(self, arguments: Sequence[str], *, all_plugins: bool) -> int:
        """Runs pytest in this process, which has a session, modules and outputs of its own."""
        os.setsid()
        os.chdir(self.copy)
        for output in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        paths = [str(self.copy), str(self.copy / "clients/python")]
        sys.path[:0] = paths
        # Those of the checkout, should this process have imported them, are not the mutated ones.
        for name in [n for n in sys.modules if n.split(".")[0] in OWN_PACKAGES]:
            del sys.modules[name]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        if not all_plugins:
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        code = 3  # pytest's own for an error inside of it
        with contextlib.suppress(BaseException):
            code = int(pytest.main(list(arguments)))
        return code


def prepare_forks(folder: Path) -> None:
    """Imports what most tests import, but for the project's own packages; nothing starts threads.

    Compiled loops go into ``folder``: they are found again by their file and its time.
    """
    os.environ["NUMBA_CACHE_DIR"] = str(folder / ".numba")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def collect(project: Project, files: Sequence[str], most: int) -> list[Mutant]:
    """Returns every mutant of these files."""
    return [
        Mutant(name, edit, tests)
        for name in files
        for tests in [project.tests_of(name, most)]
        for edit in find_edits((project.root / name).read_bytes())
    ]


def read_known(project: Project, path: Path) -> list[Mutant]:
    """Returns the faults of a file of ``[[fault]]`` tables: file, old, new, tests.

    Raises:
        ValueError: a text occurs not once in its file: the code has changed, and so must the list.
    """
    mutants = []
    for fault in tomllib.loads(path.read_text("utf-8"))["fault"]:
        source = (project.root / fault["file"]).read_bytes()
        old = fault["old"].encode()
        if source.count(old) != 1:
            raise ValueError(f"{fault['file']} has {source.count(old)} times, not once: {old!r}")
        start = source.index(old)
        line = source.count(b"\n", 0, start) + 1
        edit = Edit(line, fault["what"], start, start + len(old), fault["new"].encode())
        mutants.append(Mutant(fault["file"], edit, tuple(fault["tests"])))
    return mutants


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--files", nargs="+", default=[], help="paths or patterns of them")
    parser.add_argument("--known", action="store_true", help="the faults of known.toml instead")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="another checkout")
    parser.add_argument("--sample", type=int, help="as many mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=4, help="test files a source file, at most")
    parser.add_argument("--seconds", type=float, default=120, help="the time of one mutant")
    parser.add_argument("--minutes", type=float, default=60, help="the time of all")
    parser.add_argument("--at-least", type=float, default=0, help="percent noticed, or status 1")
    parser.add_argument("--list", action="store_true", help="only count mutants, and name tests")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    project = Project(options.root)
    if options.known:
        mutants = read_known(project, HERE / "known.toml")
    else:
        if not options.files:
            files = project.changed()
        else:
            wanted = [p.removeprefix("./") for p in options.files]
            files = [f for f in project.files if any(fnmatch.fnmatch(f, p) for p in wanted)]
            files = [f for f in files if project.is_source(f)]
        mutants = collect(project, files, options.tests)
    if options.sample is not None and options.sample < len(mutants):
        mutants = random.Random(options.seed).sample(mutants, options.sample)
        mutants.sort(key=lambda mutant: (mutant.path, mutant.edit.start))
    print(f"{len(mutants)} mutants in {len({m.path for m in mutants})} files", flush=True)
    if options.list:
        for path, tests in sorted({(m.path, m.tests) for m in mutants}):
            print(f"{path}: {sum(m.path == path for m in mutants)}, {' '.join(tests)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        project.copy_to(Path(folder))
        prepare_forks(Path(folder))
        runner = Runner(project, Path(folder), options.seconds)
        for number, mutant in enumerate(mutants, 1):
            if time.monotonic() > end:
                print("the time of all is over (--minutes)")
                break
            runner.try_one(mutant)
            if number % 20 == 0:
                print(f"{number} of {len(mutants)}", flush=True)
    outcome = runner.outcome
    for skipped in sorted(set(outcome.skipped)):
        print(f"skipped, as its tests fail without a fault: {skipped}")
    print(
        f"{outcome.tried} tried, {outcome.noticed} noticed ({outcome.share:.0f} %), of them"
        f" {outcome.timed_out} by the time limit; {len(outcome.survivors)} survived"
    )
    return int(outcome.share < options.at_least or (options.known and bool(outcome.survivors)))


def _strip(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip()


if __name__ == "__main__":
    sys.exit(main())
