"""HTTP: thin converters over the service and the dataplane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from google.protobuf import json_format
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from serving import mask
from serving.dataplane import Dataplane, ModelMetadata, TensorMetadata
from serving.errors import InvalidRequest, QueueFull, SegserveError
from serving.http_body import read_body, read_image
from serving.http_inference import HEADER_LENGTH, build_infer_response, parse_infer_request
from serving.metrics import Metrics
from serving.palette import format_palette
from serving.protocol import SERVER_NAME, SERVER_VERSION, parse_version
from serving.requests import OutputSize, SegmentOptions, SegmentRequest
from serving.service import Segmenter
from serving.settings import Settings

TIMEOUT_HEADER = "X-Timeout-Ms"
OPTIONS = ("format", "size", "smooth", "confidence", "classes")
FormatName = Literal["png", "overlay", "confidence", "npy", "raw", "stats"]


def build_app(
    segmenter: Segmenter,
    dataplane: Dataplane,
    metrics: Metrics,
    settings: Settings,
    is_ready: Callable[[], bool],
) -> FastAPI:
    """The application; ``/docs`` shows its OpenAPI page."""
    app = FastAPI(title="segserve", version=SERVER_VERSION, redoc_url=None)
    add_error_handlers(app)
    add_health(app, is_ready)
    add_models(app, segmenter, dataplane, is_ready)
    add_segment(app, segmenter, settings)
    add_infer(app, dataplane, settings)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["server"])
    async def show_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def add_error_handlers(app: FastAPI) -> None:
    """Every error is ``{"error": text, "code": name}``."""

    @app.exception_handler(SegserveError)
    async def show_error(request: Request, error: SegserveError) -> JSONResponse:
        headers = {"Retry-After": "1"} if isinstance(error, QueueFull) else None
        return JSONResponse(
            {"error": str(error), "code": error.code}, error.http_status, headers=headers
        )

    @app.exception_handler(RequestValidationError)
    async def show_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        text = f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}"
        return JSONResponse({"error": text, "code": InvalidRequest().code}, 400)

    @app.exception_handler(HTTPException)
    async def show_routing(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        code = str(error.detail).lower().replace(" ", "_")
        return JSONResponse({"error": text, "code": code}, error.status_code)


def add_health(app: FastAPI, is_ready: Callable[[], bool]) -> None:
    """Liveness, readiness and the server's own metadata."""

    @app.get("/v2/health/live", tags=["health"])
    async def live() -> Response:
        """200 while the process answers."""
        return Response()

    @app.get("/v2/health/ready", tags=["health"])
    async def ready() -> Response:
        """200 once all loadable models are warm, 503 before and while draining."""
        return Response(status_code=200 if is_ready() else 503)

    @app.get("/v2", tags=["server"])
    async def metadata() -> JSONResponse:
        """Name, version and extensions of the server."""
        return JSONResponse(
            {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": ["binary_tensor_data"]}
        )


def add_models(
    app: FastAPI, segmenter: Segmenter, dataplane: Dataplane, is_ready: Callable[[], bool]
) -> None:
    """Metadata, configuration, readiness and classes of models."""

    @app.get("/v2/models/{model}", tags=["models"])
    @app.get("/v2/models/{model}/versions/{version}", tags=["models"])
    async def metadata(model: str, version: str = "") -> JSONResponse:
        """Inputs and outputs."""
        return JSONResponse(show_metadata(dataplane.metadata(model, parse_version(version))))

    @app.get("/v2/models/{model}/config", tags=["models"])
    @app.get("/v2/models/{model}/versions/{version}/config", tags=["models"])
    async def config(model: str, version: str = "") -> JSONResponse:
        """The model's ``ModelConfig`` as JSON."""
        message = dataplane.config(model, parse_version(version))
        return JSONResponse(json_format.MessageToDict(message, preserving_proto_field_name=True))

    @app.get("/v2/models/{model}/ready", tags=["models"])
    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["models"])
    async def ready(model: str, version: str = "") -> Response:
        """200 where requests to that model can be answered."""
        loaded = dataplane.is_loaded(model, version) and is_ready()
        return Response(status_code=200 if loaded else 503)

    @app.get("/v2/models/{model}/classes", tags=["models"])
    @app.get("/v2/models/{model}/versions/{version}/classes", tags=["models"])
    async def classes(model: str, version: str = "") -> JSONResponse:
        """Id, name and colour (#rrggbb) of every class."""
        labels = segmenter.registry.get(model, parse_version(version)).labels
        return JSONResponse(
            [
                {"id": index, "name": name, "color": format_palette([color])}
                for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
            ]
        )


def add_segment(app: FastAPI, segmenter: Segmenter, settings: Settings) -> None:
    """An image in, a label map out."""

    @app.post("/v2/models/{model}/segment", tags=["segment"], response_class=Response)
    @app.post(
        "/v2/models/{model}/versions/{version}/segment", tags=["segment"], response_class=Response
    )
    async def segment(
        request: Request,
        model: str,
        version: str = "",
        format: Annotated[FormatName | None, Query(description="beats Accept")] = None,
        size: Annotated[OutputSize, Query(description="of the answer")] = "original",
        smooth: Annotated[bool | None, Query(description="interpolate logits, not ids")] = None,
        confidence: Annotated[bool, Query(description="adds it to stats")] = False,
        classes: Annotated[str | None, Query(description="names or ids, comma-separated")] = None,
    ) -> Response:
        """Segments the image in the body (`curl --data-binary @street.jpg`)."""
        unknown = sorted(set(request.query_params) - set(OPTIONS))
        if unknown:
            raise InvalidRequest(
                f"unknown option {', '.join(unknown)}; known: {', '.join(OPTIONS)}"
            )
        options = SegmentOptions(
            format=format or mask.format_for_accept(request.headers.get("accept", "")) or "png",
            size=size,
            smooth=smooth,
            confidence=confidence,
            classes=tuple(classes.split(",")) if classes is not None else (),
        )
        timeout_s = read_timeout(request)
        data = await read_image(request, settings)
        result = await segmenter.segment(
            SegmentRequest(model, data, options, parse_version(version), timeout_s), "http"
        )
        return Response(
            result.body,
            media_type=result.media_type,
            headers={
                "X-Model-Name": result.model,
                "X-Model-Version": str(result.version),
                "X-Image-Size": str(result.image_size),
                "Server-Timing": result.timings.server_timing,
            },
        )


def add_infer(app: FastAPI, dataplane: Dataplane, settings: Settings) -> None:
    """Open Inference Protocol inference."""

    @app.post("/v2/models/{model}/infer", tags=["inference"], response_class=Response)
    @app.post(
        "/v2/models/{model}/versions/{version}/infer", tags=["inference"], response_class=Response
    )
    async def infer(request: Request, model: str, version: str = "") -> Response:
        """Tensors in, tensors out: JSON or Triton's binary-data extension."""
        body = await read_body(request, settings)
        parsed = parse_infer_request(
            model,
            parse_version(version),
            body,
            request.headers.get(HEADER_LENGTH),
            read_timeout(request),
        )
        response = await dataplane.infer(parsed.request, "http")
        content, header_length = build_infer_response(parsed, response)
        if header_length is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(header_length)},
        )


def read_timeout(request: Request) -> float | None:
    """Seconds from ``X-Timeout-Ms``.

    Raises:
        InvalidRequest: not a positive number.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds < 1e9:
        raise InvalidRequest(f"{TIMEOUT_HEADER}: {text!r} is not a positive number")
    return milliseconds / 1000.0


def show_metadata(found: ModelMetadata) -> dict[str, object]:
    """The protocol's JSON form."""

    def show(tensor: TensorMetadata) -> dict[str, object]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}

    return {
        "name": found.name,
        "versions": list(found.versions),
        "platform": found.platform,
        "inputs": [show(tensor) for tensor in found.inputs],
        "outputs": [show(tensor) for tensor in found.outputs],
    }
