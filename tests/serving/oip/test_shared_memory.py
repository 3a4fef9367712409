"""POSIX shared memory: its bounds, and tensors in it over both protocols."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from serving.errors import InvalidRequest, RegionExists, RegionNotFound, Unsupported
from serving.oip.shared_memory import FOLDER, RegionSlice, SharedMemory
from serving.settings import Settings
from tests.support.band_model import MODEL_SIZE, band_labels, bands, write_model
from tests.support.open_server import CLIENTS, Client, OpenServer, run_open_server

PIXELS = bands(MODEL_SIZE.height, MODEL_SIZE.width)[None]
MASK_BYTES = MODEL_SIZE.height * MODEL_SIZE.width

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no /dev/shm")


@pytest.fixture
def create() -> Iterator[Callable[[int], str]]:
    """Creates objects of a size; returns their keys."""
    made: list[Path] = []

    def make(size: int) -> str:
        path = FOLDER / f"segserve_test_{os.getpid()}_{len(made)}"
        path.write_bytes(bytes(size))
        made.append(path)
        return f"/{path.name}"

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(Settings(enable_shared_memory=True, max_shared_memory_regions=2))
    yield memory
    memory.unregister("")


def test_reads_and_writes_inside_a_region(
    memory: SharedMemory, create: Callable[[int], str]
) -> None:
    key = create(100)
    memory.register("part", key, 10, 50)
    memory.write(RegionSlice("part", 5, 10), b"abc")
    content = (FOLDER / key[1:]).read_bytes()
    assert content[15:18] == b"abc"
    assert content.count(0) == 97
    assert memory.read(RegionSlice("part", 5, 4)) == b"abc\0"
    (region,) = memory.status("")
    assert (region.name, region.key, region.offset, region.size) == ("part", key, 10, 50)


@pytest.mark.parametrize("place", [(0, 51), (50, 1), (51, 0), (-1, 5), (0, -1), (2**62, 2**62)])
def test_nothing_beyond_a_region_is_touched(
    memory: SharedMemory, create: Callable[[int], str], place: tuple[int, int]
) -> None:
    memory.register("part", create(100), 10, 50)
    with pytest.raises(InvalidRequest, match="go beyond"):
        memory.read(RegionSlice("part", *place))
    with pytest.raises(InvalidRequest):
        memory.write(RegionSlice("part", *place), b"x")


def test_an_output_larger_than_its_place_is_not_written(
    memory: SharedMemory, create: Callable[[int], str]
) -> None:
    key = create(100)
    memory.register("part", key, 0, 100)
    with pytest.raises(InvalidRequest, match="takes 11 bytes"):
        memory.write(RegionSlice("part", 0, 10), b"x" * 11)
    assert not any((FOLDER / key[1:]).read_bytes())


def test_an_object_that_is_truncated_meanwhile_is_an_error(
    memory: SharedMemory, create: Callable[[int], str]
) -> None:
    key = create(100)
    memory.register("part", key, 0, 100)
    os.truncate(FOLDER / key[1:], 40)
    with pytest.raises(InvalidRequest, match="truncated"):
        memory.read(RegionSlice("part", 30, 20))
    with pytest.raises(InvalidRequest, match="truncated"):
        memory.write(RegionSlice("part", 30, 20), b"x" * 20)
    assert (FOLDER / key[1:]).stat().st_size == 40


@pytest.mark.parametrize(
    "key", ["", "/", "..", "/..", "a/b", "/../etc/passwd", "//etc/passwd", "a\0b", "/nope_never"]
)
def test_keys_name_shared_memory_and_nothing_else(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest):
        memory.register("bad", key, 0, 1)
    assert memory.status("") == []


def test_links_are_not_followed(memory: SharedMemory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    link = FOLDER / f"segserve_test_link_{os.getpid()}"
    link.symlink_to(tmp_path / "secret")
    try:
        with pytest.raises(InvalidRequest, match="cannot open"):
            memory.register("link", link.name, 0, 6)
    finally:
        link.unlink()


def count_handles(key: str) -> int:
    """How often this process holds the object open; other threads open and close theirs."""
    found = 0
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += os.readlink(handle) == str(FOLDER / key[1:])
    return found


def test_names_sizes_and_numbers_are_checked(
    memory: SharedMemory, create: Callable[[int], str]
) -> None:
    key = create(10)
    for offset, size in ((0, 11), (5, 6), (0, 0), (-1, 5)):
        with pytest.raises(InvalidRequest):
            memory.register("a", key, offset, size)
    memory.register("a", key, 0, 10)
    with pytest.raises(InvalidRequest, match="needs a name"):
        memory.register("", key, 0, 10)
    with pytest.raises(RegionExists):
        memory.register("a", key, 0, 10)
    memory.register("b", key, 0, 10)
    with pytest.raises(InvalidRequest, match="max_shared_memory_regions"):
        memory.register("c", key, 0, 10)
    assert count_handles(key) == 2
    memory.unregister("a")
    assert count_handles(key) == 1
    with pytest.raises(RegionNotFound):
        memory.status("a")
    with pytest.raises(RegionNotFound):
        memory.read(RegionSlice("a", 0, 1))


def test_switched_off_it_opens_nothing(create: Callable[[int], str]) -> None:
    memory = SharedMemory(Settings())
    with pytest.raises(Unsupported, match="enable_shared_memory"):
        memory.register("a", create(10), 0, 10)
    with pytest.raises(Unsupported, match="enable_shared_memory"):
        memory.read(RegionSlice("a", 0, 1))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenServer]:
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder)
    with run_open_server(folder) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, opened: OpenServer) -> Iterator[Client]:
    with opened.client(request.param) as client:
        yield client
        client.unregister_system_shared_memory()


def tensors_of(client: Client, in_size: int, out_size: int, offset: int = 0) -> tuple[list, list]:
    module = CLIENTS["http" if "http" in type(client).__module__ else "grpc"]
    item = module.InferInput("image", list(PIXELS.shape), "UINT8")
    item.set_shared_memory("in", in_size)
    mask = module.InferRequestedOutput("mask")
    mask.set_shared_memory("out", out_size, offset)
    return [item], [mask]


def test_tritonclient_puts_tensors_there(client: Client) -> None:
    key = f"/segserve_test_client_{os.getpid()}"
    source = shm.create_shared_memory_region("in", f"{key}_in", PIXELS.nbytes)
    target = shm.create_shared_memory_region("out", f"{key}_out", 8192 + MASK_BYTES)
    try:
        shm.set_shared_memory_region(source, [PIXELS])
        client.register_system_shared_memory("in", f"{key}_in", PIXELS.nbytes)
        client.register_system_shared_memory("out", f"{key}_out", 4096 + MASK_BYTES, offset=4096)
        inputs, outputs = tensors_of(client, PIXELS.nbytes, MASK_BYTES, 64)
        result = client.infer("bands", inputs, outputs=outputs)
        mask = shm.get_contents_as_numpy(target, np.uint8, [1, *band_labels(32, 48).shape], 4160)
        np.testing.assert_array_equal(mask[0], band_labels(32, 48))
        entry = result.get_output("mask")
        shape = entry["shape"] if isinstance(entry, dict) else list(entry.shape)
        assert shape == [1, 32, 48]
        for sizes, text in (
            ((PIXELS.nbytes, MASK_BYTES - 1), "takes 1536 bytes"),
            ((PIXELS.nbytes, MASK_BYTES, 4097), "go beyond"),
            ((PIXELS.nbytes + 1, MASK_BYTES), "go beyond"),
            ((PIXELS.nbytes - 1, MASK_BYTES), "takes 4608 bytes"),
        ):
            inputs, outputs = tensors_of(client, *sizes)
            with pytest.raises(InferenceServerException, match=text):
                client.infer("bands", inputs, outputs=outputs)
        del mask
    finally:
        shm.destroy_shared_memory_region(source)
        shm.destroy_shared_memory_region(target)


def test_tritonclient_registers_and_lists(client: Client, create: Callable[[int], str]) -> None:
    key = create(100)
    client.register_system_shared_memory("one", key, 40, offset=60)
    status = client.get_system_shared_memory_status()
    if not isinstance(status, list):
        status = [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.byte_size}
                  for r in status.regions.values()]  # fmt: skip
    assert status == [{"name": "one", "key": key, "offset": 60, "byte_size": 40}]
    with pytest.raises(InferenceServerException, match="registered already"):
        client.register_system_shared_memory("one", key, 40)
    with pytest.raises(InferenceServerException, match="has 100 bytes"):
        client.register_system_shared_memory("two", key, 101)
    client.unregister_system_shared_memory("one")
    with pytest.raises(InferenceServerException, match="'one'"):
        client.get_system_shared_memory_status("one")
    inputs, outputs = tensors_of(client, PIXELS.nbytes, MASK_BYTES)
    with pytest.raises(InferenceServerException, match="no shared memory region 'in'"):
        client.infer("bands", inputs, outputs=outputs)


def test_cuda_shared_memory_is_refused_by_name(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="CUDA shared memory is not supported"):
        client.register_cuda_shared_memory("gpu", b"AAAA", 0, 10)
    client.unregister_cuda_shared_memory()
    status = client.get_cuda_shared_memory_status()
    assert not (status if isinstance(status, list) else status.regions)
    with pytest.raises(InferenceServerException, match="no CUDA shared memory region 'gpu'"):
        client.get_cuda_shared_memory_status("gpu")


@pytest.fixture
def huge(client: Client) -> Iterator[str]:
    """The name of a region of 2 GiB, of which no page is there."""
    path = FOLDER / f"segserve_test_huge_{os.getpid()}"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    try:
        client.register_system_shared_memory("huge", f"/{path.name}", 2 << 30)
        # It stays where it is although it has no name any more.
        path.unlink()
        yield "huge"
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "text"),
    [
        ("UINT8", [1, 32, 48, 3], 2 << 30, "takes 4608 bytes"),
        ("UINT8", [1, 32768, 21845, 3], 2147450880, "does not fit model"),
        ("UINT8", [(2 << 30) - 1], (2 << 30) - 1, "does not fit model"),
        ("FP32", [1, 32, 48, 3], 2 << 30, "does not fit model"),
        ("BYTES", [1], 2 << 30, "max_request_bytes"),
        ("BYTES", [1000], 2 << 30, "batch-size must be <= 4"),
        ("UINT8", [400_000, 32, 48, 3], 1843200000, "batch-size must be <= 4"),
    ],
)
def test_nothing_is_read_that_does_not_fit(
    client: Client,
    huge: str,
    monkeypatch: pytest.MonkeyPatch,
    datatype: str,
    shape: list[int],
    size: int,
    text: str,
) -> None:
    module = CLIENTS["http" if "http" in type(client).__module__ else "grpc"]
    item = module.InferInput("image", shape, datatype)
    item.set_shared_memory(huge, size)

    def read(self: SharedMemory, place: RegionSlice) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(SharedMemory, "read", read)
    with pytest.raises(InferenceServerException, match=text):
        client.infer("bands", [item])


def test_a_region_that_shrinks_while_it_is_registered(client: Client) -> None:
    """The request gets an error; a mapped page would end the server."""
    path = FOLDER / f"segserve_test_shrinks_{os.getpid()}"
    path.write_bytes(PIXELS.tobytes())
    try:
        client.register_system_shared_memory("in", f"/{path.name}", PIXELS.nbytes)
        module = CLIENTS["http" if "http" in type(client).__module__ else "grpc"]
        item = module.InferInput("image", list(PIXELS.shape), "UINT8")
        item.set_shared_memory("in", PIXELS.nbytes)
        assert client.infer("bands", [item]).as_numpy("mask") is not None
        os.truncate(path, 100)
        with pytest.raises(InferenceServerException, match="truncated"):
            client.infer("bands", [item])
        path.write_bytes(PIXELS.tobytes())
        assert client.infer("bands", [item]).as_numpy("mask") is not None
        path.unlink()
        assert client.infer("bands", [item]).as_numpy("mask") is not None
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(("offset", "size"), [(2**63 - 1, 2**63 - 1), (0, 2**63 - 1), (2**62, 1)])
def test_offsets_that_would_overflow(
    client: Client, create: Callable[[int], str], offset: int, size: int
) -> None:
    key = create(100)
    with pytest.raises(InferenceServerException):
        client.register_system_shared_memory("far", key, size, offset=offset)
    client.register_system_shared_memory("near", key, 100)
    inputs, outputs = tensors_of(client, PIXELS.nbytes, MASK_BYTES)
    inputs[0].set_shared_memory("near", size, offset)
    with pytest.raises(InferenceServerException, match="go beyond"):
        client.infer("bands", inputs, outputs=outputs)


def test_another_thread_may_unregister_what_is_being_read(
    memory: SharedMemory, create: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = create(100)
    memory.register("part", key, 0, 100)
    pread = os.pread

    def unregister(descriptor: int, size: int, start: int) -> bytes:
        memory.unregister("part")
        return pread(descriptor, size, start)

    monkeypatch.setattr(os, "pread", unregister)
    assert memory.read(RegionSlice("part", 0, 100)) == bytes(100)
    assert count_handles(key) == 0
