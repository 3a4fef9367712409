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
    headers = page_headers(text)

    @app.api_route(
        "/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False
    )
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)


def page_headers(text: str) -> dict[str, str]:
    """Returns the headers of an HTML page of this server, which needs nothing from elsewhere."""
    return {
        "Content-Security-Policy": build_policy(text),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def build_policy(text: str) -> str:
    """A policy under which a page runs its own script and style and asks its own server."""
    own = [f"{tag}-src {digest}" for tag in ("script", "style") for digest in _digests(text, tag)]
    return "; ".join(
        (
            "default-src 'none'",
            *own,
            "img-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _digests(text: str, tag: str) -> list[str]:
    """Of the page's only script or style; none where it has none."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert len(contents) < 2
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
