"""Open Inference Protocol over HTTP: server, models, inference. Thin converters all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serving.errors import InvalidRequest, ModelNotFound, NotReady
from serving.http.body import (
    TIMEOUT_HEADER,
    BodyReader,
    parse_timeout,
    seconds_left,
    while_connected,
)
from serving.http.negotiation import choose_encoding, compress
from serving.http.oip_json import HEADER_LENGTH, InferReader, build_infer_response, read_raw_request
from serving.http.openapi import (
    BINARY,
    JSON_BODY,
    TIMEOUT,
    WORK,
    Responses,
    describe_body,
    list_errors,
)
from serving.models.model import Duration, Model
from serving.models.response_cache import Lookups
from serving.oip.dataplane import Dataplane, ModelMetadata, TensorMetadata
from serving.oip.messages import (
    SERVER_NAME,
    SERVER_VERSION,
    InferRequest,
    InferResponse,
    config_json,
    list_extensions,
)
from serving.parsing import parse_version
from serving.settings import Settings

INFER_ANSWERS: Responses = {
    **list_errors(*WORK),
    200: {
        "description": "the outputs: JSON, or JSON and behind it binary data",
        "content": {"application/json": {}, "application/octet-stream": {}},
    },
}
# The readiness of the server, and of a model.
NOT_READY: Responses = {
    503: {"description": "not ready", "content": {"application/json": {"schema": {}}}}
}
MODEL_ERRORS = list_errors(InvalidRequest, ModelNotFound, NotReady)


def add_health(app: FastAPI, settings: Settings, is_ready: Callable[[], bool]) -> None:
    """Adds liveness, readiness and the server's own metadata."""

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> JSONResponse:
        """200 while the process answers."""
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", tags=["health"], responses=NOT_READY)
    async def ready() -> JSONResponse:
        """200 once all loadable models are warm, 503 before and while draining."""
        found = is_ready()
        return JSONResponse({"ready": found}, 200 if found else 503)

    @app.get("/v2", tags=["server"], responses=list_errors())
    async def metadata() -> JSONResponse:
        """Name, version and extensions of the server."""
        return JSONResponse(
            {
                "name": SERVER_NAME,
                "version": SERVER_VERSION,
                "extensions": list(list_extensions(settings)),
            }
        )


def add_models(app: FastAPI, dataplane: Dataplane, is_ready: Callable[[], bool]) -> None:
    """Adds metadata, configuration, readiness and statistics of models."""
    get = partial(app.get, tags=["models"], responses=MODEL_ERRORS)

    @get("/v2/models/stats")
    async def all_statistics() -> JSONResponse:
        """Counts and durations of every model."""
        return JSONResponse(show_statistics(dataplane.statistics("", None)))

    @get("/v2/models/{model}/stats")
    @get("/v2/models/{model}/versions/{version}/stats")
    async def statistics(model: str, version: str = "") -> JSONResponse:
        """Counts and durations of a model."""
        return JSONResponse(show_statistics(dataplane.statistics(model, parse_version(version))))

    @get("/v2/models/{model}")
    @get("/v2/models/{model}/versions/{version}")
    async def metadata(model: str, version: str = "") -> JSONResponse:
        """Inputs and outputs."""
        return JSONResponse(show_metadata(dataplane.metadata(model, parse_version(version))))

    @get("/v2/models/{model}/config")
    @get("/v2/models/{model}/versions/{version}/config")
    async def config(model: str, version: str = "") -> JSONResponse:
        """The model's ``ModelConfig`` as JSON."""
        return JSONResponse(config_json(dataplane.config(model, parse_version(version))))

    @get("/v2/models/{model}/ready", responses={**MODEL_ERRORS, **NOT_READY})
    @get("/v2/models/{model}/versions/{version}/ready", responses={**MODEL_ERRORS, **NOT_READY})
    async def ready(model: str, version: str = "") -> JSONResponse:
        """200 where requests to that model can be answered."""
        loaded = dataplane.is_loaded(model, parse_version(version)) and is_ready()
        return JSONResponse({"name": model, "ready": loaded}, 200 if loaded else 503)


def add_infer(app: FastAPI, dataplane: Dataplane, bodies: BodyReader) -> None:
    """Adds the inference of the Open Inference Protocol."""
    reader = InferReader(
        dataplane.memory,
        bodies.settings.max_json_bytes,
        partial(bodies.count_ignored, "infer"),
    )

    route = partial(
        app.post,
        tags=["inference"],
        response_class=Response,
        responses=INFER_ANSWERS,
        openapi_extra=describe_body({**JSON_BODY, "application/octet-stream": BINARY}, TIMEOUT),
    )

    @route("/v2/models/{model}/infer")
    @route("/v2/models/{model}/versions/{version}/infer")
    async def infer(request: Request, model: str, version: str = "") -> Response:
        """Tensors in, tensors out: JSON or Triton's binary-data extension."""
        number, began = parse_version(version), perf_counter()
        timeout_s = parse_timeout(request.headers.get(TIMEOUT_HEADER))
        header_length = request.headers.get(HEADER_LENGTH)
        accepted = choose_encoding(request.headers.get("accept-encoding", ""))
        # Its shape says how much data is read.
        found = dataplane.find(model, number, "http")
        body = await bodies.read(request)
        timeout_s = seconds_left(timeout_s, began)
        loop = asyncio.get_running_loop()

        def parse() -> InferRequest:
            if header_length is not None and header_length.strip() == "0":
                return read_raw_request(found, number, body, timeout_s)
            return reader.read(found, number, body, header_length, timeout_s)

        # JSON of a whole image takes a while, in both directions.
        parsed = await loop.run_in_executor(bodies.pool, parse)
        response = await while_connected(request, dataplane.infer(parsed, "http"))
        return await loop.run_in_executor(bodies.pool, answer_infer, response, accepted)


def answer_infer(response: InferResponse, encoding: str | None) -> Response:
    """Returns the answer with its headers, compressed where ``encoding`` is named."""
    content, header_length = build_infer_response(response)
    headers = {}
    if header_length is not None:
        headers[HEADER_LENGTH] = str(header_length)
    if encoding is not None:
        content = compress(content, encoding)
        headers["Content-Encoding"] = encoding
    media_type = "application/json" if header_length is None else "application/octet-stream"
    return Response(content, media_type=media_type, headers=headers)


def show_metadata(found: ModelMetadata) -> dict[str, object]:
    """Returns the protocol's JSON form."""

    def show(tensor: TensorMetadata) -> dict[str, object]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}

    return {
        "name": found.name,
        "versions": list(found.versions),
        "platform": found.platform,
        "inputs": [show(tensor) for tensor in found.inputs],
        "outputs": [show(tensor) for tensor in found.outputs],
    }


def show_statistics(models: list[Model]) -> dict[str, object]:
    """Returns the statistics extension's JSON form."""

    def show(durations: Mapping[str, Duration | Lookups]) -> dict[str, object]:
        return {name: {"count": d.count, "ns": d.ns} for name, d in durations.items()}

    shown = []
    for model in models:
        counts = model.statistics
        kept = model.cache
        cache = {
            "cache_hit": kept.hits if kept else Lookups(),
            "cache_miss": kept.misses if kept else Lookups(),
        }
        shown.append(
            {
                "name": model.name,
                "version": str(model.version),
                "last_inference": counts.last_inference_ms,
                "inference_count": counts.inference_count,
                "execution_count": counts.execution_count,
                "inference_stats": show({**counts.requests, **cache}),
                "response_stats": {},
                "batch_stats": [
                    {"batch_size": size, **show(counts.batches[size])}
                    for size in sorted(counts.batches)
                ],
                "memory_usage": [],
            }
        )
    return {"model_stats": shown}
