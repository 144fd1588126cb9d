"""The page in a real browser: a window, what went on behind it, and answers in place of the service's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from conftest import encode
from playwright.sync_api import Browser, Locator, Page, Route, expect

from trashsorting.data.sample import draw_picture

ARTIFACTS = Path(os.environ.get("ARTIFACTS", Path(__file__).parents[2] / "artifacts"))
expect.set_options(timeout=30_000)  # A machine may be busy.
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 740}}


@dataclass
class Visit:
    """The page in a window, and what went on behind it."""

    page: Page
    name: str
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def upload(self, **files: bytes) -> None:
        """Choose files at once; a keyword is the name without its suffix."""
        chosen = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": data} for name, data in files.items()]
        self.page.locator("#file").set_input_files(chosen)

    def drop(self, path: Path) -> None:
        """Drop a file or a folder on the page, as from a desktop."""
        devtools = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for step in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": step, "x": 150, "y": 250, "data": data})

    def card(self, name: str = "glass") -> Locator:
        """The picture of that name in the list."""
        return self.page.get_by_role("listitem", name=f"{name}.png", exact=True)

    def shoot(self, what: str) -> None:
        """Save a screenshot of the whole page. Playwright's own full page ignores that the window is a phone's."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        height = self.page.evaluate("document.documentElement.scrollHeight")
        self.page.set_viewport_size({"width": size["width"], "height": max(height, size["height"])})
        self.page.screenshot(path=ARTIFACTS / f"page-{self.name}-{what}.png", animations="disabled")
        self.page.set_viewport_size(size)

    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.requested if url.startswith("http")}

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def answer(self, *answers: dict | int, path: str = "**/api/predict", **headers: str) -> list[Route]:
        """Let the service say these things, one a request, and then itself; a number is a status."""
        left, requests = list(answers), []

        def fulfill(route: Route) -> None:
            requests.append(route)
            if not left:
                return route.fallback()
            answer = left.pop(0)
            if isinstance(answer, int):
                return route.fulfill(status=answer, json={"detail": "busy"}, headers=headers)
            return route.fulfill(json=answer)

        self.page.route(path, fulfill)
        return requests


@contextmanager
def open_page(
    browser: Browser, url: str, size: str = "phone", scheme: str = "light", places: tuple[dict, ...] = (), **options
) -> Iterator[Visit]:
    """Open the page, with these places to choose from; options are those of a browser's context.

    The browser saves data and keeps no service worker: the page does not fetch the model, and its requests can be
    answered by a test.
    """
    options.setdefault("service_workers", "block")
    options.update(viewport=SIZES[size], color_scheme=scheme, has_touch=size == "phone", is_mobile=size == "phone")
    context = browser.new_context(**options)
    visit = Visit(context.new_page(), f"{size}-{scheme}")
    visit.page.on("console", lambda line: visit.errors.append(line.text) if line.type == "error" else None)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on("request", lambda request: visit.requested.append(request.url))
    visit.page.route("**/api/places", lambda route: route.fulfill(json=list(places)))
    visit.page.add_init_script("Object.defineProperty(navigator.connection, 'saveData', { get: () => true })")
    visit.page.goto(url)
    yield visit
    context.close()


SAMPLES = {label: encode(draw_picture(label, 0, (512, 384))) for label in ("glass", "paper", "metal", "plastic")}
TARGETS = "a, button, select, summary, input[type=checkbox], .button"
SMALL = f"""() => [...document.querySelectorAll("{TARGETS}")].filter((part) => {{
    const box = part.getBoundingClientRect();
    return part.checkVisibility() && Math.min(box.width, box.height) < 24;
}})"""  # WCAG 2.5.8
CUT = """() => [...document.querySelectorAll(".card, .drop, .button, .choices label")].filter((part) =>
    part.scrollWidth > part.clientWidth)"""
UNSURE = {
    "predicted_class": "glass",
    "confidence": 0.4,
    "all_probabilities": {"glass": 0.4, "metal": 0.35, "paper": 0.25},
}
PLACE = {
    "id": "dk-copenhagen",
    "name": "København",
    "country": "DK",
    "language": "da",
    "bins": [{"id": "glass", "name": "Glas", "colour": "#2e7d32"}],
    "source": "https://example.org/sorting",
    "read": "2026-05-04",
}
BIN = {
    "place": "dk-copenhagen",
    "id": "glass",
    "name": "Glas",
    "colour": "#2e7d32",
    "advice": "Skyl glasset.",
    "language": "da",
    "source": "https://example.org/sorting",
    "read": "2026-05-04",
    "confidence": 0.97,
    "conditions": [{"condition": "broken", "id": "residual", "name": "Restaffald", "advice": "Pak det godt ind."}],
}
CANDIDATES = [{"id": "glass", "name": "Glas", "colour": "#2e7d32"}, {"id": "none", "name": "no rule"}]
ANSWER = {"predicted_class": "glass", "confidence": 0.9, "all_probabilities": {"glass": 0.9, "metal": 0.1}, "id": "1.a"}
