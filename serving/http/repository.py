"""Open Inference Protocol over HTTP: the repository, shared memory, and what is not there.

Source: Triton's extension_model_repository.md, extension_shared_memory.md.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from msgspec import Meta, Raw, Struct

from serving.errors import (
    EngineFailed,
    InvalidModel,
    ModelNotFound,
    NotReady,
    RegionExists,
    RegionNotFound,
    Unsupported,
)
from serving.http.body import BodyReader
from serving.http.oip_json import BOM, NULL, Body, count_ignored, decode, read_parameters
from serving.http.openapi import JSON_BODY, UPLOAD, describe_body, list_errors
from serving.models.index import ModelState
from serving.oip.dataplane import Dataplane
from serving.oip.messages import CUDA_REFUSED, LOG_REFUSED, TRACE_REFUSED
from serving.oip.shared_memory import check_cuda_region

Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Index(Struct, frozen=True):
    ready: bool | None = None


class _Control(Struct, frozen=True):
    parameters: Raw = NULL


class _Region(Struct, frozen=True):
    key: str
    byte_size: Bytes
    offset: Bytes | None = None


async def read_json(request: Request, bodies: BodyReader, kind: type[Body]) -> Body:
    """Returns the JSON body, by default ``{}``. It is short enough to be decoded on the event loop.

    Raises:
        InvalidRequest: broken JSON, or a field that is wrong.
        TooLarge: more than ``max_control_bytes``.
    """
    body = (await bodies.read_control(request)).removeprefix(BOM).strip() or b"{}"
    found = decode(body, kind, request.url.path)
    bodies.count_ignored("control", count_ignored(body, kind))
    return found


def add_repository(app: FastAPI, dataplane: Dataplane, bodies: BodyReader) -> None:
    """Adds the index of the repository, and loading and unloading of its models."""

    post = partial(
        app.post,
        tags=["repository"],
        responses=list_errors(*UPLOAD, ModelNotFound, NotReady, InvalidModel, EngineFailed),
        openapi_extra=describe_body(JSON_BODY, required=False),
    )

    @post("/v2/repository/index")
    async def index(request: Request) -> JSONResponse:
        """Every model of the repository with its state; `{"ready": true}`: the loaded ones."""
        asked = await read_json(request, bodies, _Index)
        states = await dataplane.index(ready=bool(asked.ready))
        return JSONResponse([show_state(state) for state in states])

    @post("/v2/repository/models/{model}/load", response_class=Response)
    async def load(request: Request, model: str) -> Response:
        """Loads a model, or loads it anew (setting `enable_model_control`)."""
        asked = await read_json(request, bodies, _Control)
        await dataplane.load(model, tuple(read_parameters(request.url.path, asked.parameters)))
        return Response(media_type="application/json")

    @post("/v2/repository/models/{model}/unload", response_class=Response)
    async def unload(request: Request, model: str) -> Response:
        """Unloads a model once its requests are answered (setting `enable_model_control`)."""
        asked = await read_json(request, bodies, _Control)
        read_parameters(request.url.path, asked.parameters)
        await dataplane.unload(model)
        return Response(media_type="application/json")


def show_state(state: ModelState) -> dict[str, str]:
    """Returns the extension's JSON form, without what is empty."""
    fields = {"version": state.version, "state": state.state, "reason": state.reason}
    return {"name": state.name, **{name: text for name, text in fields.items() if text}}


def add_shared_memory(app: FastAPI, dataplane: Dataplane, bodies: BodyReader) -> None:
    """Adds system shared memory, and CUDA shared memory, of which there never is any."""
    memory = dataplane.memory
    errors = list_errors(*UPLOAD, RegionNotFound, RegionExists)
    get = partial(app.get, tags=["shared memory"], responses=errors)
    post = partial(app.post, tags=["shared memory"], responses=errors, response_class=Response)
    register_body = describe_body(JSON_BODY)

    @get("/v2/systemsharedmemory/status")
    @get("/v2/systemsharedmemory/region/{region}/status")
    async def status(region: str = "") -> JSONResponse:
        """The registered regions."""
        return JSONResponse(
            [
                {"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.size}
                for r in memory.status(region)
            ]
        )

    @post("/v2/systemsharedmemory/region/{region}/register", openapi_extra=register_body)
    async def register(request: Request, region: str) -> Response:
        """Opens POSIX shared memory under a name (setting `enable_shared_memory`)."""
        asked = await read_json(request, bodies, _Region)
        memory.register(region, asked.key, asked.offset or 0, asked.byte_size)
        return Response(media_type="application/json")

    @post("/v2/systemsharedmemory/unregister")
    @post("/v2/systemsharedmemory/region/{region}/unregister")
    async def unregister(region: str = "") -> Response:
        """Forgets one region, or all."""
        memory.unregister(region)
        return Response(media_type="application/json")

    @get("/v2/cudasharedmemory/status")
    @get("/v2/cudasharedmemory/region/{region}/status")
    async def cuda_status(region: str = "") -> JSONResponse:
        """There is none."""
        check_cuda_region(region)
        return JSONResponse([])

    @post("/v2/cudasharedmemory/unregister")
    @post("/v2/cudasharedmemory/region/{region}/unregister")
    async def cuda_unregister(region: str = "") -> Response:
        """Nothing to forget."""
        return Response(media_type="application/json")

    @post("/v2/cudasharedmemory/region/{region}/register", openapi_extra=register_body)
    async def cuda_register(region: str) -> Response:
        """Refused: images and masks are in the host's memory."""
        raise Unsupported(CUDA_REFUSED)


def add_refusals(app: FastAPI) -> None:
    """Extensions of Triton that are refused by name."""

    @app.api_route("/v2/trace/setting", methods=["GET", "POST"], include_in_schema=False)
    @app.api_route(
        "/v2/models/{model}/trace/setting", methods=["GET", "POST"], include_in_schema=False
    )
    async def trace(model: str = "") -> Response:
        raise Unsupported(TRACE_REFUSED)

    @app.api_route("/v2/logging", methods=["GET", "POST"], include_in_schema=False)
    async def logging() -> Response:
        raise Unsupported(LOG_REFUSED)
