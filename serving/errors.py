"""Every error that the server answers with, each with its HTTP status and gRPC code.

::

    SegserveError                     500  INTERNAL
    ├── InvalidRequest                400  INVALID_ARGUMENT   an option or tensor is wrong
    │   └── InvalidImage              400  INVALID_ARGUMENT   the bytes are not a decodable image
    ├── Unauthenticated               401  UNAUTHENTICATED    no key, or one that is not known
    ├── ModelNotFound                 404  NOT_FOUND
    ├── RegionNotFound                404  NOT_FOUND          no shared memory of that name
    ├── ServiceNotFound               404  NOT_FOUND          health of a service not served
    ├── UploadTimeout                 408  DEADLINE_EXCEEDED  the body did not arrive in time
    ├── RegionExists                  409  ALREADY_EXISTS     shared memory registered before
    ├── TooLarge                      413  INVALID_ARGUMENT   bytes or pixels above a limit
    ├── UnsupportedImageFormat        415  INVALID_ARGUMENT   an image, of a format not allowed
    ├── HeaderTooLarge                431  RESOURCE_EXHAUSTED  metadata above a limit
    ├── UnsupportedOption             422  FAILED_PRECONDITION  this model cannot do it
    ├── TooManyRequests               429  RESOURCE_EXHAUSTED  valid, at a bad time: Retry-After
    │   ├── QueueFull                 429  RESOURCE_EXHAUSTED
    │   │   └── PredictedLate         429  RESOURCE_EXHAUSTED  the deadline cannot be met
    │   └── KeyLimitExceeded          429  RESOURCE_EXHAUSTED  the key's own rate or concurrency
    ├── ClientGone                    499  CANCELLED          the client has disconnected
    ├── Unsupported                   501  UNIMPLEMENTED      not in this server, or switched off
    ├── NotReady                      503  UNAVAILABLE        loading or draining
    ├── DeadlineExceeded              504  DEADLINE_EXCEEDED
    ├── InvalidSetting                500  INTERNAL           a file that a setting names is wrong
    ├── InvalidModel                  500  INTERNAL           a folder that cannot be served
    ├── EngineFailed                  500  INTERNAL           inference raised
    └── Internal                      500  INTERNAL           a defect; the log has its cause

The message names the remedy; ``code`` in the JSON answer is the snake-case class name.
"""

from __future__ import annotations

import math
import re
from typing import Final

import grpc

CANCELLED = "cancelled"
INTERNAL = "internal"
# Of segserve_engine_failures_total.
ENGINE_FAILURES = ("failed", "not_finite", "wrong_answer", "timeout", "died")
# Longer texts echo what a stranger sent; over gRPC they would not fit into a client's metadata.
MAX_ERROR_TEXT: Final = 2000
_KEPT_END: Final = 500


def shorten(text: str, limit: int = MAX_ERROR_TEXT) -> str:
    """Returns ``text``, or where it is longer than ``limit`` characters its beginning and its end,
    where the remedy stands."""
    if len(text) <= limit:
        return text
    end = min(_KEPT_END, limit // 4)
    note = f" ... ({len(text) - limit} more characters) ... "
    return text[: max(0, limit - end - len(note))] + note + text[-end:]


def drop_traceback(error: BaseException) -> None:
    """Takes the frames from an error that has been handled, and from those that led to it.

    A future or call that holds its error is mostly held by a frame in that error's traceback: the
    request and its images would stay in memory until a rare collection of such cycles.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            left += (one.__cause__, one.__context__)


class SegserveError(Exception):
    """The base of the tree: ``http_status`` and ``grpc_code`` are what a transport answers.

    Args:
        reason: of ``segserve_rejected_total``, where a limit that is counted nowhere else is the
            cause. It is counted where the answer is written.

    A text that is longer than ``MAX_ERROR_TEXT`` loses its middle.
    """

    http_status: int = 500
    grpc_code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def __init__(self, text: str = "", *, reason: str = "") -> None:
        super().__init__(shorten(text))
        self.reason = reason

    @property
    def is_failure(self) -> bool:
        """Returns whether a valid request got no answer: a full queue, a deadline that passed, an
        engine that failed."""
        return self.http_status == 429 or self.http_status >= 500

    @property
    def code(self) -> str:
        """Returns the machine-readable name, e.g. ``model_not_found``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidRequest(SegserveError):
    """An option, header or tensor that this server does not understand."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidImage(InvalidRequest):
    """The bytes are empty, truncated, or not an image."""


class Unauthenticated(SegserveError):
    """The request carries no key, or one that is not in ``api_keys_file``."""

    http_status = 401
    grpc_code = grpc.StatusCode.UNAUTHENTICATED


class ModelNotFound(SegserveError):
    """No loaded model has that name or version."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND


class RegionNotFound(SegserveError):
    """No shared memory is registered under that name."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND


class ServiceNotFound(SegserveError):
    """The health check names a gRPC service that this server does not have."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND


class RegionExists(SegserveError):
    """Shared memory is registered under that name already."""

    http_status = 409
    grpc_code = grpc.StatusCode.ALREADY_EXISTS


class UploadTimeout(SegserveError):
    """The request body did not arrive within the limit."""

    http_status = 408
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class TooLarge(SegserveError):
    """More bytes or pixels than a limit allows; the message names the setting."""

    http_status = 413
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class HeaderTooLarge(SegserveError):
    """A gRPC call's metadata is longer than allowed; HTTP's connection refuses headers itself."""

    http_status = 431
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnsupportedImageFormat(SegserveError):
    """An image of a format outside the allowed list."""

    http_status = 415
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class UnsupportedOption(SegserveError):
    """A valid option that this model cannot fulfil; the message names the export option."""

    http_status = 422
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class TooManyRequests(SegserveError):
    """The request is valid, but comes at a bad time.

    ``retry_after_s`` is when there may be room, None where nothing is known yet.
    """

    http_status = 429
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, text: str, retry_after_s: float | None = None, *, reason: str = "") -> None:
        super().__init__(text, reason=reason)
        self.retry_after_s = retry_after_s

    @property
    def retry_after(self) -> str:
        """Returns the value of the header ``Retry-After``: whole seconds, at least one."""
        return str(max(1, math.ceil(self.retry_after_s or 0.0)))


class QueueFull(TooManyRequests):
    """The model's queue is full, by count or by bytes."""


class PredictedLate(QueueFull):
    """The request is refused at once: its answer would come after its deadline."""


class KeyLimitExceeded(TooManyRequests):
    """The API key sends more than its own limits allow."""


class ClientGone(SegserveError):
    """The client closed the connection before it was answered; its work was cancelled."""

    # No standard status says it; nginx's is what dashboards know.
    http_status = 499
    grpc_code = grpc.StatusCode.CANCELLED

    @property
    def code(self) -> str:
        """Returns one word for it over both transports, in the log and in the metrics."""
        return CANCELLED


class Unsupported(SegserveError):
    """A part of a protocol that this server does not have, or that a setting keeps off."""

    http_status = 501
    grpc_code = grpc.StatusCode.UNIMPLEMENTED


class NotReady(SegserveError):
    """The server is loading or draining."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(SegserveError):
    """The request waited longer than its deadline or the queue timeout."""

    http_status = 504
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED


class InvalidSetting(SegserveError):
    """A file that a setting names cannot be used; the message names the setting and the file."""


class InvalidModel(SegserveError):
    """A model folder that cannot be served; the message names the file and the field."""


class EngineFailed(SegserveError):
    """Inference raised, or its answer is not finite or not of the model's contract.

    Args:
        kind: of ``segserve_engine_failures_total``, one of :data:`ENGINE_FAILURES`.
    """

    def __init__(self, text: str = "", *, kind: str = "failed") -> None:
        super().__init__(text)
        self.kind = kind


class Internal(SegserveError):
    """A defect of the server; the cause is in its log, under the request's id."""

    TEXT: Final = "the server failed; its log has the cause under the id in x-request-id"

    def __init__(self, text: str = TEXT) -> None:
        super().__init__(text)


# Of what no error class of ours says: unknown routes and methods, and a defect.
OTHER_CODES = ("not_found", "method_not_allowed", INTERNAL)


def list_codes() -> tuple[str, ...]:
    """Returns every code of an error, as answers, the access log and the metrics have it.

    ``segserve_requests_total`` has ``ok`` beside these.
    """
    known, classes = set(OTHER_CODES), [SegserveError]
    while classes:
        below = classes.pop().__subclasses__()
        known |= {error("").code for error in below}
        classes += below
    return tuple(sorted(known))


_OF_HTTP = {
    404: "not_found",
    405: "method_not_allowed",
    408: "upload_timeout",
    413: "too_large",
    431: "header_too_large",
    499: CANCELLED,
    501: "unsupported",
    503: "not_ready",
    504: "deadline_exceeded",
}
_OF_GRPC = {
    "CANCELLED": CANCELLED,
    "NOT_FOUND": "not_found",
    "DEADLINE_EXCEEDED": "deadline_exceeded",
    "UNAUTHENTICATED": "unauthenticated",
    "RESOURCE_EXHAUSTED": "too_many_requests",
    "UNIMPLEMENTED": "unsupported",
    "UNAVAILABLE": "not_ready",
    "UNKNOWN": INTERNAL,
    "INTERNAL": INTERNAL,
    "DATA_LOSS": INTERNAL,
}


def code_of_http(status: int) -> str:
    """Returns the code of an answer of 400 or more that no error of ours made."""
    return _OF_HTTP.get(status, "invalid_request" if status < 500 else INTERNAL)


def code_of_grpc(status: str) -> str:
    """Returns the code of a call that ended with that status, and with no error of ours."""
    return _OF_GRPC.get(status, "invalid_request")
