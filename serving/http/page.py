"""``/``: a page to try a model, one file without anything from elsewhere.

It holds no data: what it shows it asks for by the calls that every client uses, with the key that
is typed into it. So the page itself is open without a key.

Source: Content Security Policy Level 3.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

PAGE = Path(__file__).with_name("page.html")


def add_page(app: FastAPI) -> None:
    """Serves the page at ``/``."""
    text = PAGE.read_text("utf-8")
    headers = {
        "Content-Security-Policy": build_policy(text),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @app.api_route(
        "/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False
    )
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)


def build_policy(text: str) -> str:
    """A policy under which a page runs its own script and style and asks its own server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(text, 'script')}",
            f"style-src {_digest(text, 'style')}",
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digest(text: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
