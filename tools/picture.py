"""The picture of the page in the README: `make run`, then `python tools/picture.py http://127.0.0.1:8080`."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from trashsorting.data.sample import draw_picture

PICTURE = Path(__file__).parents[1] / "nbs" / "images" / "page.png"
DRAWING = ("paper", 40)


def main(url: str) -> None:
    "Upload a drawing, wait for the verdict, keep what is seen."
    drawn = io.BytesIO()
    draw_picture(*DRAWING, (512, 384)).save(drawn, "PNG")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 960, "height": 800})
        page.goto(url)
        chosen = {"name": "paper.png", "mimeType": "image/png", "buffer": drawn.getvalue()}
        page.get_by_label("Choose photographs").set_input_files(chosen)
        page.locator(".verdict").first.wait_for()
        page.wait_for_timeout(1000)
        seen = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
        browser.close()
    PICTURE.parent.mkdir(exist_ok=True)
    seen.convert("RGB").quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
