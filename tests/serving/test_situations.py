"""A machine that runs out: of disk for the log, of files, of threads; and a clock that jumps."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from serving.errors import InvalidSetting
from serving.server import start_threads
from tests.support.band_model import bands, encode, write_model
from tests.support.own_environment import unavailable
from tests.support.waiting import wait_for

SEGMENT = "/v2/models/bands/segment?format=raw"
PHOTO = encode(bands(32, 48))
ROOT = Path(__file__).parents[2]

# As `segserve serve` runs it, but for the engine.
SERVER = """
import json, resource, sys, time
from pathlib import Path
import uvloop
from tests.support.band_model import MODEL_SIZE, free_ports
from serving.commands import serve
from serving.server import Server
from serving.testing import FakeEngine

# libfaketime fails clock_nanosleep(); the engine's delay is 0 here anyway.
time.sleep = lambda seconds: None

given = json.loads(sys.argv[2])
limit = given.pop("limit", None)
settings = free_ports(Path(sys.argv[1])).model_copy(update=given)

class Faked(Server):
    def __init__(self, settings):
        super().__init__(settings, lambda folder, version, settings: FakeEngine(MODEL_SIZE))
        if limit:
            resource.setrlimit(getattr(resource, limit[0]), (limit[1], limit[1]))

serve.Server = Faked
uvloop.run(serve.serve_until_signal(settings))
"""


@dataclass
class Process:
    popen: subprocess.Popen[str]
    http: str
    metrics: str

    def segment(self, **headers: str) -> httpx.Response:
        return httpx.post(self.http + SEGMENT, content=PHOTO, headers=headers, timeout=60)

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))


@contextmanager
def serving(
    repository: Path,
    settings: str = "{}",
    stderr: Path | None = None,
    prefix: Sequence[str] = (),
    **variables: str,
) -> Iterator[Process]:
    with ExitStack() as stack:
        target = None if stderr is None else stack.enter_context(stderr.open("wb"))
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", SERVER, str(repository), settings],
            stdout=subprocess.PIPE, stderr=target, text=True, cwd=ROOT,
            env={**os.environ, **variables},
        )  # fmt: skip
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        stack.callback(process.wait)
        stack.callback(process.kill)
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+) .*metrics (http://127\.0\.0\.1:\d+)", line)
        assert found, line
        yield Process(process, found[1], found[2])


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_full_disk_under_the_log_fails_no_request(repository: Path, style: str) -> None:
    settings = f'{{"access_log": "{style}"}}'
    with serving(repository, settings, Path("/dev/full")) as process:
        for _ in range(50):
            assert process.segment().status_code == 200
        assert httpx.get(process.http + "/v2/models/nope").status_code == 404
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0


def test_a_log_whose_reader_has_ended_fails_no_request(repository: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with serving(repository, '{"access_log": "json"}', tmp_path / "pipe") as process:
        assert process.segment().status_code == 200
        os.close(reader)
        for _ in range(20):
            assert process.segment().status_code == 200


def count_dropped(process: Process) -> float:
    page = httpx.get(process.metrics + "/metrics", timeout=60).text
    found = re.search(r"^segserve_log_lines_dropped_total (\S+)$", page, re.MULTILINE)
    assert found, page
    return float(found[1])


def test_a_log_whose_reader_is_stuck_stops_no_request(repository: Path, tmp_path: Path) -> None:
    """Its pipe fills up, and whoever writes to it then waits until it is read."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with serving(repository, '{"access_log": "json"}', tmp_path / "pipe") as process:
        # Each line holds the path; some hundred of them are more than the queue takes.
        path = "/v2/" + "x" * 30_000
        with httpx.Client(base_url=process.http, timeout=60) as http:
            wait_for(lambda: http.get(path).status_code == 404 and count_dropped(process) > 0)
        assert process.segment().status_code == 200
        # It reads on: what the queue held comes out, whole lines.
        os.set_blocking(reader, False)
        read = b""

        def read_line_of_segment() -> bool:
            nonlocal read
            try:
                read += os.read(reader, 1 << 20)
            except BlockingIOError:
                process.segment()
            return b"/segment" in read

        wait_for(read_line_of_segment)
        for line in read.splitlines(keepends=True)[:-1]:
            assert json.loads(line)["status"] in (200, 404)
        # Stuck once more, it does not hold up the end either.
        with httpx.Client(base_url=process.http, timeout=60) as http:
            for _ in range(20):
                http.get(path)
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(60) == 0
    os.close(reader)


def find_faketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        unavailable("libfaketime is not installed (Debian's package libfaketime)")
    return str(found[0])


def read_times(log: Path) -> list[float]:
    """When the requests of a log were answered, in seconds, as the server's clock says."""
    found = re.findall(r'"time": "([0-9T:-]+)', log.read_text())
    return [time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) for text in found]


@pytest.mark.parametrize("jump", ["-3600", "+3600"])
def test_a_clock_that_jumps_moves_no_deadline(repository: Path, tmp_path: Path, jump: str) -> None:
    """As NTP or a resumed machine sets it; monotonic clocks go on."""
    offset = tmp_path / "offset"
    offset.write_text("+0")
    variables = {
        "LD_PRELOAD": find_faketime(),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    settings = '{"access_log": "json", "keep_alive_s": 30}'
    log = tmp_path / "log"
    with serving(repository, settings, log, **variables) as process:
        with httpx.Client(base_url=process.http, timeout=60) as http:
            before = http.post(SEGMENT, content=PHOTO, headers={"X-Timeout-Ms": "30000"})
            offset.write_text(jump)

            def has_jumped() -> bool:
                http.get("/v2")
                times = read_times(log)
                return len(times) > 1 and abs(times[-1] - times[0] - float(jump)) < 600

            # libfaketime looks at the file only now and then.
            wait_for(has_jumped)
            after = http.post(SEGMENT, content=PHOTO, headers={"X-Timeout-Ms": "30000"})
            assert (before.status_code, after.status_code) == (200, 200), before.text + after.text
            assert http.get("/v2/health/ready").status_code == 200
        page = httpx.get(process.metrics + "/metrics").text
        (lag,) = (x for x in page.splitlines() if x.startswith("segserve_event_loop_lag_seconds "))
        assert float(lag.split()[1]) < 1000.0
        (spent,) = (
            x for x in page.splitlines() if x.startswith("segserve_request_duration_seconds_sum{")
            and 'model="bands"' in x and 'transport="http"' in x
        )  # fmt: skip
        assert 0.0 < float(spent.split()[-1]) < 1000.0


def test_more_connections_than_files_spin_nothing_and_are_answered_later(
    repository: Path,
) -> None:
    with serving(repository, '{"limit": ["RLIMIT_NOFILE", 90]}') as process:
        address = tuple(process.http.removeprefix("http://").split(":"))
        metrics = tuple(process.metrics.removeprefix("http://").split(":"))
        with ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.create_connection(address, timeout=60))
            wait_for(lambda: process.files >= 80)
            # Of the metrics port as many as wait in its backlog.
            for _ in range(3):
                stack.enter_context(socket.create_connection(metrics, timeout=60))
            before = process.cpu_s
            time.sleep(3.0)
            # A loop that tries again at once would take all of the time.
            assert process.cpu_s - before < 1.5
        wait_for(lambda: _answers(process))
        wait_for(lambda: httpx.get(process.metrics + "/metrics", timeout=60).is_success)


def _answers(process: Process) -> bool:
    try:
        return process.segment().status_code == 200
    except httpx.TransportError:
        return False


def test_two_servers_may_have_one_repository(repository: Path) -> None:
    settings = '{"watch_repository": true, "poll_interval_s": 0.1, "enable_model_control": true}'
    with serving(repository, settings) as one, serving(repository, settings) as other:
        write_model(repository, "later")
        url = "/v2/models/later/ready"
        for process in (one, other):
            wait_for(lambda at=process: httpx.get(at.http + url).status_code == 200)
        assert httpx.post(one.http + "/v2/repository/models/later/unload").status_code == 200
        assert httpx.get(one.http + url).status_code == 503
        assert httpx.get(other.http + url).status_code == 200
        assert one.segment().status_code == other.segment().status_code == 200


# No other process has it.
ALONE = 54_321
# To read the files of root, as this project may be.
CAPABILITIES = "+dac_override,+dac_read_search"


def as_nobody(*, reads_all: bool) -> list[str]:
    """What a command is preceded by to run as a user whose number of processes is limited: root's
    is not. ``reads_all`` keeps root's leave to read this project's files."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        unavailable("another user's processes can be limited by root alone, and with setpriv")
    kept = ["--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES] if reads_all else []
    return ["setpriv", "--reuid", str(ALONE), "--clear-groups", *kept]


def limit_processes(process: int, count: int) -> None:
    """Limits the processes and threads that the user of a running process may have."""
    command = [*as_nobody(reads_all=False), "prlimit", f"--nproc={count}:", f"--pid={process}"]
    subprocess.run(command, check=True)


def children_of(process: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_no_thread_and_no_process_more_than_there_are(repository: Path) -> None:
    """As under ``ulimit -u`` or a container's limit of pids: what is there goes on working."""
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    plenty = most if most != resource.RLIM_INFINITY else 100_000
    settings = '{"pool_threads": 12, "decoder_processes": 3}'
    with serving(repository, settings, prefix=as_nobody(reads_all=True)) as process:
        server = process.popen.pid
        (zygote,) = children_of(server)
        threads = len(os.listdir(f"/proc/{server}/task"))
        limit_processes(server, threads + 1 + len(children_of(zygote)))
        with ThreadPoolExecutor(10) as callers:
            statuses = callers.map(lambda _: process.segment().status_code, range(30))
            assert set(statuses) == {200}

        limit_processes(zygote, 1)
        for decoder in children_of(zygote):
            os.kill(decoder, signal.SIGKILL)
        refused = process.segment()
        assert refused.status_code == 503
        assert "a decoder process cannot be started: Resource temporarily" in refused.text
        assert children_of(server) == [zygote]

        limit_processes(server, plenty)
        limit_processes(zygote, plenty)

        def answers_with_all() -> bool:
            with ThreadPoolExecutor(6) as callers:
                list(callers.map(lambda _: process.segment(), range(6)))
            return len(children_of(zygote)) == 3 and process.segment().status_code == 200

        wait_for(answers_with_all)


def test_too_few_threads_for_the_pool_stop_the_start() -> None:
    """A start that goes on would fail requests later."""
    pool = ThreadPoolExecutor(3)

    started = pool._adjust_thread_count  # type: ignore[attr-defined]
    count = 0

    def start_two() -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise RuntimeError("can't start new thread")
        started()

    pool._adjust_thread_count = start_two  # type: ignore[attr-defined]
    with pytest.raises(InvalidSetting, match="pool_threads = 3: can't start new thread; allow"):
        start_threads(pool, 3)
    # Those that wait for the others do not wait for ever.
    pool.shutdown(wait=True)


@pytest.mark.slow
def test_ten_thousand_by_ten_thousand_pixels_in_four_kilobytes(repository: Path) -> None:
    """As many as ``max_image_megapixels`` allows by default, and a row more."""

    def webp(height: int) -> bytes:
        data = cv2.imencode(".webp", np.zeros((height, 10_000, 3), np.uint8))[1].tobytes()
        assert len(data) < 5000
        return data

    with serving(repository, '{"max_image_megapixels": 100}') as process:
        url = process.http + "/v2/models/bands/segment?format=stats&size=model"
        before = process.resident_bytes
        for _ in range(3):
            answer = httpx.post(url, content=webp(10_000), timeout=120)
            assert answer.status_code == 200
            assert answer.headers["x-image-size"] == "10000x10000"
        answer = httpx.post(url, content=webp(10_001), timeout=120)
        assert answer.status_code == 413
        assert "max_image_megapixels = 100" in answer.json()["error"]
        assert process.segment().status_code == 200
        wait_for(lambda: process.resident_bytes < before + (64 << 20))


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    code = """
import resource
from serving.commands.serve import OPEN_FILES, _raise_file_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
_raise_file_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, OPEN_FILES), hard)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
