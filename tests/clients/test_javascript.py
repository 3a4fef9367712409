"""The JavaScript client: its own tests, by Node's runner, against real servers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Route

from serving.server import Server
from serving.settings import Settings
from serving.testing import FakeEngine, ServerThread
from tests.support.band_model import (
    MODEL_SIZE,
    bands,
    encode,
    free_ports,
    serve_bands,
    serve_fake,
    write_model,
)
from tests.support.browser import open_browser
from tests.support.own_environment import unavailable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clients" / "javascript"
KEY = "a-key-of-sixteen-characters"
# One call is answered; the next is one too many.
LIMIT = "requests_per_second=0.001"


def find_node() -> str:
    """Node 18 or later."""
    node = shutil.which("node")
    if node is None:
        unavailable("no Node: apt-get install nodejs")
        raise AssertionError
    found = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(found.lstrip("v").split(".")[0]) < 18:
        unavailable(f"Node {found.strip()} is older than 18")
    return node


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Server]]:
    """One that answers, one whose engine never does, and one that asks for a key."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"alice {KEY} {LIMIT}\n")
    with ExitStack() as stack:
        started = {}
        engines = {}
        for name in ("PLAIN", "STUCK", "KEY"):
            write_model(tmp_path / name)
            settings = free_ports(tmp_path / name)
            if name == "KEY":
                settings = settings.model_copy(update={"api_keys_file": keys})
            engines[name] = FakeEngine(MODEL_SIZE)
            started[name] = stack.enter_context(ServerThread(settings, serve_fake(engines[name])))
        engines["STUCK"].hold.clear()
        stack.callback(engines["STUCK"].hold.set)
        yield started


def test_its_own_tests_pass(servers: dict[str, Server], tmp_path: Path) -> None:
    node = find_node()
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(bands(60, 96)))
    urls = {f"URL_{name}": f"http://127.0.0.1:{s.ports.http}" for name, s in servers.items()}
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap"],
        cwd=FOLDER,
        env={**os.environ, **urls, "KEY": KEY, "PHOTO": str(photo)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    counts = dict(re.findall(r"^# (pass|fail|skipped) (\d+)", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(counts["pass"]) >= 20
    assert (counts["fail"], counts["skipped"]) == ("0", "0")


def test_the_declarations_name_what_the_module_exports() -> None:
    declared = re.findall(
        r"^export (?:declare )?class (\w+)", (FOLDER / "segserve.d.ts").read_text(), re.MULTILINE
    )
    listing = f"import('{FOLDER}/segserve.js').then(m => console.log(Object.keys(m).join(' ')))"
    done = subprocess.run([find_node(), "-e", listing], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(declared)


class Files(SimpleHTTPRequestHandler):
    """The client's folder, without a log."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments, directory=FOLDER)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The origin of a page that another server gives, with the client's modules beside it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_runs_in_a_browser(tmp_path: Path) -> None:
    """In a page of the server's own address, as a module; errors and aborting too."""

    def give_module(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        if name == "index.html":
            route.fulfill(body="<!doctype html>", content_type="text/html")
        else:
            route.fulfill(path=FOLDER / name, content_type="text/javascript")

    with serve_bands(tmp_path) as served, open_browser() as browser:
        page = browser.new_page()
        page.route("**/app/*", give_module)
        page.goto(f"http://{served.http}/app/index.html")
        found = page.evaluate(
            """async (bytes) => {
                const { Client, SegserveError } = await import("/app/segserve.js");
                const client = new Client("", { model: "bands" });
                const photo = new Blob([new Uint8Array(bytes)]);
                const result = await client.segment(photo, { confidence: true });
                const picture = new ImageData(result.rgba(), result.width, result.height);
                const error = await client.segment(photo, { model: "unet" }).catch((e) => e);
                const stop = new AbortController();
                stop.abort();
                const ended = await client.models({ signal: stop.signal }).catch((e) => e.name);
                return {
                    mask: [...result.mask], confidence: result.confidence.length,
                    painted: [...picture.data.slice(0, 4)], color: result.classes[0].color,
                    refused: [error instanceof SegserveError, error.code, error.status], ended,
                };
            }""",
            [*encode(bands(24, 48))],
        )
    assert found["mask"] == [x * 8 // 48 for _ in range(24) for x in range(48)]
    assert found["confidence"] == 24 * 48
    assert found["painted"] == [*bytes.fromhex(found["color"][1:]), 255]
    assert found["refused"] == [True, "model_not_found", 404]
    assert found["ended"] == "AbortError"


def test_pages_elsewhere_ask_where_the_setting_names_them(tmp_path: Path, elsewhere: str) -> None:
    """In a browser, from another origin, with a key; and not where it is not named."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"alice {KEY}\n")
    write_model(tmp_path / "repository")

    def settings(*origins: str) -> Settings:
        given = {"api_keys_file": keys, "allowed_origins": frozenset(origins)}
        return free_ports(tmp_path / "repository").model_copy(update=given)

    ask = """async ([server, key, bytes]) => {
        const { Client } = await import("/segserve.js");
        const client = new Client(server, { model: "bands", apiKey: key });
        const result = await client.segment(new Uint8Array(bytes)).catch((error) => error);
        return result.code ?? [result.model, result.width, result.timings.infer > 0];
    }"""
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(f"{elsewhere}/")
        for origins, key, expected in (
            ((elsewhere, "https://other.example"), KEY, ["bands", 48, True]),
            ((elsewhere,), KEY + "x", "unauthenticated"),
            (("https://other.example",), KEY, "unreachable"),
            ((), KEY, "unreachable"),
        ):
            with ServerThread(settings(*origins), serve_fake(FakeEngine(MODEL_SIZE))) as server:
                url = f"http://127.0.0.1:{server.ports.http}"
                found = page.evaluate(ask, [url, key, [*encode(bands(24, 48))]])
            assert found == expected, origins


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a b"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="not a valid origin"):
        Settings(allowed_origins=frozenset([origin]))
