"""``segserve segment`` against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segserve_client import Client
from typer import Typer
from typer.testing import CliRunner

from serving.commands.segment import plan_jobs, segment
from tests.support.band_model import CLASSES, band_labels, bands, encode


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "day").mkdir(parents=True)
    for name in ("a.png", "day/a.PNG", "day/b.png"):
        (folder / name).write_bytes(encode(bands(64, 96)))
    (folder / "notes.txt").touch()
    return folder


def call(*arguments: object):
    app = Typer()
    app.command()(segment)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_bands(served, *arguments: object):
    return call("--server", served.grpc, "--model", "bands", *arguments)


def test_a_folder_is_segmented_with_its_subfolders(served, photos, tmp_path):
    out = tmp_path / "out"
    result = call_bands(served, photos, "--format", "png", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"3 written to {out}\n"
    written = sorted(path.relative_to(out) for path in out.rglob("*.png"))
    assert written == [Path("a.png"), Path("day/a.png"), Path("day/b.png")]
    for name in written:
        with Image.open(out / name) as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.asarray(mask), band_labels(64, 96))


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("overlay", "a_overlay.png"),
        ("confidence", "a_confidence.png"),
        ("npy", "a.npy"),
        ("raw", "a.raw"),
        ("stats", "a.json"),
        ("rle", "a_rle.json"),
        ("polygons", "a.geojson"),
    ],
)
def test_every_format_has_its_file(served, photos, tmp_path, format, name):
    out = tmp_path / "out"
    result = call_bands(served, photos / "a.png", "--format", format, "--out", out)
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.iterdir()] == [name]


def test_options_are_sent(served, photos, tmp_path):
    out = tmp_path / "out"
    options = ("--size", "model", "--no-smooth", "--classes", "band1,7", "--format", "stats")
    assert call_bands(served, photos / "a.png", "--out", out, *options).exit_code == 0
    stats = json.loads((out / "a.json").read_text())
    assert (stats["height"], stats["width"]) == (32, 48)
    assert {entry["id"] for entry in stats["classes"] if entry["pixels"]} == {1, 7}


def test_options_of_single_formats_are_sent(served, photos, tmp_path):
    out = tmp_path / "out"
    options = (
        "--format", "overlay,polygons,npy", "--image", "jpeg", "--quality", 60, "--opacity", 0.2,
        "--legend", "--tolerance", 1, "--min-area", 3, "--confidence", "--tta", "flip",
    )  # fmt: skip
    result = call_bands(served, photos / "a.png", "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["a.geojson", "a.npz", "a_overlay.jpg"]
    with Image.open(out / "a_overlay.jpg") as picture:
        assert (picture.format, picture.width) == ("JPEG", 96)
        assert picture.height > 64
    with np.load(out / "a.npz") as arrays:
        assert arrays["confidence"].shape == (64, 96)
    features = json.loads((out / "a.geojson").read_text())["features"]
    assert [feature["properties"]["class_id"] for feature in features] == list(range(8))


def test_a_bad_photo_is_named_and_the_others_are_done(served, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    result = call_bands(served, photos, "--out", out)
    assert result.exit_code == 1
    assert result.stdout == f"3 of 4 written to {out}\n"
    assert f"{photos / 'broken.jpg'}: " in result.stderr
    assert len(list(out.rglob("*.png"))) == 3


def test_what_concerns_every_photo_is_said_once(served, photos, tmp_path):
    result = call("--server", served.grpc, "--model", "unet", photos)
    assert result.exit_code == 1
    assert result.output.count("unet") == 1
    assert call_bands(served, photos, "--format", "gif").output == (
        "segserve segment: --format is 'gif': expected png or overlay or confidence or npy or raw "
        "or stats or rle or polygons\n"
    )


def test_photos_that_differ_in_their_suffix_keep_it(photos):
    (photos / "a.jpg").touch()
    targets = [job.targets[0] for job in plan_jobs([photos], Path("out"), [".npy"])]
    assert targets[:2] == [Path("out/a.jpg.npy"), Path("out/a.png.npy")]


def test_no_answer_takes_the_place_of_a_photo_or_another_answer(photos):
    with pytest.raises(ValueError, match="one of the photos"):
        plan_jobs([photos / "a.png"], photos, [".png"])
    (photos / "day" / "a.png").touch()
    with pytest.raises(ValueError, match="would both be written"):
        plan_jobs([photos / "a.png", photos / "day" / "a.png"], Path("out"), [".json"])


def test_a_folder_without_photos_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no photos .* in {tmp_path}"):
        plan_jobs([tmp_path], Path("out"), [".json"])


def test_answers_below_the_folder_are_not_sent_again(photos):
    out = photos / "out"
    out.mkdir()
    (out / "a_overlay.png").touch()
    assert len(plan_jobs([photos], out, ["_overlay.png"])) == 3


def test_the_client_reads_what_the_server_says(served):
    with Client(served.grpc, "bands") as client:
        client.wait_until_ready(60)
        result = client.segment(bands(64, 96), confidence=True)
    assert np.array_equal(result.mask, band_labels(64, 96))
    assert result.classes == CLASSES
    assert result.confidence is not None
    assert result.confidence.shape == (64, 96)
    assert set(result.timings) >= {"decode", "infer", "encode"}
