"""Builds the HTTP application: its routes, its error handlers, and the pages of other origins.

The routes are thin converters over the service and the dataplane. Where ``allowed_origins`` is
empty a browser keeps the answers from every page but the server's own (CORS). Preflight requests
carry no key, so CORS stands before the middleware that asks for one.

Source: Fetch standard (WHATWG), section 3.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route

from serving.admission.admission import Admission
from serving.errors import InvalidRequest, SegserveError, code_of_http, shorten
from serving.http.body import TIMEOUT_HEADER, BodyReader
from serving.http.middleware import CallMiddleware, route_method, show
from serving.http.oip import MODEL_ERRORS, add_health, add_infer, add_models
from serving.http.oip_json import HEADER_LENGTH
from serving.http.openapi import complete_openapi
from serving.http.page import add_docs, add_page
from serving.http.repository import add_refusals, add_repository, add_shared_memory
from serving.http.segment import add_segment
from serving.observability.metrics import Metrics
from serving.observability.metrics_server import MetricsPage
from serving.observability.middleware import RequestContexts
from serving.observability.request_context import note_error, report_error
from serving.oip.dataplane import Dataplane
from serving.oip.messages import SERVER_VERSION
from serving.palette import format_palette
from serving.parsing import parse_version
from serving.service import Segmenter
from serving.settings import Settings


def build_app(
    segmenter: Segmenter,
    dataplane: Dataplane,
    admission: Admission,
    contexts: RequestContexts,
    metrics: Metrics,
    metrics_page: MetricsPage,
    pool: Executor,
    settings: Settings,
    is_ready: Callable[[], bool],
) -> FastAPI:
    """Returns the application; ``/`` is a page to try a model, ``/docs`` the OpenAPI page."""
    app = FastAPI(title="segserve", version=SERVER_VERSION, docs_url=None, redoc_url=None)
    app.add_middleware(CallMiddleware, contexts=contexts, admission=admission)
    allow_origins(app, settings)
    bodies = BodyReader(settings, pool, metrics.count_ignored)
    add_error_handlers(app)
    add_health(app, settings, is_ready)
    add_models(app, dataplane, is_ready)
    add_classes(app, segmenter)
    add_segment(app, segmenter, bodies)
    add_infer(app, dataplane, bodies)
    add_repository(app, dataplane, bodies)
    add_shared_memory(app, dataplane, bodies)
    add_refusals(app)
    add_page(app)
    add_docs(app)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["server"])
    async def show_metrics() -> Response:
        """Prometheus metrics."""
        # Shared with whoever else waits for it: one that hangs up must not cancel it.
        page = await asyncio.shield(asyncio.wrap_future(metrics_page.ask()))
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    complete_openapi(app)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error's body ``{"error": text, "code": name}``."""

    @app.exception_handler(SegserveError)
    async def show_error(request: Request, error: SegserveError) -> JSONResponse:
        report_error(error, request.path_params.get("model", ""))
        return show(error)

    @app.exception_handler(RequestValidationError)
    async def show_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # After where it stands, the name; then, in a list, its place.
        name = first["loc"][min(1, len(first["loc"]) - 1)]
        text = f"{name}: {first['msg']}, got {first.get('input')!r}"
        note_error(InvalidRequest().code)
        return JSONResponse({"error": text, "code": InvalidRequest().code}, 400)

    @app.exception_handler(HTTPException)
    async def show_routing(request: Request, error: HTTPException) -> Response:
        path = request.scope["path"]
        headers = dict(error.headers or {})
        # The server as a whole, *, has no route.
        methods = find_methods(app, path) if error.status_code in (404, 405) else set()
        if methods:
            headers["Allow"] = ", ".join(sorted(methods))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        why = f"expected {headers['Allow']}" if methods else error.detail
        text = shorten(f"{request.method} {path}: {why}; see /docs")
        code = code_of_http(error.status_code)
        note_error(code)
        return JSONResponse({"error": text, "code": code}, error.status_code, headers=headers)


def find_methods(app: FastAPI, path: str) -> set[str]:
    """Returns the methods that a path is asked by; none where nothing is there."""
    if path == "*":
        return {"GET", "HEAD", "OPTIONS", "POST", "PUT"}
    methods: set[str] = set()
    for route in app.routes:
        scope = {"type": "http", "method": "OPTIONS", "path": path, "root_path": "", "headers": []}
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    # Each is answered by another's route (``http/middleware.py``).
    methods |= {m for m in ("HEAD", "PUT") if methods and route_method(m, path) in methods}
    return methods | {"OPTIONS"} if methods else methods


def add_classes(app: FastAPI, segmenter: Segmenter) -> None:
    """Adds the routes that say what the pixels of an answer mean."""

    get = partial(app.get, tags=["models"], responses=MODEL_ERRORS)

    @get("/v2/models/{model}/classes")
    @get("/v2/models/{model}/versions/{version}/classes")
    async def classes(model: str, version: str = "") -> JSONResponse:
        """Id, name and colour (#rrggbb) of every class."""
        labels = segmenter.describe(model, parse_version(version)).labels
        return JSONResponse(
            [
                {"id": index, "name": name, "color": format_palette([color])}
                for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True))
            ]
        )


SENT = (
    "Authorization", "X-API-Key", "Content-Type", "X-Request-Id", TIMEOUT_HEADER, HEADER_LENGTH,
)  # fmt: skip
READ = (
    "X-Model-Name", "X-Model-Version", "X-Image-Size", "X-Mask-Size", "Server-Timing",
    "Retry-After", "X-Request-Id", HEADER_LENGTH, "X-Cache",
)  # fmt: skip


def allow_origins(app: FastAPI, settings: Settings) -> None:
    """Lets pages of ``allowed_origins`` ask; call it after all other middleware."""
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.allowed_origins),
            allow_methods=("GET", "HEAD", "POST", "PUT"),
            allow_headers=SENT,
            expose_headers=READ,
            max_age=3600,
        )
