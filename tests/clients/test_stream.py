"""``segment_stream`` of the Python client against the real server, and the example that uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segserve_client import Client, Result, SegserveError

from tests.support.band_model import Served, band_labels, bands, encode, serve_bands

EXAMPLE = Path(__file__).parents[2] / "clients" / "examples" / "stream.py"
# Multiples of the model's size: every label is exact. The first takes longest.
SIZES = ((320, 480), (32, 48), (64, 96), (32, 96), (96, 48), (64, 48))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_bands(tmp_path_factory.mktemp("repository")) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc, model="bands") as client:
        yield client


def check(answer: Result | SegserveError, size: tuple[int, int]) -> None:
    assert isinstance(answer, Result), answer
    assert answer.image_size == size
    assert answer.classes[7] == "band7"
    assert (answer.mask == band_labels(*size)).mean() > 0.95


def test_answers_are_in_the_frames_order_and_errors_in_their_place(client: Client) -> None:
    frames: list[bytes | np.ndarray] = [bands(*size) for size in SIZES]
    frames[2] = b"no image"
    answers = list(client.segment_stream(frames))
    assert len(answers) == len(SIZES)
    refused = answers.pop(2)
    assert isinstance(refused, SegserveError)
    assert (refused.reason, refused.code) == ("invalid_image", "")
    assert str(refused)
    for answer, size in zip(answers, (*SIZES[:2], *SIZES[3:]), strict=True):
        check(answer, size)


def test_options_are_those_of_segment(client: Client) -> None:
    (answer,) = client.segment_stream(
        [bands(64, 96)], size="model", classes=["band2", 5], confidence=True
    )
    assert isinstance(answer, Result)
    assert answer.mask.shape == (32, 48)
    assert set(answer.mask.flat) == {2, 5, 255}
    assert answer.confidence is not None
    assert answer.confidence.shape == (32, 48)
    (plain,) = client.segment_stream([bands(64, 96)])
    assert isinstance(plain, Result)
    assert plain.confidence is None


def test_frames_are_read_as_the_server_takes_them(client: Client) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield np.random.default_rng(read).integers(0, 255, (600, 900, 3), np.uint8)

    answers = client.segment_stream(endless())
    for _ in range(3):
        assert isinstance(next(answers), Result)
    answers.close()
    # Bounded by the server's max_stream_frames and what HTTP/2 holds of these 1.6 MB files.
    assert read < 50


def test_a_frame_that_cannot_be_read_is_raised_after_the_others(
    client: Client, tmp_path: Path
) -> None:
    answers = client.segment_stream([bands(32, 48), tmp_path / "nothing.jpg", bands(32, 48)])
    check(next(answers), (32, 48))
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg"):
        next(answers)


def test_no_server_is_one_error(tmp_path: Path) -> None:
    with (
        Client("127.0.0.1:1", model="bands") as client,
        pytest.raises(SegserveError, match="no segserve answers at 127"),
    ):
        list(client.segment_stream([bands(32, 48)]))


def test_the_example(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, size in enumerate(SIZES[:3]):
        (folder / f"{index}.png").write_bytes(encode(bands(*size)))
    (folder / "1b.txt").write_text("not a frame")
    done = subprocess.run(
        [sys.executable, EXAMPLE, folder, tmp_path / "out", "bands", served.grpc],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "frame 2: " in done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["000000.png", "000001.png", "000003.png"]
    last = np.asarray(Image.open(tmp_path / "out" / "000003.png"))
    assert last.shape == SIZES[2]
