"""Every error that the server answers with, each with its HTTP status and gRPC code.

::

    SegserveError                     500  INTERNAL
    ├── InvalidRequest                400  INVALID_ARGUMENT   an option or tensor is wrong
    │   └── InvalidImage              400  INVALID_ARGUMENT   the bytes are no decodable image
    ├── ModelNotFound                 404  NOT_FOUND
    ├── UploadTimeout                 408  DEADLINE_EXCEEDED  the body did not arrive in time
    ├── TooLarge                      413  INVALID_ARGUMENT   bytes or pixels above a limit
    ├── UnsupportedImageFormat        415  INVALID_ARGUMENT   an image, of a format not allowed
    ├── UnsupportedOption             422  FAILED_PRECONDITION  this model cannot do it
    ├── QueueFull                     429  RESOURCE_EXHAUSTED
    ├── NotReady                      503  UNAVAILABLE        loading or draining
    ├── DeadlineExceeded              504  DEADLINE_EXCEEDED
    ├── InvalidModel                  500  INTERNAL           a folder that cannot be served
    └── EngineFailed                  500  INTERNAL           inference raised

The message names the remedy; ``code`` in the JSON answer is the snake-case class name.
"""

from __future__ import annotations

import re

import grpc


class SegserveError(Exception):
    """Base of the tree: ``http_status`` and ``grpc_code`` are what a transport answers."""

    http_status: int = 500
    grpc_code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    @property
    def code(self) -> str:
        """The machine-readable name, e.g. ``model_not_found``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidRequest(SegserveError):
    """An option, header or tensor that this server does not understand."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The bytes are empty, truncated, or no image at all."""


class ModelNotFound(SegserveError):
    """No loaded model has that name or version."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND


class UploadTimeout(SegserveError):
    """The request body did not arrive within the limit."""

    http_status = 408
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class TooLarge(SegserveError):
    """More bytes or pixels than a limit allows; the message names the setting."""

    http_status = 413
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class UnsupportedImageFormat(SegserveError):
    """An image of a format outside the allowed list."""

    http_status = 415
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class UnsupportedOption(SegserveError):
    """A valid option that this model cannot fulfil; the message names the export option."""

    http_status = 422
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class QueueFull(SegserveError):
    """The model's queue is full, by count or by bytes."""

    http_status = 429
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class NotReady(SegserveError):
    """The server is loading or draining."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(SegserveError):
    """The request waited longer than its deadline or the queue timeout."""

    http_status = 504
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class InvalidModel(SegserveError):
    """A model folder that cannot be served; the message names the file and the field."""


class EngineFailed(SegserveError):
    """Inference raised; the other requests are not affected."""
