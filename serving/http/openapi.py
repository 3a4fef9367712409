"""What the OpenAPI page says beyond what the routes' signatures do: bodies, and every error.

FastAPI documents its own validation error, which is never sent here, and takes routes that read a
raw body for routes without one.

Source: OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI

from serving.errors import (
    ClientGone,
    DeadlineExceeded,
    EngineFailed,
    InvalidModel,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    RegionExists,
    RegionNotFound,
    SegserveError,
    TooLarge,
    Unauthenticated,
    Unsupported,
    UnsupportedImageFormat,
    UnsupportedOption,
    UploadTimeout,
)
from serving.http.middleware import OPEN_PATHS
from serving.http.options import OPTIONS

Errors = Sequence[type[SegserveError]]
Json = dict[str, Any]

UPLOAD: Errors = (InvalidRequest, UploadTimeout, TooLarge, Unsupported)
WORK: Errors = (
    *UPLOAD, ModelNotFound, UnsupportedImageFormat, UnsupportedOption, QueueFull, ClientGone,
    NotReady, DeadlineExceeded, EngineFailed,
)  # fmt: skip
# By the first tag of a route.
ERRORS: dict[str, Errors] = {
    "models": (InvalidRequest, ModelNotFound, NotReady),
    "segment": WORK,
    "inference": WORK,
    "repository": (*UPLOAD, ModelNotFound, NotReady, InvalidModel, EngineFailed),
    "shared memory": (*UPLOAD, RegionNotFound, RegionExists),
}
BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
JSON_BODY: Json = {"application/json": {"schema": {"type": "object"}}}
IMAGE_BODY: Json = {
    **{f"image/{kind}": BINARY for kind in ("jpeg", "png", "bmp", "webp")},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": {"type": "string", "format": "binary"}},
            "required": ["image"],
            # Fields may be options; an image's part and the option ``image`` share a name.
            "additionalProperties": {"type": "string"},
        }
    },
}
# By the end of a path: what is sent, and whether it must be.
BODIES: dict[str, tuple[Json, bool]] = {
    "/segment": (IMAGE_BODY, True),
    "/infer": ({**JSON_BODY, "application/octet-stream": BINARY}, True),
    "/index": (JSON_BODY, False),
    "/load": (JSON_BODY, False),
    "/unload": (JSON_BODY, False),
    "/register": (JSON_BODY, True),
}
# Answers that are a status alone.
EMPTY = ("/load", "/unload", "/register", "/unregister")
TIMEOUT: Json = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "longest wait for the engine, in milliseconds",
    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
}
ERROR: Json = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    "required": ["error", "code"],
}


def complete_openapi(app: FastAPI) -> None:
    """Has ``app`` serve the completed page; call it once all routes are there."""
    draw = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            page = draw()
            page.setdefault("components", {})["schemas"] = {"Error": ERROR}
            for path, operations in page["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(path: str, operation: Json) -> None:
    end = "/" + path.rpartition("/")[2]
    responses: Json = {"200": operation["responses"]["200"], **dict(_errors(path, operation))}
    if end in EMPTY:
        responses["200"].pop("content", None)
    if end == "/ready":
        responses["503"] = {**responses["200"], "description": "not ready"}
    operation["responses"] = responses
    # A name that is in the path of one route of a pair is no option of the other.
    asked = [p for p in operation.get("parameters", ()) if p["in"] != "query"]
    operation["parameters"] = [*asked, *_options()] if end == "/segment" else asked
    if end in BODIES:
        content, required = BODIES[end]
        operation["requestBody"] = {"content": content, "required": required}
    if end in ("/segment", "/infer"):
        operation["parameters"] = [*operation.get("parameters", ()), TIMEOUT]


def _options() -> Iterator[Json]:
    """The query of ``segment``."""
    for name, option in OPTIONS.items():
        yield {
            "name": name,
            "in": "query",
            "required": False,
            "description": option.description,
            "schema": option.schema,
        }


def _errors(path: str, operation: Json) -> Iterator[tuple[str, Json]]:
    found = list(ERRORS.get(operation["tags"][0], ()))
    if path not in OPEN_PATHS:
        found += [Unauthenticated, QueueFull]
    by_status: dict[int, set[str]] = {}
    for error in found:
        by_status.setdefault(error.http_status, set()).add(error.__doc__ or "")
    for status, texts in sorted(by_status.items()):
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        yield str(status), {"description": " ".join(sorted(texts)), "content": content}
