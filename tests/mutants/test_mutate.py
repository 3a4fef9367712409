"""The mutation run itself: what it makes of a source file, and whether it tells who noticed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutate import HERE, Project, read_known
from mutation_edits import find_edits

SOURCE = b'''"""A docstring with 1 < 2 and min."""

import math

LIMIT: float = 2.5


def first(rows: list[int], least: int = 3) -> int | None:
    """Another one."""
    if not rows or len(rows) < least:
        raise ValueError("too few: 7")
    total = 0
    for row in rows[1:]:
        total += math.ceil(row / 2)
    log.info("seen %d", 4)
    return max(total, least) if total is not None else rows[0]
'''


def made(source: bytes) -> set[tuple[int, str, str]]:
    """Line, what was there, and what it became."""
    return {
        (edit.line, source[edit.start : edit.end].decode(), edit.new.decode())
        for edit in find_edits(source)
    }


def test_faults_of_many_kinds_are_made() -> None:
    found = made(SOURCE)
    for expected in (
        (5, "2.5", "2500.0"),
        (8, "3", "4"),
        (8, "3", "(2)"),
        (10, "not rows", "rows"),
        (10, "or", "and"),
        (10, "<", "<="),
        (10, "not rows or len(rows) < least", "not rows"),
        (10, "not rows or len(rows) < least", "False"),
        (11, 'raise ValueError("too few: 7")', "pass"),
        (13, "1:", ":"),
        (14, "+", "-"),
        (14, "math.ceil", "math.floor"),
        (14, "/", "*"),
        (14, "total += math.ceil(row / 2)", "pass"),
        (16, "max", "min"),
        (16, "is not", "is"),
        (16, "max(total, least) if total is not None else rows[0]", "rows[0]"),
        (16, "0", "1"),
    ):
        assert expected in found, expected


def test_texts_annotations_and_logging_are_left_alone() -> None:
    assert not {line for line, _, _ in made(SOURCE)} & {1, 3, 9, 15}
    assert not made(b"x: int | None\n")
    assert not made(b"Pairs = tuple[tuple[str, int], ...]\n")
    assert made(b"x = 4096\n") == {(1, "4096", "4096000"), (1, "4096", "409")}
    assert made(b"f(a, b, max(c, d))\n") == {
        (1, "f(a, b, max(c, d))", "pass"),
        (1, "a, b", "b, a"),
        (1, "b, max(c, d)", "max(c, d), b"),
        (1, "max", "min"),
    }
    assert not made(b"import os\nif TYPE_CHECKING:\n    import sys\n")
    assert not made(b"x = 3  # pragma: no mutate\n")


def test_every_edit_is_valid_python_and_differs() -> None:
    path = HERE.parents[1] / "serving/batching/engine_runner.py"
    source = path.read_bytes()
    edits = find_edits(source)
    assert len(edits) > 100
    for edit in edits:
        assert edit.apply(source) != source
        compile(edit.apply(source), path.name, "exec")


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A checkout of one module with one test, which does not look at the border."""
    for name, text in {
        "serving/__init__.py": "",
        "serving/limits.py": "def fits(size):\n    return size < 10\n\n\nTEN = 10\nDOZEN = 12\n",
        "serving/user.py": "from serving.limits import fits\n",
        "tests/serving/test_far.py": "import serving.user\n",
        "tests/serving/admission/test_limits.py": (
            "from serving.limits import fits\n\n\n"
            "def test_fits():\n    assert fits(3)\n    assert not fits(30)\n"
        ),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "-q")
    return Project(tmp_path)


def test_the_nearest_tests_are_those_that_import_a_file(project: Project) -> None:
    near, far = "tests/serving/admission/test_limits.py", "tests/serving/test_far.py"
    assert project.tests_of("serving/limits.py", 5) == (near, far)
    assert project.tests_of("serving/limits.py", 1) == (near,)
    assert project.tests_of("serving/user.py", 5) == (far,)
    assert project.is_source("serving/limits.py")
    assert not project.is_source(near)


def run(root: Path, *arguments: str) -> str:
    """What the command says; in a process of its own, as it forks."""
    command = [sys.executable, str(HERE / "mutate.py"), "--root", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_survives_is_told_with_its_place(project: Project) -> None:
    source = project.root / "serving/limits.py"
    source.write_text("def fits(size):\n    return size < 10\n")
    found = run(project.root, "--files", "serving/limits.py")
    border = "serving/limits.py:2 (comparison)\n  - return size < 10\n  + return size <= 10"
    assert f"survived  {border}\n" in found
    assert "return None" not in found, "what is noticed is not printed"
    assert "4 tried, 1 noticed (25 %), of them 0 by the time limit; 3 survived" in found
    assert source.read_text() == "def fits(size):\n    return size < 10\n", (
        "only the copy is changed"
    )
    again = run(project.root, "--files", "serving/limits.py", "--sample", "1", "--seed", "5")
    assert again == run(project.root, "--files", "serving/*.py", "--sample", "1", "--seed", "5")
    assert "1 tried" in again


def test_tests_that_fail_by_themselves_notice_nothing(project: Project) -> None:
    (project.root / "tests/serving/admission/test_limits.py").write_text(
        "from serving.limits import fits\n\n\ndef test_red():\n    assert fits(11)\n"
    )
    found = run(project.root, "--files", "serving/limits.py", "--sample", "1")
    assert "skipped, as its tests fail without a fault: serving/limits.py" in found
    assert "0 tried" in found


def test_a_fault_that_never_ends_is_noticed(project: Project) -> None:
    (project.root / "serving/limits.py").write_text(
        "def fits(n):\n    while n > 9:\n        n -= 7\n    return n == 3\n"
    )
    found = run(project.root, "--files", "serving/limits.py", "--seconds", "4")
    assert re.search(r"of them [1-9]\d* by the time limit", found), found


def test_known_faults_still_fit_their_files() -> None:
    """What they are about has changed otherwise, and so must the list."""
    root = HERE.parents[1]
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    known = read_known(Project(root), HERE / "known.toml")
    assert len(known) > 20
    for mutant in known:
        source = (root / mutant.path).read_bytes()
        compile(mutant.edit.apply(source), mutant.path, "exec")
        assert mutant.tests
        assert all((root / test).is_file() for test in mutant.tests)


def test_a_known_fault_that_fits_nothing_is_an_error(project: Project, tmp_path: Path) -> None:
    faults = tmp_path / "known.toml"
    faults.write_text(
        '[[fault]]\nfile = "serving/limits.py"\nwhat = "gone"\nold = "size > 10"\nnew = "1"\n'
        "tests = []\n"
    )
    with pytest.raises(ValueError, match=r"serving/limits\.py has 0 times, not once"):
        read_known(project, faults)
