"""TLS and mutual TLS on both ports, with certificates made here."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from segserve_client.proto import segserve_pb2 as pb
from segserve_client.proto import segserve_pb2_grpc

from serving.errors import InvalidSetting
from serving.server import Server
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import MODEL_SIZE, bands, encode, free_ports, serve_fake
from tests.support.certificates import Files, write_certificates

SEGMENT = "/v2/models/bands/segment?format=raw"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def run_server(repository: Path, **paths: Path | float | None) -> Iterator[Server]:
    settings = free_ports(repository).model_copy(update=paths)
    with ServerThread(settings, serve_fake(FakeEngine(MODEL_SIZE))) as server:
        yield server


def post(server: Server, context: ssl.SSLContext) -> httpx.Response:
    url = f"https://localhost:{server.ports.http}{SEGMENT}"
    with httpx.Client(verify=context) as client:
        return client.post(url, content=encode(bands(32, 48)))


def call(server: Server, credentials: grpc.ChannelCredentials) -> pb.DescribeResponse:
    with grpc.secure_channel(f"localhost:{server.ports.grpc}", credentials) as channel:
        stub = segserve_pb2_grpc.SegmenterStub(channel)
        return stub.Describe(pb.DescribeRequest(model="bands"), timeout=60)


def test_both_ports_speak_tls_and_nothing_else(repository: Path, files: Files) -> None:
    with run_server(repository, tls_certificate=files.certificate, tls_key=files.key) as server:
        answer = post(server, ssl.create_default_context(cafile=str(files.ca)))
        assert (answer.status_code, len(answer.content)) == (200, 32 * 48)
        assert call(server, grpc.ssl_channel_credentials(files.ca.read_bytes())).model == "bands"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{server.ports.http}/v2")
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            post(server, ssl.create_default_context())
        old = ssl.create_default_context(cafile=str(files.ca))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert post(server, old).status_code == 200
        # The metrics port stays plain.
        assert httpx.get(f"http://localhost:{server.ports.metrics}/metrics").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_that_stalls_is_ended(repository: Path, files: Files, sent: bytes) -> None:
    paths = {"tls_certificate": files.certificate, "tls_key": files.key}
    with run_server(repository, header_timeout_s=2.0, **paths) as server:
        with socket.create_connection(("127.0.0.1", server.ports.http), timeout=30) as stalled:
            stalled.sendall(sent)
            # asyncio's own limit is 60 s.
            assert stalled.recv(100) == b""
        assert post(server, ssl.create_default_context(cafile=str(files.ca))).status_code == 200


def test_mutual_tls_takes_only_clients_that_the_authority_knows(
    repository: Path, files: Files
) -> None:
    paths = {"tls_certificate": files.certificate, "tls_key": files.key, "tls_client_ca": files.ca}
    with run_server(repository, **paths) as server:
        known = ssl.create_default_context(cafile=str(files.ca))
        known.load_cert_chain(files.client)
        assert post(server, known).status_code == 200
        authority, client = files.ca.read_bytes(), files.client.read_bytes()
        assert call(server, grpc.ssl_channel_credentials(authority, client, client)).version == 1
        with pytest.raises(httpx.TransportError):
            post(server, ssl.create_default_context(cafile=str(files.ca)))
        with pytest.raises(grpc.RpcError) as error:
            call(server, grpc.ssl_channel_credentials(authority))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        stranger = ssl.create_default_context(cafile=str(files.ca))
        trustme.CA().issue_cert("me@there").configure_cert(stranger)
        with pytest.raises(httpx.TransportError):
            post(server, stranger)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"tls_certificate": "certificate"}, "tls_certificate needs tls_key"),
        ({"tls_key": "key"}, "tls_key needs tls_certificate"),
        ({"tls_client_ca": "ca"}, "tls_client_ca needs tls_certificate"),
        ({"tls_certificate": "absent", "tls_key": "key"}, "tls_certificate: cannot read"),
        ({"tls_certificate": "key", "tls_key": "key"}, "tls_certificate: .*no PEM certificate"),
        ({"tls_certificate": "certificate", "tls_key": "absent"}, "tls_key: cannot read"),
        ({"tls_certificate": "certificate", "tls_key": "ca"}, "tls_key: .*is not the unencrypted"),
        # A key, of another certificate.
        ({"tls_certificate": "certificate", "tls_key": "client"}, "tls_key: .*of the certificate"),
        (
            {"tls_certificate": "certificate", "tls_key": "key", "tls_client_ca": "key"},
            "tls_client_ca: .*no PEM certificates",
        ),
    ],
)
def test_wrong_files_are_errors_that_name_the_setting(
    repository: Path, files: Files, given: dict[str, str], text: str
) -> None:
    paths = {name: getattr(files, file, Path("absent.pem")) for name, file in given.items()}
    with pytest.raises(InvalidSetting, match=text), run_server(repository, **paths):
        pass
