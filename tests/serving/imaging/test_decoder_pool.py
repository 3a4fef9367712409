"""Decoder processes: confined, replaced when they fail, and gone when the server is."""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.errors import DeadlineExceeded, InvalidImage, InvalidSetting, NotReady, TooLarge
from serving.imaging import decoder_process as child
from serving.imaging import shared_memory
from serving.imaging import zygote as zygote_module
from serving.imaging.decode import check_still, decode, read_still
from serving.imaging.decoder_pool import DecoderPool, Decoding
from serving.settings import Settings
from tests.support.photos import LOSSLESS, LOSSY, PHOTO, encoded, exif
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="decoder processes need memory files, which Linux has"
)
MAX_MEGAPIXELS = 20.0


class Decoders:
    """A pool, and what it counted."""

    def __init__(self, **settings: object) -> None:
        self.restarts: Counter[str] = Counter()
        chosen = {"max_image_megapixels": MAX_MEGAPIXELS, "decoder_processes": 2, **settings}
        self.pool = DecoderPool(
            Settings.model_validate(chosen), lambda reason: self.restarts.update([reason])
        )
        self.pool.start()
        try:
            self.pool.wait_ready()
        except BaseException:
            self.pool.close()
            raise

    def decode(self, data: bytes, deadline: float | None = None) -> np.ndarray:
        still = read_still(data)
        check_still(still, MAX_MEGAPIXELS)
        return self.pool.decode(still, Decoding(), deadline)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *ended: object) -> None:
        self.pool.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoders]:
    with Decoders() as decoders:
        yield decoders


def big_png(side: int = 4000) -> bytes:
    """Some tenths of a second's work."""
    noise = np.random.default_rng(1).integers(0, 255, (side, side), np.uint8)
    return encoded(Image.fromarray(noise), "PNG", compress_level=1)


BIG = big_png()


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_pixels_are_those_of_this_process(shared: Decoders, kind: str) -> None:
    data = {**LOSSLESS, **LOSSY}[kind]
    np.testing.assert_array_equal(shared.decode(data), decode(data, max_megapixels=1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned(shared: Decoders, orientation: int) -> None:
    data = encoded(PHOTO, "JPEG", exif=exif(orientation))
    np.testing.assert_array_equal(shared.decode(data), decode(data, max_megapixels=1))


def test_errors_are_those_of_this_process(shared: Decoders) -> None:
    broken = LOSSLESS["png"][:60] + b"\0" + LOSSLESS["png"][61:]
    with pytest.raises(InvalidImage) as here:
        decode(broken, max_megapixels=1)
    with pytest.raises(InvalidImage) as there:
        shared.decode(broken)
    assert str(here.value) == str(there.value)


def limits_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def test_decoders_are_confined(shared: Decoders) -> None:
    for process in shared.pool.processes():
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{process}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"].strip() == "2", "is libseccomp2 installed?"
        assert status["Threads"].strip() == "1"
        limits = limits_of(process)
        assert limits["Max core file size"] == "0"
        assert limits["Max file size"] == "0"
        assert limits["Max processes"] == "0"
        assert int(limits["Max address space"]) < 2 << 30
        # Its three standard files, its socket, its own size: nothing of the server.
        files = [os.readlink(f"/proc/{process}/fd/{name}") for name in
                 os.listdir(f"/proc/{process}/fd")]  # fmt: skip
        assert sorted(name.split(":")[0] for name in files) == [
            "/dev/null", "/dev/null", "/dev/null", f"/proc/{process}/statm", "socket",
        ]  # fmt: skip
        environment = Path(f"/proc/{process}/environ").read_text()
        assert "SEGSERVE" not in environment
        assert "PATH=" not in environment.replace("LD_LIBRARY_PATH=", "")
        assert os.readlink(f"/proc/{process}/cwd") == "/"


FORBIDDEN = {
    "open a file": "open('/etc/passwd')",
    "write a file": "open('/tmp/segserve-decoder-test', 'w')",
    "list a folder": "os.listdir('/')",
    "open a socket": "socket.socket()",
    "make a pair of sockets": "socket.socketpair()",
    "fork": "os.fork()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "signal another process": "os.kill(os.getppid(), 0)",
    "make memory executable": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "trace": "check(libc.ptrace(16, os.getppid(), 0, 0))",
    "read another's memory": "check(libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0))",
    "raise another's limits": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "start a thread": "threading.Thread(target=print).start()",
}


def test_what_a_confined_process_cannot_do() -> None:
    """The confinement itself, without a decoder: each action works before it and fails after."""
    code = f"""
import ctypes, errno, mmap, os, resource, socket, threading
from serving.imaging import sandbox
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
answer = socket.socket(fileno=int(os.environ["ANSWER"]))
syscalls = sandbox.SyscallFilter()
sandbox.confine(syscalls, 64 << 20)
done = []
for name, action in {FORBIDDEN!r}.items():
    try:
        exec(action)
        done.append(name)
    except OSError as error:
        if error.errno != errno.EPERM:
            done.append(name + ": " + str(error))
    except RuntimeError:
        pass  # Threads have an error of their own.
try:
    bytearray(200 << 20)
    done.append("take memory")
except MemoryError:
    pass
answer.send(", ".join(done).encode() + b"end")
os._exit(0)
"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"ANSWER": str(theirs.fileno())},
            )
        said = ours.recv(10_000)
    assert (said, process.wait(60)) == (b"end", 0)


def test_a_decoder_that_was_killed_while_idle_costs_nobody_anything() -> None:
    with Decoders() as decoders:
        before = decoders.pool.processes()
        for process in before:
            os.kill(process, signal.SIGKILL)
        for _ in range(2):
            decoders.decode(LOSSY["jpeg"])
        wait_for(lambda: len(decoders.pool.processes()) == 2)
        assert decoders.restarts["killed"] >= 1
        assert decoders.pool.processes() != before


def kill_later(processes: list[int], number: signal.Signals) -> None:
    """Stops them, so that they begin nothing, and ends them a little later."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)

    def kill() -> None:
        for process in processes:
            os.kill(process, number)
            os.kill(process, signal.SIGCONT)

    threading.Timer(0.1, kill).start()


def test_a_decoder_that_crashes_costs_its_own_image() -> None:
    with Decoders() as decoders:
        kill_later(decoders.pool.processes(), signal.SIGSEGV)
        with pytest.raises(InvalidImage, match="crashed"):
            decoders.decode(LOSSY["jpeg"])
        assert decoders.restarts["crash"] == 1
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)


def test_an_image_whose_decoder_was_killed_is_tried_once_more() -> None:
    with Decoders(decoder_processes=1) as decoders:
        kill_later(decoders.pool.processes(), signal.SIGKILL)
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        assert decoders.restarts == {"killed": 1}


def test_what_spends_the_processor_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is the decoder's own: it holds where the server's clock does not run out."""
    with Decoders(decode_timeout_s=30) as decoders:
        pack = child.pack_request
        monkeypatch.setattr(
            child, "pack_request", lambda still, seconds, buffer: pack(still, 0.001, buffer)
        )

        def decode_many() -> None:
            for _ in range(40):
                decoders.decode(BIG)

        with pytest.raises(InvalidImage, match="decode_timeout_s"):
            decode_many()
        assert decoders.restarts == {"cpu": 1}


def test_a_decoder_that_hangs_is_ended_in_time() -> None:
    with Decoders(decode_timeout_s=0.3) as decoders:
        for process in decoders.pool.processes():
            os.kill(process, signal.SIGSTOP)
        with pytest.raises(InvalidImage, match=r"decode_timeout_s = 0\.3"):
            decoders.decode(LOSSY["jpeg"])
        assert decoders.restarts == {"timeout": 1}


def test_a_deadline_that_passes_ends_the_decoder() -> None:
    with Decoders() as decoders:
        for process in decoders.pool.processes():
            os.kill(process, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            decoders.decode(LOSSY["jpeg"], time.monotonic() + 0.2)
        assert decoders.restarts == {"deadline": 1}
        with pytest.raises(DeadlineExceeded):
            decoders.decode(LOSSY["jpeg"], time.monotonic() - 1)
        assert decoders.restarts == {"deadline": 1}


def test_an_image_may_be_given_up_from_another_thread() -> None:
    with Decoders() as decoders:
        for process in decoders.pool.processes():
            os.kill(process, signal.SIGSTOP)
        decoding, still = Decoding(), read_still(LOSSY["jpeg"])
        threading.Timer(0.1, decoding.abort, ("cancelled",)).start()
        with pytest.raises(NotReady, match="ended"):
            decoders.pool.decode(still, decoding)
        assert decoders.restarts == {"cancelled": 1}
        with pytest.raises(NotReady):
            decoders.pool.decode(still, decoding)


def test_memory_is_limited_by_the_image_s_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that needs more than the cost model says is refused; the decoder lives on."""
    with Decoders(decoder_processes=1) as decoders:
        monkeypatch.setattr("serving.imaging.still.FIXED_MEMORY_BYTES", -(60 << 20))
        before = decoders.pool.processes()
        with pytest.raises((TooLarge, InvalidImage)):
            decoders.decode(big_png(2000))
        assert decoders.pool.processes() == before


def test_the_zygote_s_death_is_survived() -> None:
    with Decoders() as decoders:
        zygote = decoders.pool.zygote
        os.kill(zygote, signal.SIGKILL)

        def replaced() -> bool:
            """Its decoders end a moment after it; until then they answer as before."""
            assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
            return decoders.pool.zygote != zygote

        wait_for(replaced)


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def shared_bytes() -> int:
    """Memory of this process that lies in memory files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssShmem:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssShmem")


def test_a_thousand_images_leak_nothing() -> None:
    with Decoders() as decoders:
        good, bad = LOSSY["jpeg"], LOSSLESS["png"][:60] + b"\0" + LOSSLESS["png"][61:]
        larger = encoded(PHOTO.resize((3000, 2000)), "JPEG")

        def some(count: int) -> None:
            for k in range(count):
                if k % 10 == 3:
                    with pytest.raises(InvalidImage):
                        decoders.decode(bad)
                elif k % 50 == 7:
                    decoders.decode(larger)
                else:
                    decoders.decode(good)

        some(50)
        gc.collect()
        files, memory = len(os.listdir("/proc/self/fd")), shared_bytes()
        processes = sorted(decoders.pool.processes())
        some(1000)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files + 2
        assert shared_bytes() <= memory + (20 << 20)
        assert sorted(decoders.pool.processes()) == processes
        assert sorted(children_of(decoders.pool.zygote)) == processes
        assert decoders.restarts == {}


def test_pixels_live_as_long_as_they_are_used(shared: Decoders) -> None:
    """Images that are held at a time never share memory, also beyond what is used again."""
    held = [shared.decode(encoded(PHOTO.rotate(k), "PNG")) for k in range(40)]
    for k, pixels in enumerate(held):
        np.testing.assert_array_equal(pixels, np.asarray(PHOTO.rotate(k)))


def test_who_lets_go_of_a_large_image_does_not_wait_for_its_memory(shared: Decoders) -> None:
    """It is the event loop, mostly: unmapping takes a tenth of a second of 100 megapixels."""
    before = shared_bytes()
    pixels = shared.decode(encoded(Image.new("L", (4000, 4500)), "PNG", compress_level=1))
    assert shared_bytes() > before + (50 << 20)
    unmap, threads = shared_memory._LIBC.munmap, []

    class Watched:
        def munmap(self, address: int, size: int) -> int:
            threads.append((threading.current_thread(), size))
            return int(unmap(address, size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_memory, "_LIBC", Watched())
        del pixels
        wait_for(lambda: bool(threads))
    assert [(thread.name, size > 50 << 20) for thread, size in threads] == [("unmap", True)]
    wait_for(lambda: shared_bytes() < before + (10 << 20))


def test_nothing_of_an_earlier_image_is_there_for_a_decoder(shared: Decoders) -> None:
    """The buffers that are used again are zero but for the new image's file."""
    secret = np.full((500, 700, 3), 0xA7, np.uint8)
    with Decoders(decoder_processes=1) as decoders:
        data = encoded(Image.fromarray(secret), "BMP")
        for _ in range(12):
            assert (decoders.decode(data) == secret).all()
        gc.collect()
        # Rows that run lengths leave out stay as the decoder found them.
        sparse = sparse_bmp(700, 500)
        assert not decoders.decode(sparse).any()
        assert not (decoders.decode(truncated_scan()) == 0xA7).any()


def test_memory_comes_back_from_an_image_that_was_ended_before_it_began() -> None:
    """Also what its file has left there is gone before another image is decoded."""
    secret = encoded(Image.fromarray(np.full((500, 700, 3), 0xA7, np.uint8)), "BMP")
    with Decoders(decoder_processes=1) as decoders:
        (decoder,) = decoders.pool._idle
        before = len(decoder.buffers._slots)
        for _ in range(shared_memory.SLOTS + 1):
            ended = Decoding()
            ended.abort("cancelled")
            with pytest.raises(NotReady, match="the request was ended"):
                decoders.pool.decode(read_still(secret), ended)
        assert len(decoder.buffers._slots) == before
        # Its pixels would lie where the file was.
        large = sparse_bmp(1400, 500)
        assert not decoders.decode(large).any()
        assert decoders.restarts == {}


def sparse_bmp(width: int, height: int) -> bytes:
    """Run lengths that end before the first pixel; every index is 0, which is black."""
    palette = bytes(1024)
    runs = b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", start + 2, 0, 0, start) + head + palette + runs


def truncated_scan() -> bytes:
    """A JPEG whose scan holds a tenth of its blocks; libjpeg makes the others gray."""
    data = encoded(Image.new("RGB", (700, 500), (10, 20, 30)), "JPEG")
    scan = data.index(b"\xff\xda")
    return data[: scan + 14 + (len(data) - scan) // 10] + b"\xff\xd9"


def test_no_process_outlives_a_server_that_was_killed() -> None:
    code = """
import logging, sys, time
from serving.imaging.decoder_pool import DecoderPool
from serving.settings import Settings
pool = DecoderPool(Settings(decoder_processes=2), print)
pool.start()
pool.wait_ready()
print(pool.zygote, *pool.processes(), flush=True)
time.sleep(600)
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        processes = [int(number) for number in server.stdout.readline().split()]
        assert len(processes) == 3
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    wait_for(lambda: not any(is_running(process) for process in processes))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_closing_ends_every_process_and_whoever_waits() -> None:
    decoders = Decoders()
    processes = [decoders.pool.zygote, *decoders.pool.processes()]
    for process in processes[1:]:
        os.kill(process, signal.SIGSTOP)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            decoders.decode(LOSSY["jpeg"])
        except Exception as error:
            errors.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    time.sleep(0.2)
    decoders.pool.close()
    for caller in callers:
        caller.join(30)
    assert [type(error) for error in errors] == [NotReady] * 4
    assert not any(is_running(process) for process in processes)


@pytest.fixture
def without_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zygote finds no library of that name."""
    boot = zygote_module._BOOT.replace(
        "from serving.imaging.decoder_process",
        "import ctypes; ctypes.CDLL = lambda name, kind=ctypes.CDLL, **more:"
        " kind(name and name.replace('seccomp', 'nothing'), **more);"
        "from serving.imaging.decoder_process",
    )
    monkeypatch.setattr(zygote_module, "_BOOT", boot)


@pytest.mark.usefixtures("without_libseccomp")
def test_without_libseccomp_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with Decoders(decoder_sandbox="auto") as decoders:
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
    assert caplog.text.count("without a system call filter") == 1


@pytest.mark.usefixtures("without_libseccomp")
def test_without_libseccomp_what_is_required_stops_the_start() -> None:
    with pytest.raises(InvalidSetting, match="decoder_sandbox = required"):
        Decoders(decoder_sandbox="required")


def test_the_filter_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with Decoders(decoder_sandbox="off") as decoders:
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        status = Path(f"/proc/{decoders.pool.processes()[0]}/status").read_text()
        assert "Seccomp:\t0" in status
        assert "NoNewPrivs:\t1" in status
    assert caplog.text == ""


def test_images_that_are_given_up_early_keep_no_memory() -> None:
    """Before the decoder was asked: eight of them took all the memory that is used again."""
    with Decoders(decoder_processes=1) as decoders:
        data = encoded(PHOTO.resize((1000, 1000)), "JPEG")
        decoders.decode(data)
        gc.collect()
        before = shared_bytes()
        for _ in range(20):
            decoding = Decoding()
            decoding.abort("cancelled")
            with pytest.raises(NotReady):
                decoders.pool.decode(read_still(data), decoding)
        gc.collect()
        assert shared_bytes() <= before + (8 << 20)
        assert decoders.decode(data).shape == (1000, 1000, 3)
        assert decoders.restarts == {}


def test_limits_that_the_server_was_started_with_are_kept() -> None:
    """``ulimit -t`` sets a limit that nobody may raise, and every process inherits it."""
    with Decoders() as decoders:
        resource.prlimit(decoders.pool.zygote, resource.RLIMIT_CPU, (3600, 3600))
        for process in decoders.pool.processes():
            os.kill(process, signal.SIGKILL)
        for _ in range(3):
            assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        assert decoders.restarts["crash"] == 0


@pytest.fixture
def no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, the zygote cannot fork."""
    file = tmp_path / "no room"
    boot = zygote_module._BOOT.replace(
        "from serving.imaging.decoder_process",
        "import os; fork = os.fork; path = " + repr(str(file)) + ";"
        "os.fork = lambda: os.getxattr('/nowhere', 'x') if os.path.exists(path) else fork();"
        "from serving.imaging.decoder_process",
    )
    monkeypatch.setattr(zygote_module, "_BOOT", boot)
    return file


def test_where_no_process_can_be_started_the_others_go_on(no_room: Path) -> None:
    with Decoders() as decoders:
        zygote, (first, second) = decoders.pool.zygote, decoders.pool.processes()
        no_room.touch()
        os.kill(second, signal.SIGKILL)
        for _ in range(3):
            assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        assert decoders.pool.processes() == [first]
        os.kill(first, signal.SIGKILL)
        with pytest.raises(NotReady, match=r"cannot be started: .*try again later"):
            decoders.decode(LOSSY["jpeg"])
        no_room.unlink()
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        assert decoders.pool.zygote == zygote


def test_a_zygote_that_is_ending_is_replaced() -> None:
    """Its socket is closed some time before the process is gone."""
    with Decoders() as decoders:
        zygote = decoders.pool.zygote
        os.kill(zygote, signal.SIGSTOP)
        assert decoders.pool._zygote is not None
        decoders.pool._zygote.control.shutdown(socket.SHUT_RDWR)
        for process in decoders.pool.processes():
            os.kill(process, signal.SIGKILL)
        for _ in range(3):
            assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)
        assert decoders.pool.zygote != zygote
        assert not is_running(zygote)


def test_what_decoding_needs_is_tried_before_the_server_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(InvalidSetting, match=r"Function not implemented.*decoder_processes"):
        Decoders()


def test_an_unexpected_error_costs_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoders(decoder_processes=1) as decoders:
        with monkeypatch.context() as patch:
            patch.setattr(child, "pack_request", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                decoders.decode(LOSSY["jpeg"])
        assert decoders.decode(LOSSY["jpeg"]).shape == (30, 44, 3)


def test_a_decoder_that_is_killed_twice_is_said_to_be() -> None:
    with Decoders(decoder_processes=1) as decoders:
        kill_later(decoders.pool.processes(), signal.SIGKILL)
        spawn = decoders.pool._spawn

        def spawn_another() -> object:
            decoder = spawn()
            if not decoders.restarts["killed"] - 1:
                kill_later([decoder.process], signal.SIGKILL)
            return decoder

        decoders.pool._spawn = spawn_another  # type: ignore[method-assign]
        with pytest.raises(TooLarge, match=r"killed twice.*memory"):
            decoders.decode(LOSSY["jpeg"])
        assert decoders.restarts == {"killed": 2}
