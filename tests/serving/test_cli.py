"""The command line, called as users call it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from serving.cli import find_commands, load_command
from serving.settings import Settings, find_misspelt
from tests.support.band_model import write_model
from tests.support.contract_graph import make_graph

SEGSERVE = Path(sys.executable).with_name("segserve")
# Where the packages are, in a copy that is not the installed one; and the engine of all tests.
KEPT = {
    name: os.environ[name] for name in ("PYTHONPATH", "SEGSERVE_CPU_ENGINE") if name in os.environ
}


def call(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SEGSERVE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **KEPT, **environment},
    )


def test_help_lists_every_command() -> None:
    answer = call("--help")
    assert answer.returncode == 0
    for name in ("serve", "segment", "models", "export", "evaluate"):
        assert name in answer.stdout
        assert name in find_commands()


def test_no_command_imports_what_it_does_not_need() -> None:
    code = (
        "import sys; from serving.cli import main; sys.argv = ['segserve', '--help']; main(); "
        "heavy = {'mxnet', 'gluoncv', 'torch', 'onnxruntime', 'fastapi'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=180)


def test_an_unknown_command_names_the_known_ones() -> None:
    answer = call("sevre")
    assert answer.returncode == 1
    assert "sevre" in answer.stderr
    assert "serve" in answer.stderr


def test_a_missing_package_names_the_extra() -> None:
    entry = EntryPoint("train", "no_such_package.cli:train [training]", "segserve.commands")
    with pytest.raises(SystemExit, match=r"segserve\[training\]"):
        load_command(entry)


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (("--repository", "nowhere"), {}, "segserve export"),
        (("--http-port", "99999"), {}, "http_port"),
        (("--engine", "magic"), {}, "engine"),
        ((), {"SEGSERVE_MAX_QUEUE_SIZE": "0"}, "max_queue_size"),
        ((), {"SEGSERVE_TRUSTED_PROXIES": "10.0.0.0/8,here"}, "'here' is not a valid address"),
        ((), {"SEGSERVE_TRUSTED_PROXIES": '["10.0.0.0/8"'}, "trusted_proxies"),
        ((), {"SEGSERVE_ALLOWED_FORMATS": "JPEG,GIF"}, "GIF cannot be decoded"),
        (("--repository", "nowhere"), {"SEGSERVE_API_KEY_FILE": "keys"},
         "did you mean SEGSERVE_API_KEYS_FILE?"),
    ],
)  # fmt: skip
def test_wrong_settings_stop_the_start_and_are_named(
    arguments: tuple[str, ...], environment: dict[str, str], text: str, tmp_path: Path
) -> None:
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    answer = call("serve", *ports, *arguments, **environment)
    assert answer.returncode == 1
    assert text in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


def test_lists_are_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = frozenset({"10.0.0.0/8", "::1"})
    for text in ("10.0.0.0/8,::1", " 10.0.0.0/8 , ::1, ", '["10.0.0.0/8", "::1"]'):
        monkeypatch.setenv("SEGSERVE_TRUSTED_PROXIES", text)
        assert Settings().trusted_proxies == expected
    monkeypatch.setenv("SEGSERVE_TRUSTED_PROXIES", "")
    assert Settings().trusted_proxies == frozenset()


def test_what_is_in_the_environment_for_others_is_not_misspelt() -> None:
    others = ("SEGSERVE_API_KEY", "SEGSERVE_CACHE_DIR", "SEGSERVE_PORT", "SEGSERVE_PORT_80_TCP",
              "SEGSERVE_SERVICE_HOST", "SEGSERVE_THREADS", "PATH")  # fmt: skip
    assert find_misspelt(others) == []
    (sentence,) = find_misspelt(["SEGSERVE_XYZ"])
    assert sentence == "SEGSERVE_XYZ in the environment is not a setting and has no effect"


def test_models_lists_what_is_served_and_why_something_is_not(tmp_path: Path) -> None:
    good = write_model(tmp_path, "good", family="street")
    (good / "1" / "model.onnx").write_bytes(make_graph().SerializeToString())
    (good / "labels.txt").write_text("a\nb\nc\n")
    broken = write_model(tmp_path, "broken")
    (broken / "labels.txt").unlink()
    answer = call("models", "--repository", tmp_path)
    assert answer.returncode == 1
    assert "4x6" in answer.stdout
    assert "fp32" in answer.stdout
    assert "street" in answer.stdout
    assert "labels.txt is missing" in answer.stdout.replace("\n", " ")
