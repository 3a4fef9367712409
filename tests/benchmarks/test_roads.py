"""The files that a request crosses: what counts, and what does not."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.studies.roads import ROADS, Trace, format_road

FILES = {
    "__init__.py": "",
    "entry.py": """
from crossed import helper

def answer(background):
    from crossed import lazy
    helper.help()
    background.set()
    return lazy.VALUE
""",
    "helper.py": "def help():\n    return sum(value for value in (1, 2))\n",
    "lazy.py": "from crossed import maker\nVALUE = maker.make()\n",
    "maker.py": "def make():\n    return 1\n",
    "timer.py": """
from crossed import helped

def tick(wanted, done):
    while not done.is_set():
        wanted.wait()
        helped.note()
        done.set()
""",
    "helped.py": "def note():\n    return 0\n",
}


@pytest.fixture
def crossed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in which one function calls others, and a thread works in the background."""
    package = tmp_path / "crossed"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in FILES:
        monkeypatch.delitem(sys.modules, f"crossed.{name.removesuffix('.py')}", raising=False)
    monkeypatch.delitem(sys.modules, "crossed", raising=False)
    return package


@pytest.mark.parametrize("excluded", [True, False])
def test_files_count_when_their_functions_run_for_the_request(
    crossed: Path, excluded: bool
) -> None:
    entry, timer = (importlib.import_module(f"crossed.{name}") for name in ("entry", "timer"))
    background = frozenset({str(crossed / "timer.py")} if excluded else ())
    trace = Trace(crossed, background)
    wanted, done = threading.Event(), threading.Event()

    def request() -> None:
        entry.answer(wanted)
        done.wait()

    with trace.install():
        thread = threading.Thread(target=timer.tick, args=(wanted, done))
        thread.start()
        files = trace.record(request)
        thread.join()
    # Not lazy.py nor maker.py, which ran for the import.
    assert files == ["entry.py", "helper.py", *([] if excluded else ["helped.py"])]


def test_before_and_after_nothing_is_recorded(crossed: Path) -> None:
    helper = importlib.import_module("crossed.helper")
    trace = Trace(crossed)
    with trace.install():
        helper.help()
        assert trace.record(lambda: None) == []
        assert trace.record(helper.help) == ["helper.py"]
    assert trace.record(helper.help) == []


def test_a_road_is_a_paragraph_of_rooms() -> None:
    files = ["http/body.py", "http/middleware.py", "errors.py", "http/oip.py"]
    shown = format_road(ROADS["http"], files)
    assert "4 files of `serving/`" in shown
    assert shown.endswith(": `http/` body, middleware → errors → `http/` oip.")
