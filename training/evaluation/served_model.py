"""A model behind a running server, over HTTP or gRPC: its classes, and label maps of images."""

from __future__ import annotations

import http.client
import io
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image
from segserve_client import Client, Tls
from segserve_client.channel import call_metadata, open_context

from serving.commands.connection import KEY_REMEDY
from serving.palette import LabelMap


class ServerError(Exception):
    """The server rejected a request, answered something else, or cannot be reached."""


class ServedModel(Protocol):
    """A model that turns an encoded image into class ids, uint8 ``[H,W]`` of its own size.

    Threads may share it. ``served`` holds each (model, version) that has answered so far.
    """

    served: set[tuple[str, str]]

    def __call__(self, image: bytes) -> LabelMap: ...

    def classes(self) -> tuple[str, ...]:
        """Returns the class names, by class id."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Access:
    """The credentials that a server may require; the key is in no repr."""

    api_key: str | None = field(default=None, repr=False)
    tls: Tls | None = None


@contextmanager
def open_model(
    server: str, model: str, access: Access, timeout_s: float = 120.0
) -> Iterator[ServedModel]:
    """Opens ``host:port`` or ``http(s)://host:port`` over HTTP, ``grpc://host:port`` over gRPC.

    With ``access.tls`` the first and the last are TLS; ``https://`` is, with or without.

    Raises:
        ServerError: not the address of a server.
        OSError, ValueError: the key, or a file of ``access.tls``, cannot be used.
    """
    opened: ServedModel
    if server.startswith("grpc://"):
        opened = GrpcModel(server.removeprefix("grpc://"), model, access, timeout_s)
    else:
        opened = HttpModel(server, model, access, timeout_s)
    try:
        yield opened
    finally:
        opened.close()


class HttpModel:
    """A model over HTTP, with a connection per request: the server may close an idle one.

    Raises:
        ServerError: not an http(s) address, or a plain one with certificates.
    """

    def __init__(self, server: str, model: str, access: Access, timeout_s: float) -> None:
        scheme = "https" if access.tls else "http"
        url = urlsplit(server if "://" in server else f"{scheme}://{server}")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ServerError(
                f"{server!r} is not the address of a server: expected host:port, "
                "https://host:port or grpc://host:port"
            )
        if url.scheme == "http" and access.tls:
            raise ServerError(f"{server} is plain HTTP: expected https:// with certificates")
        self.server = server
        self.served: set[tuple[str, str]] = set()
        self._path = f"{url.path.rstrip('/')}/v2/models/{quote(model, safe='')}"
        self._url = url
        self._timeout_s = timeout_s
        self._headers = dict(call_metadata(access.api_key))
        self._context = open_context(access.tls or Tls()) if url.scheme == "https" else None

    def __call__(self, image: bytes) -> LabelMap:
        body, headers = self._exchange("POST", "/segment?format=png", image)
        name, version = headers.get("X-Model-Name"), headers.get("X-Model-Version")
        if name and version:
            self.served.add((name, version))
        with Image.open(io.BytesIO(body)) as mask:
            if mask.mode != "P":
                raise ServerError(f"the answer is a PNG of mode {mask.mode}, not an indexed one")
            return np.array(mask)

    def classes(self) -> tuple[str, ...]:
        body, _ = self._exchange("GET", "/classes", None)
        try:
            entries = sorted(json.loads(body), key=lambda entry: int(entry["id"]))
            return tuple(str(entry["name"]) for entry in entries)
        except (ValueError, KeyError, TypeError):
            raise ServerError(
                f"{self.server} did not answer with a list of classes: expected a segserve server"
            ) from None

    def close(self) -> None:
        return

    def _exchange(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[bytes, http.client.HTTPMessage]:
        connection = self._connection()
        try:
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            content = response.read()
        except ssl.SSLError as error:
            raise ServerError(
                f"TLS with {self.server} failed ({error}); --tls-ca names the authority that "
                f"signed its certificate, --tls-certificate and --tls-key the client's own"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"no answer from HTTP server {self.server} ({error or type(error).__name__}); "
                f"is `segserve serve` running there?"
            ) from None
        finally:
            connection.close()
        if response.status != 200:
            remedy = f"; {KEY_REMEDY}" if response.status == 401 else ""
            raise ServerError(
                f"HTTP {response.status} from {self.server}: {_reason(content)}{remedy}"
            )
        return content, response.headers

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(
            host, port, timeout=self._timeout_s, context=self._context
        )


class GrpcModel:
    """A model over gRPC, through the Python client."""

    def __init__(self, address: str, model: str, access: Access, timeout_s: float) -> None:
        self.served: set[tuple[str, str]] = set()
        self._client = Client(address, model, timeout_s, access.api_key, access.tls)

    def __call__(self, image: bytes) -> LabelMap:
        result = self._client.segment(image)
        self.served.add((result.model, str(result.version)))
        return result.mask

    def classes(self) -> tuple[str, ...]:
        return self._client.describe().classes

    def close(self) -> None:
        self._client.close()


def _reason(content: bytes) -> str:
    """Returns the text of an error answer: its JSON field, else the beginning of it."""
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return re.sub(r"\s+", " ", content[:200].decode(errors="replace"))
