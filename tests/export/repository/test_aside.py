"""Nothing is left beside the models, however an export ends."""

import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from export.repository.triton import folder_aside

WRITE = """
import sys, time
from pathlib import Path
from export.repository.triton import folder_aside
with folder_aside(Path(sys.argv[1])) as aside:
    (aside / "model.onnx").write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def export(repository):
    """A process that is writing a model."""
    command = [sys.executable, "-c", WRITE, str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path, number, code):
    with export(tmp_path) as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(60) == code
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_export(tmp_path):
    with export(tmp_path) as process:
        process.kill()
        process.wait(60)
    (abandoned,) = tmp_path.iterdir()
    with folder_aside(tmp_path) as aside:
        assert list(tmp_path.iterdir()) == [aside]
        assert aside != abandoned
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_is_writing_stays(tmp_path):
    with export(tmp_path):
        (other,) = tmp_path.iterdir()
        with folder_aside(tmp_path) as aside:
            assert set(tmp_path.iterdir()) == {aside, other}
        assert (other / "model.onnx").read_bytes() == b"half of it"


def test_other_things_of_that_name_stay(tmp_path):
    (tmp_path / ".export-notes").write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / ".export-link").symlink_to(outside)
    with folder_aside(tmp_path):
        pass
    assert (tmp_path / ".export-notes").is_file()
    assert outside.is_dir()


def test_a_handler_of_ones_own_is_kept(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with folder_aside(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
