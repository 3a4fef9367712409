"""The JavaScript client: its own tests, by Node's runner, against real servers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake, write_model
from own_environment import unavailable

from serving.lifecycle import Server
from serving.testing import FakeEngine, ServerThread

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clients" / "javascript"
KEY = "a-key-of-sixteen-characters"
# One call is answered; the next is one too many.
LIMIT = "requests_per_second=0.001"


def find_node() -> str:
    """Node 18 or later."""
    node = shutil.which("node")
    if node is None:
        unavailable("no Node: apt-get install nodejs")
        raise AssertionError
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(found.lstrip("v").split(".")[0]) < 18:
        unavailable(f"Node {found.strip()} is older than 18")
    return node


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """One that answers, one whose engine never does, and one that asks for a key."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"alice {KEY} {LIMIT}\n")
    with ExitStack() as stack:
        started = {}
        engines = {}
        for name in ("PLAIN", "STUCK", "KEY"):
            write_model(tmp_path / name)
            settings = free_ports(tmp_path / name)
            if name == "KEY":
                settings = settings.model_copy(update={"api_keys_file": keys})
            engines[name] = FakeEngine(MODEL_SIZE)
            started[name] = stack.enter_context(ServerThread(settings, serve_fake(engines[name])))
        engines["STUCK"].hold.clear()
        stack.callback(engines["STUCK"].hold.set)
        yield started


def test_its_own_tests_pass(servers: dict[str, Server], tmp_path: Path) -> None:
    node = find_node()
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(bands(60, 96)))
    urls = {f"URL_{name}": f"http://127.0.0.1:{s.ports.http}" for name, s in servers.items()}
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", "test/"],
        cwd=FOLDER,
        env={**os.environ, **urls, "KEY": KEY, "PHOTO": str(photo)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    counts = dict(re.findall(r"^# (pass|fail|skipped) (\d+)", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(counts["pass"]) >= 20
    assert (counts["fail"], counts["skipped"]) == ("0", "0")


def test_the_declarations_name_what_the_module_exports() -> None:
    declared = re.findall(
        r"^export (?:declare )?class (\w+)", (FOLDER / "segserve.d.ts").read_text(), re.MULTILINE
    )
    listing = f"import('{FOLDER}/segserve.js').then(m => console.log(Object.keys(m).join(' ')))"
    done = subprocess.run(
        [find_node(), "-e", listing], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == sorted(declared)
