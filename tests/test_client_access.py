"""API keys and certificates from the callers' side: the client and two commands, one real server
that asks for both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result as Finished
from PIL import Image
from segserve_client import Client, SegserveError, Tls
from typer import Typer
from typer.testing import CliRunner

from serving.commands.segment import segment
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    CLASSES,
    MODEL_SIZE,
    Served,
    band_labels,
    bands,
    encode,
    free_ports,
    serve_bands,
    serve_fake,
    write_model,
)
from tests.support.certificates import Files, write_certificates
from training.evaluation.cli import evaluate
from training.evaluation.served_model import Access

KEY, WRONG = "alice-0123456789", "wrong-9876543210"
PHOTO = encode(bands(64, 96))


@dataclass(frozen=True)
class Guarded:
    """A server with keys and mutual TLS, and the files that its clients need."""

    files: Files
    mutual: Served

    @property
    def grpc(self) -> str:
        return f"localhost:{self.mutual.server.ports.grpc}"

    @property
    def http(self) -> str:
        return f"localhost:{self.mutual.server.ports.http}"

    @property
    def tls(self) -> Tls:
        return Tls(self.files.ca, self.files.client)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-ca", str(self.files.ca), "--tls-certificate", str(self.files.client))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    repository = folder / "repository"
    write_model(repository)
    files = write_certificates(folder)
    (folder / "keys.txt").write_text(f"alice {KEY}\n")
    settings = free_ports(repository).model_copy(
        update={
            "api_keys_file": folder / "keys.txt",
            "tls_certificate": files.certificate,
            "tls_key": files.key,
            "tls_client_ca": files.ca,
        }
    )
    engine = FakeEngine(MODEL_SIZE)
    with ServerThread(settings, serve_fake(engine)) as server:
        yield Guarded(files, Served(server, engine))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A dataset of one photo, whose truth is what the model answers."""
    root = tmp_path / "photos"
    for name in ("images", "masks"):
        (root / name / "val").mkdir(parents=True)
    (root / "labels.txt").write_text("\n".join(CLASSES))
    (root / "images/val/a.png").write_bytes(PHOTO)
    Image.fromarray(band_labels(64, 96)).save(root / "masks/val/a.png")
    return root


def invoke(
    command: Callable[..., None], *arguments: object, environment: dict[str, str] | None = None
) -> Finished:
    app = Typer()
    app.command()(command)
    # None takes a key of the caller's own environment away.
    env = {"SEGSERVE_API_KEY": None, **(environment or {})}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def test_every_call_carries_the_key(guarded: Guarded) -> None:
    with Client(guarded.grpc, "bands", api_key=KEY, tls=guarded.tls) as client:
        client.wait_until_ready(60)
        assert client.describe().classes == CLASSES
        assert np.array_equal(client.segment(PHOTO).mask, band_labels(64, 96))
        assert client.encode(PHOTO, "raw") == band_labels(64, 96).tobytes()
        (result,) = client.segment_stream([PHOTO])
        assert not isinstance(result, SegserveError)
        assert np.array_equal(result.mask, band_labels(64, 96))
        assert KEY not in repr(client)


@pytest.mark.parametrize(("key", "text"), [(None, "no API key"), (WRONG, "unknown API key")])
def test_a_call_without_a_known_key_names_the_argument(
    guarded: Guarded, key: str | None, text: str
) -> None:
    with Client(guarded.grpc, "bands", api_key=key, tls=guarded.tls) as client:
        for call in (
            client.describe,
            lambda: client.segment(PHOTO),
            lambda: list(client.segment_stream([PHOTO])),
        ):
            with pytest.raises(SegserveError, match=rf"{text}.*api_key\)") as error:
                call()
            assert (error.value.code, error.value.reason) == ("UNAUTHENTICATED", "unauthenticated")
            assert WRONG not in str(error.value)


def check_refused(address: str, tls: Tls | None, text: str) -> None:
    with (
        Client(address, "bands", api_key=KEY, tls=tls) as client,
        pytest.raises(SegserveError, match=text) as error,
    ):
        client.describe()
    assert error.value.code == "UNAVAILABLE"
    assert KEY not in str(error.value)


def test_a_connection_that_the_server_refuses_names_what_it_lacks(
    guarded: Guarded, tmp_path: Path
) -> None:
    stranger = write_certificates(tmp_path)
    for tls, text in (
        (None, "closed the connection .*tls: ca, certificate, key"),
        (Tls(guarded.files.ca), "closed the connection"),
        (replace(guarded.tls, ca=stranger.ca), "CERTIFICATE_VERIFY_FAILED.*tls: ca"),
    ):
        check_refused(guarded.grpc, tls, text)
    with serve_bands(tmp_path / "plain") as plain:
        check_refused(
            plain.grpc, Tls(guarded.files.ca), "leave tls out if the server does not use it"
        )


def test_wrong_files_and_keys_are_errors_before_any_call(guarded: Guarded) -> None:
    files = guarded.files
    for tls, text in (
        (Tls(Path("absent.pem")), "absent.pem"),
        (Tls(files.key), "holds no PEM certificates"),
        (Tls(files.ca, None, files.key), "has no certificate"),
        (Tls(files.ca, files.certificate), "not a PEM certificate and its unencrypted key"),
        (
            Tls(files.ca, files.certificate, files.client),
            "not a PEM certificate and its unencrypted",
        ),
    ):
        with pytest.raises((OSError, ValueError), match=text):
            Client(guarded.grpc, tls=tls)
    for key in ("", f"{KEY}\n", f"{KEY} ", f"{KEY}é"):
        with pytest.raises(ValueError, match="API key") as error:
            Client(guarded.grpc, api_key=key)
        assert KEY not in str(error.value)
    assert KEY not in repr(Access(KEY))


def test_segment_sends_key_and_certificate(guarded: Guarded, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        photos / "images", "--model", "bands", "--server", guarded.grpc, "--format", "raw",
        "--out", out, *guarded.options,
    )  # fmt: skip
    for key in ((), ("--api-key", WRONG)):
        result = invoke(segment, *command, *key)
        assert result.exit_code == 1
        assert "--api-key or SEGSERVE_API_KEY" in result.output
        assert WRONG not in result.output
    assert not out.exists()
    result = invoke(segment, *command, environment={"SEGSERVE_API_KEY": KEY})
    assert result.exit_code == 0, result.output
    assert (out / "val/a.raw").read_bytes() == band_labels(64, 96).tobytes()
    (out / "val/a.raw").unlink()
    assert invoke(segment, *command, "--api-key", KEY).exit_code == 0
    assert (out / "val/a.raw").exists()
    result = invoke(segment, *command, "--tls-key", "absent.pem")
    assert result.exit_code == 1
    assert "absent.pem" in result.output


@pytest.mark.parametrize("scheme", ["", "https://", "grpc://"])
def test_evaluate_sends_key_and_certificate(
    guarded: Guarded, photos: Path, tmp_path: Path, scheme: str
) -> None:
    server = scheme + (guarded.grpc if scheme == "grpc://" else guarded.http)
    scores = tmp_path / "scores.json"
    command = (
        "--model", "bands", "--dataset", "folder", "--root", photos, "--server", server,
        "--json", scores,
    )  # fmt: skip
    for key in ((), ("--api-key", WRONG)):
        result = invoke(evaluate, *command, *guarded.options, *key)
        assert result.exit_code == 1
        assert "--api-key or SEGSERVE_API_KEY" in result.output
        assert WRONG not in result.output
    key = {"SEGSERVE_API_KEY": KEY}
    result = invoke(evaluate, *command, *guarded.options, environment=key)
    assert result.exit_code == 0, result.output
    assert json.loads(scores.read_text())["mean_iou"] == 1.0
    assert KEY not in scores.read_text() + result.output


def test_evaluate_says_what_is_wrong_with_the_connection(guarded: Guarded, photos: Path) -> None:
    command = ("--model", "bands", "--dataset", "folder", "--root", photos, "--api-key", KEY)
    authority = ("--tls-ca", guarded.files.ca)
    for rest, text in (
        (("--server", f"https://{guarded.http}"), "certificate verify failed.*--tls-ca"),
        (("--server", f"http://{guarded.http}", *authority), "is plain HTTP"),
        (("--repository", photos, *authority), "are for --server"),
        (("--server", guarded.http, "--tls-ca", guarded.files.key), "holds no PEM certificates"),
    ):
        result = invoke(evaluate, *command, *rest)
        assert result.exit_code == 1
        assert re.search(text, result.output), result.output
