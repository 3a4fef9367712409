"""The parts of the OpenAPI page that FastAPI cannot read off a route: raw bodies, and every error.

FastAPI documents its own validation error, which this server never sends, and takes a route that
reads a raw body for one without a body. So each route states its body and its errors beside its
path, with the functions below.

Source: OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from serving.errors import (
    ClientGone,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    SegserveError,
    TooLarge,
    Unauthenticated,
    Unsupported,
    UnsupportedImageFormat,
    UnsupportedOption,
    UploadTimeout,
)

Json = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

# Errors of every route that reads a body, and of those that run a model.
UPLOAD: Final = (InvalidRequest, UploadTimeout, TooLarge, Unsupported)
WORK: Final = (
    *UPLOAD, ModelNotFound, UnsupportedImageFormat, UnsupportedOption, QueueFull, ClientGone,
    NotReady, DeadlineExceeded, EngineFailed,
)  # fmt: skip
BINARY: Final[Json] = {"schema": {"type": "string", "format": "binary"}}
JSON_BODY: Final[Json] = {"application/json": {"schema": {"type": "object"}}}
TIMEOUT: Final[Json] = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "longest wait for the engine, in milliseconds",
    "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
}
_ERROR: Final[Json] = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    "required": ["error", "code"],
}
# Parameters of the path in one route of a pair; FastAPI takes them for a query's in the other.
_PATH_PARAMETERS: Final = ("model", "version", "region")


def list_errors(*errors: type[SegserveError]) -> Responses:
    """Returns a route's ``responses``: these errors by status, and those of a missing key."""
    by_status: dict[int, set[str]] = {}
    shown: tuple[type[SegserveError], ...] = (*errors, Unauthenticated, QueueFull)
    for error in shown:
        by_status.setdefault(error.http_status, set()).add(error.__doc__ or "")
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        status: {"description": " ".join(sorted(texts)), "content": content}
        for status, texts in by_status.items()
    }


def describe_body(
    content: Mapping[str, Json], *parameters: Json, required: bool = True
) -> dict[str, Any]:
    """Returns a route's ``openapi_extra``: the body it reads by itself, and more parameters."""
    extra: Json = {"requestBody": {"content": dict(content), "required": required}}
    return {**extra, "parameters": list(parameters)} if parameters else extra


def complete_openapi(app: FastAPI) -> None:
    """Lets ``app`` serve the page without what FastAPI adds wrongly; call it after all routes."""
    draw = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            page = draw()
            page.setdefault("components", {})["schemas"] = {"Error": _ERROR}
            for operations in page["paths"].values():
                for operation in operations.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
                    operation["parameters"] = [
                        parameter
                        for parameter in operation.get("parameters", ())
                        if parameter["in"] != "query" or parameter["name"] not in _PATH_PARAMETERS
                    ]
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI's documentation extends it
