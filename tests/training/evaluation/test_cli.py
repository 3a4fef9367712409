"""``segserve evaluate`` against a tiny HTTP server that answers from a folder of label maps."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from serving.formats import png
from serving.palette import load_labels, plte
from training.evaluation.cli import check_classes, evaluate, the_one_served
from training.evaluation.scoring import ScoringError, encode_sample, join_scores, score

LABELS = load_labels("camvid")


class TruthServer(ThreadingHTTPServer):
    """Knows the label map of each image by the hash of its bytes; ``answers`` may be edited."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), TruthHandler)
        self.answers: dict[str, np.ndarray] = {}
        self.classes = list(LABELS.names)
        self.versions = ["2"]
        self.lock = threading.Lock()


class TruthHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.path == "/v2/models/icnet/classes"
        entries = [
            {"id": k, "name": n, "color": "#000000"} for k, n in enumerate(self.server.classes)
        ]
        self.reply(200, json.dumps(entries).encode())

    def do_POST(self):
        assert self.path == "/v2/models/icnet/segment?format=png"
        server = self.server
        with server.lock:
            version = server.versions.pop(0) if len(server.versions) > 1 else server.versions[0]
        image = self.rfile.read(int(self.headers["Content-Length"]))
        mask = server.answers.get(hashlib.sha256(image).hexdigest())
        if mask is None:
            self.reply(400, b'{"error": "not an image", "code": "invalid_image"}')
        else:
            self.reply(200, png.indexed(mask, plte(LABELS.colors, 255)), version)

    def reply(self, status, body, version="2"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model-Name", "icnet")
        self.send_header("X-Model-Version", version)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with TruthServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def camvid(tmp_path, server):
    """Six images of classes 0-3 with some void, all of which the server knows."""
    rng = np.random.default_rng(0)
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
    for k in range(6):
        image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        truth = rng.integers(0, 4, (12, 16), dtype=np.uint8)
        truth[:2] = 11
        path = tmp_path / "val" / f"{k}.png"
        Image.fromarray(image).save(path)
        Image.fromarray(truth).save(tmp_path / "valannot" / f"{k}.png")
        answer = np.where(truth == 11, 0, truth).astype(np.uint8)
        server.answers[hashlib.sha256(path.read_bytes()).hexdigest()] = answer
    return tmp_path


def call(server, root, *arguments):
    app = Typer()
    app.command()(evaluate)
    address = f"127.0.0.1:{server.server_address[1]}"
    common = ["--server", address, "--model", "icnet", "--dataset", "camvid", "--root", str(root)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*common, *arguments])


def test_a_perfect_model_gets_everything(server, camvid, tmp_path):
    result = call(server, camvid, "--json", str(tmp_path / "scores.json"))
    assert result.exit_code == 0, result.output
    assert "images 6  mIoU 100.00 %  pixAcc 100.00 %  mean accuracy 100.00 %" in result.stdout
    assert "boundary F 100.00 % (within 0.75 % of the diagonal)" in result.stdout
    assert "icnet v2, camvid val" in result.stdout
    absent = ", ".join(LABELS.names[4:])
    assert f"left out of the mean (in no label, no answer): {absent}" in result.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["model"], scores["version"], scores["images"]) == ("icnet", "2", 6)
    assert (scores["mean_iou"], scores["pixel_accuracy"]) == (1.0, 1.0)
    assert [entry["iou"] for entry in scores["classes"]] == [1.0] * 4 + [None] * 7


def test_a_model_that_errs_gets_what_it_deserves(server, camvid, tmp_path):
    for mask in server.answers.values():
        mask[mask == 3] = 2
    result = call(server, camvid, "--json", str(tmp_path / "scores.json"))
    assert result.exit_code == 0, result.output
    truth = np.stack([np.array(Image.open(p)) for p in sorted((camvid / "valannot").iterdir())])
    twos, threes = int((truth == 2).sum()), int((truth == 3).sum())
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pixel_accuracy"] == pytest.approx(1 - threes / int((truth != 11).sum()))
    assert scores["mean_iou"] == pytest.approx((1 + 1 + twos / (twos + threes) + 0) / 4)
    assert scores["mean_accuracy"] == pytest.approx(3 / 4)
    counted = int((truth != 11).sum())
    by_class = {entry["id"]: entry for entry in scores["classes"]}
    assert by_class[3]["share"] == pytest.approx(threes / counted)
    assert (by_class[2]["accuracy"], by_class[3]["accuracy"]) == (1, 0)
    assert by_class[4] == {"id": 4, "name": LABELS.names[4], "iou": None, "accuracy": None,
                           "share": 0, "boundary_f": None, "boundary_images": 0}  # fmt: skip
    assert scores["confusion"][3][2] == threes
    assert 0 < scores["mean_boundary_f"] < 1
    assert scores["boundary_tolerance"] == 0.0075
    worst = min(scores["per_image"], key=lambda image: image["mean_iou"])
    assert 0 < worst["mean_iou"] < scores["per_image"][0]["pixel_accuracy"] < 1


def test_limit_takes_the_first(server, camvid):
    assert "images 2 " in call(server, camvid, "--limit", "2").stdout


def test_a_refused_image_ends_the_run_and_is_named(server, camvid):
    (camvid / "val" / "4.png").write_bytes((camvid / "val" / "4.png").read_bytes() + b"x")
    result = call(server, camvid)
    assert result.exit_code == 1
    assert "4.png: HTTP 400 from 127.0.0.1" in result.output
    assert "not an image" in result.output
    assert "mIoU" not in result.stdout


def test_an_answer_of_another_size_is_an_error(server, camvid):
    for key in server.answers:
        server.answers[key] = server.answers[key][:6].copy()
    result = call(server, camvid)
    assert result.exit_code == 1
    assert "0.png: truth (12, 16) and prediction (6, 16) differ" in result.output


def test_classes_are_compared_before_anything_is_sent(server, camvid):
    server.classes[3] = "lamp <post>"
    result = call(server, camvid)
    assert result.exit_code == 0
    assert f"class 3 is {LABELS.names[3]!r} in the dataset and 'lamp <post>'" in result.stderr
    server.classes.append("void")
    result = call(server, camvid)
    assert result.exit_code == 1
    assert "has 12 classes" in result.output
    assert check_classes(("Road",), ("road",)) == ()


def test_a_model_exchanged_meanwhile_is_an_error(server, camvid):
    server.versions = ["2", "2", "3"]
    result = call(server, camvid)
    assert result.exit_code == 1
    assert "icnet v2, icnet v3" in result.output


def test_members_of_a_family_are_all_named():
    answers = SimpleNamespace(served={("icnet", "1"), ("icnet_704x960", "3")})
    assert the_one_served(answers) == ("icnet, icnet_704x960", "1, 3")


def test_everything_is_written(server, camvid, tmp_path):
    for mask in server.answers.values():
        mask[mask == 3] = 2
    output = tmp_path / "out" / "scores"
    result = call(server, camvid, "--output", str(output), "--examples", "1")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == [
        "classes.csv", "confusion.png", "evaluation.json", "examples.png", "images.csv",
    ]  # fmt: skip
    with (output / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(LABELS.names)
    assert (rows[0]["iou"], rows[3]["iou"], rows[4]["iou"]) == ("1.0", "0.0", "")
    with (output / "images.csv").open() as file:
        assert [Path(row["name"]).name for row in csv.DictReader(file)] == [
            f"{k}.png" for k in range(6)
        ]
    scores = json.loads((output / "evaluation.json").read_text())
    assert scores["images"] == len(scores["per_image"]) == 6
    for name in ("confusion.png", "examples.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 300


def test_gluoncvs_mean_counts_absent_classes_as_zero(server, camvid):
    assert "GluonCV's" not in call(server, camvid).stdout
    line = "GluonCV's mIoU (absent classes as 0) 36.36 %"
    assert line in call(server, camvid, "--legacy-miou").stdout


def test_without_boundaries_there_is_no_column(server, camvid):
    assert "boundary" not in call(server, camvid, "--boundary-tolerance", "0").stdout


def test_without_matplotlib_the_extra_is_named_before_anything_is_asked(
    server, camvid, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call(server, camvid, "--output", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "segserve[training]" in result.output
    assert not (tmp_path / "out").exists()
    assert call(server, camvid).exit_code == 0


def test_a_server_and_a_repository_are_too_much(server, camvid, tmp_path):
    result = call(server, camvid, "--repository", str(tmp_path))
    assert result.exit_code == 1
    assert "--server or --repository, not both" in result.output


def test_without_a_server_the_error_says_so(server, camvid):
    app = Typer()
    app.command()(evaluate)
    arguments = ["--model", "icnet", "--dataset", "camvid", "--root", str(camvid)]
    result = CliRunner().invoke(app, [*arguments, "--server", "127.0.0.1:9"])
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.output
    assert "segserve serve" in result.output
    result = CliRunner().invoke(app, [*arguments, "--server", "ftp://there"])
    assert "expected host:port, https://host:port or grpc://host:port" in result.output


class Arrays:
    """A dataset without files: sample k is all class k."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return np.full((4, 5, 3), index, np.uint8), np.full((4, 5), index, np.uint8)

    def name(self, index):
        return f"sample {index}"


def read_red(image: bytes) -> np.ndarray:
    return np.ascontiguousarray(np.array(Image.open(io.BytesIO(image)))[..., 0])


def test_arrays_are_sent_without_loss_a_few_at_a_time():
    busy, most, lock, done = 0, 0, threading.Lock(), []

    def predict(index, image):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        labels = read_red(encode_sample(Arrays(), index, image))
        with lock:
            busy -= 1
        return labels

    scores = score(Arrays(), predict, 9, in_flight=2, on_image=lambda: done.append(1))
    assert [image.index for image in scores.images] == list(range(9))
    assert {(image.mean_iou, image.pixel_accuracy) for image in scores.images} == {(1.0, 1.0)}
    assert scores.confusion.matrix.tolist() == (20 * np.eye(9, dtype=int)).tolist()
    assert len(done) == 9
    assert most <= 2


def test_a_failing_prediction_names_the_sample():
    def predict(index, image):
        labels = image[..., 0].copy()
        if labels[0, 0] == 5:
            raise OSError("gone")
        return labels

    with pytest.raises(ScoringError, match="sample 5: gone"):
        score(Arrays(), predict, 9)
    with pytest.raises(ScoringError, match="sample 7: prediction 7 is not below 7"):
        score(Arrays(), lambda _, image: np.minimum(image[..., 0], 7), 7, range(8))


def test_parts_that_are_scored_apart_add_up():
    def predict(index, image):
        labels = image[..., 0].copy()
        labels[:, : index % 5] = 0
        return labels

    whole = score(Arrays(), predict, 9)
    parts = [score(Arrays(), predict, 9, range(start, 9, 2)) for start in (0, 1)]
    joined = join_scores(parts)
    assert joined.confusion.matrix.tolist() == whole.confusion.matrix.tolist()
    assert joined.images == whole.images
    assert joined.boundary.images.tolist() == whole.boundary.images.tolist()
    np.testing.assert_allclose(joined.boundary.classes, whole.boundary.classes, rtol=1e-12)
