"""Serves two pages for people: ``/``, to try a model, and ``/docs``, the OpenAPI page.

Each is one file without anything from elsewhere. They hold no data: what ``/`` shows it asks for by
the requests that every client sends, with the key that is typed into it, so the page itself is open
without a key. FastAPI's own ``/docs`` loads Swagger UI from a content delivery network: behind a
firewall it stays blank, and elsewhere it runs a stranger's script beside the server's data.

Source: Content Security Policy Level 3.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

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
    """Returns a policy under which a page runs its own script and style and asks its own server."""
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
    """Returns the digests of the page's only script or style; none where it has none."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert len(contents) < 2
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


Json = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
nav ul { columns: 2; padding-left: 1.2rem; font-size: .9rem; }
section { border-top: 1px solid #8886; margin-top: 1.5rem; }
h2 { margin-top: 2.5rem; text-transform: capitalize; }
h3 { font: 600 1.05rem ui-monospace, monospace; overflow-wrap: anywhere; }
h3 b { padding: .1rem .4rem; border-radius: .3rem; background: #2563eb; color: #fff; }
h3 b.post { background: #15803d; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
tr + tr { border-top: 1px solid #8883; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { overflow-x: auto; padding: .6rem; background: #8882; border-radius: .3rem; }
"""


def add_docs(app: FastAPI) -> None:
    """Serves the page at ``/docs``; it is made once, when it is asked for first."""
    made: list[str] = []

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not made:
            made.append(render(app.openapi()))
        return HTMLResponse(made[0], headers=page_headers(made[0]))


def render(page: Json) -> str:
    """Returns the HTML of an OpenAPI document."""
    by_tag: dict[str, list[tuple[str, str, Json]]] = {}
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    title = f"{page['info']['title']} {page['info']['version']}"
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        '<p>Every operation over HTTP. <a href="/">Try a model</a>; '
        '<a href="/openapi.json">the same as OpenAPI</a>.</p>',
        "<nav><ul>",
    ]
    for operations in by_tag.values():
        lines += [
            f'<li><a href="#{_anchor(method, path)}">{method.upper()} {escape(path)}</a></li>'
            for method, path, _ in operations
        ]
    lines.append("</ul></nav>")
    for tag, operations in by_tag.items():
        lines.append(f"<h2>{escape(tag)}</h2>")
        for method, path, operation in operations:
            lines += _operation(method, path, operation)
    lines.append("</body></html>\n")
    return "\n".join(lines)


def _anchor(method: str, path: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in path)
    return f"{method}{kept}"


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f'<section id="{_anchor(method, path)}">'
    yield f'<h3><b class="{method}">{method.upper()}</b> {escape(path)}</h3>'
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    rows: list[tuple[str, ...]] = [
        (p["name"], p["in"], _describe_schema(p["schema"]), p.get("description", ""))
        for p in operation.get("parameters", ())
    ]
    if rows:
        yield from _table(("name", "in", "value", ""), rows)
    body = operation.get("requestBody")
    if body:
        need = "body" if body.get("required") else "body (may be left out)"
        yield f"<p>{need}: {', '.join(f'<code>{escape(m)}</code>' for m in body['content'])}</p>"
    yield f"<pre>{escape(_curl(method, path, body))}</pre>"
    yield from _table(
        ("status", "content", ""),
        [
            (status, ", ".join(answer.get("content", ())), answer["description"])
            for status, answer in operation["responses"].items()
        ],
    )
    yield "</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in rest)
        yield f"<tr><td><code>{escape(first)}</code></td>{cells}</tr>"
    yield "</table>"


def _describe_schema(schema: Json) -> str:
    """Returns a value in words: its type or choices, its range."""
    if "enum" in schema:
        text = " | ".join(map(str, schema["enum"]))
    elif schema.get("type") == "array":
        text = f"some of {' | '.join(map(str, schema['items']['enum']))}"
    else:
        text = str(schema.get("type", ""))
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        text += f", {low:g} to {high:g}"
    examples = ", ".join(map(str, schema.get("examples", ())))
    return f"{text}, for example {examples}" if examples else text


def _curl(method: str, path: str, body: Json | None) -> str:
    url = "localhost:8000" + path
    for name in ("model", "version", "region"):
        url = url.replace(f"{{{name}}}", name.upper())
    if method == "get":
        return f"curl {url}"
    if body is None:
        return f"curl -X POST {url}"
    if any(media_type.startswith("image/") for media_type in body["content"]):
        return f"curl --data-binary @street.jpg {url}"
    return f"curl -H 'Content-Type: application/json' --data @request.json {url}"
