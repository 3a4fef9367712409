"""Makes ``docs/images/page.png``: the page at ``/`` with the shipped model and a rendered scene.

``python docs/make_page_picture.py`` (extra ``test``; Debian's package ``chromium``).
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from serving.settings import Settings
from serving.testing import ServerThread

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "page.png"
SCENE = ROOT / "tests" / "golden" / "scene.jpg"


def main() -> None:
    """Serves, opens the page, drops the scene, and takes the picture."""
    settings = Settings(
        repository=ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0
    )
    with ServerThread(settings) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 810})
        page.goto(f"http://127.0.0.1:{server.ports.http}/")
        page.set_input_files("#file", SCENE)
        # Not the first answer, which pays for what every first request does.
        expect(page.locator("#facts")).not_to_be_empty()
        page.get_by_label("mean confidence").check()
        expect(page.locator("#legend")).to_contain_text("conf.")
        page.locator("#labels").hover(position={"x": 320, "y": 300})
        shown = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    # Not of 256 colours: some of the legend would become alike.
    shown.convert("RGB").save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
