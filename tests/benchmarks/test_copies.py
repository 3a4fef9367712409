"""Between socket and socket nothing is copied or converted that need not be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.studies.copies import Step, table, trace_request, write_small_model
from serving.imaging.geometry import Size
from serving.preparation import Views

SIZE = Size(512, 1024)
PIXELS = SIZE.height * SIZE.width
NOISE = 200_000


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_small_model(folder, SIZE)
    return folder


def jpeg(size: Size) -> bytes:
    patches = np.random.default_rng(3).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(patches).resize((size.width, size.height)).save(file, "JPEG")
    return file.getvalue()


def trace(repository: Path, size: Size) -> dict[str, Step]:
    return {step.stage: step for step in trace_request(repository, jpeg(size))}


def test_every_stage_reads_what_the_one_before_wrote(repository: Path) -> None:
    steps = trace(repository, SIZE)
    assert list(steps) == [
        "receive", "decode", "preprocess", "infer", "restore", "encode", "send",
    ]  # fmt: skip
    assert all(step.reads_result for step in steps.values()), table(list(steps.values()))
    assert steps["decode"].result == 3 * PIXELS
    # Other threads allocate, too: chunks of what is received.
    assert steps["decode"].beyond < NOISE
    assert steps["preprocess"].written < NOISE
    assert steps["infer"].result == 4 * 19 * PIXELS // 16
    assert steps["infer"].beyond < NOISE
    assert steps["restore"].result == PIXELS
    # The loop's scratch and each pixel's place in the logits.
    assert steps["restore"].beyond < 0.5 * PIXELS
    # PNG's filter writes every row once, a byte longer; ISA-L's own state is 0.3 MB.
    assert steps["encode"].beyond < PIXELS + 300_000 + NOISE
    assert steps["send"].written < NOISE


def test_a_photo_of_another_size_is_resized_once(repository: Path) -> None:
    photo = Size(600, 1100)
    steps = trace(repository, photo)
    assert steps["decode"].result == 3 * photo.height * photo.width
    assert steps["preprocess"].result == 3 * PIXELS
    assert steps["preprocess"].beyond < NOISE
    assert steps["infer"].reads_result
    assert steps["restore"].result == photo.height * photo.width


def test_a_copy_that_somebody_adds_is_seen(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = Views.pixels
    monkeypatch.setattr(Views, "pixels", lambda views, index: pixels(views, index).copy())
    steps = trace(repository, SIZE)
    assert not steps["infer"].reads_result
