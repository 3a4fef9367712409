"""Pages of other addresses that may ask this server from a browser (CORS).

Without it a browser keeps its answers from every page but the server's own. Preflights carry no
key, so this stands before the calls are admitted; what follows one is admitted like any other.

Source: Fetch standard (WHATWG), section 3.2.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from serving.http.inference import HEADER_LENGTH
from serving.http.timeouts import TIMEOUT_HEADER
from serving.settings import Settings

SENT = (
    "Authorization", "X-API-Key", "Content-Type", "X-Request-Id", TIMEOUT_HEADER, HEADER_LENGTH,
)  # fmt: skip
READ = (
    "X-Model-Name", "X-Model-Version", "X-Image-Size", "X-Mask-Size", "Server-Timing",
    "Retry-After", "X-Request-Id", HEADER_LENGTH,
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
