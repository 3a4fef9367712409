"""Runs command lines of ``train.py``, ``test.py`` and ``networks.tracing`` one after the other.

``command_lines.py FILE``: FILE is a JSON list of {"script", "flags", "copies"}; before a command
each [from, to] of its copies is copied. Writes FILE.done: a list of {"code", "stdout", "stderr"}.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType


def main(file: Path) -> None:
    done = []
    for command in json.loads(file.read_text()):
        for source, target in command["copies"]:
            # Not there: its training failed, and the command will say so.
            if Path(source).is_file():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        done.append(call(command["script"], command["flags"]))
    file.with_suffix(".done").write_text(json.dumps(done))


def call(script: str, flags: list[str]) -> dict[str, int | str]:
    out, error = io.StringIO(), io.StringIO()
    sys.argv = [script, *flags]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        # Each is a command of its own: its warnings are told again.
        warnings.resetwarnings()
        try:
            find(script).main()
        except SystemExit as end:
            code = 0 if end.code is None else 1
            print(end.code, file=sys.stderr)
        except Exception:
            code = 1
            traceback.print_exc()
    return {"code": code, "stdout": out.getvalue(), "stderr": error.getvalue()}


def find(script: str) -> ModuleType:
    """``training.networks.tracing`` imports MXNet, so it is imported only when asked for."""
    return importlib.import_module(f"training.{script.removesuffix('.py')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
