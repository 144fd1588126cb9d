"""The page in a real browser, at the sizes of a desk and of a phone, in both colour schemes."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import encode, find_photograph
from playwright.sync_api import Browser, Page, expect, sync_playwright

from trashsorting.dataset import draw_picture

ARTIFACTS = Path(os.environ.get("ARTIFACTS", Path(__file__).parents[1] / "artifacts"))
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 740}}
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SWITCHES += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it; skips, loudly, where it has none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: install chromium to test the page")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        yield started
        started.close()


@dataclass
class Visit:
    """The page in a window, and what went on behind it."""

    page: Page
    name: str
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def upload(self, name: str, data: bytes, kind: str = "image/png") -> None:
        self.page.get_by_label("Choose").set_input_files({"name": name, "mimeType": kind, "buffer": data})

    def shoot(self, what: str) -> None:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"page-{self.name}-{what}.png", full_page=True)

    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.requested if url.startswith("http")}

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(params=["desktop", "phone"])
def size(request) -> str:
    return request.param


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param


@pytest.fixture
def visit(browser, server, size, scheme) -> Iterator[Visit]:
    """The page, opened."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, has_touch=size == "phone")
    made = Visit(context.new_page(), f"{size}-{scheme}")
    made.page.on("console", lambda line: made.errors.append(line.text) if line.type == "error" else None)
    made.page.on("pageerror", lambda error: made.errors.append(str(error)))
    made.page.on("request", lambda request: made.requested.append(request.url))
    made.page.goto(server.url)
    yield made
    context.close()


def check_answer(visit: Visit, said: dict) -> None:
    """The page says what the service said, in a window that is wide enough."""
    expect(visit.page.locator("#verdict")).to_have_text(said["predicted_class"])
    rows = visit.page.locator("#bars li")
    assert [row.locator(".name").text_content() for row in rows.all()] == list(said["all_probabilities"])
    shown = [float(row.locator(".share").text_content().rstrip("%")) / 100 for row in rows.all()]
    assert shown == pytest.approx(list(said["all_probabilities"].values()), abs=0.0006)
    expect(visit.page.locator("#spoken")).to_contain_text(said["predicted_class"])
    assert visit.errors == [] and visit.overflow() <= 0


def test_drawn_picture(visit, client, server, predictor):
    expect(visit.page.locator("#model")).to_contain_text(f"of {predictor.card.evaluation.n} held-out pictures")
    expect(visit.page.locator("#model")).to_contain_text(predictor.card.evaluation_note)
    visit.shoot("empty")
    data = encode(draw_picture("glass", 0, (512, 384)))
    visit.upload("glass.png", data)
    expect(visit.page.locator("#result")).to_be_visible()
    expect(visit.page.get_by_alt_text("Your picture glass.png")).to_be_visible()
    check_answer(visit, client.post("/api/predict", files={"file": data}).json())
    visit.shoot("drawn")
    assert visit.hosts() == {urlsplit(server.url).netloc}


def test_photograph(visit, client):
    data = find_photograph().read_bytes()
    visit.upload("photograph.jpg", data, "image/jpeg")
    expect(visit.page.locator("#result")).to_be_visible()
    check_answer(visit, client.post("/api/predict", files={"file": data}).json())
    visit.shoot("photograph")


def test_error_in_words_and_then_a_good_picture(visit):
    visit.upload("notes.txt", b"a green bottle", "text/plain")
    expect(visit.page.locator("#error")).to_be_visible()
    expect(visit.page.locator("#problem")).to_contain_text("Not a picture in an accepted format")
    expect(visit.page.locator("#result")).to_be_hidden()
    expect(visit.page.locator("#spoken")).to_contain_text("did not work")
    assert visit.overflow() <= 0
    visit.shoot("error")
    visit.upload("glass.png", encode(draw_picture("glass", 0)))
    expect(visit.page.locator("#result")).to_be_visible()
    expect(visit.page.locator("#error")).to_be_hidden()


def test_busy_while_the_service_thinks(visit):
    visit.page.route("**/api/predict", lambda route: None)  # Never answered.
    visit.upload("glass.png", encode(draw_picture("glass", 0)))
    expect(visit.page.locator("#busy")).to_be_visible()
    expect(visit.page.locator("#answer")).to_have_attribute("aria-busy", "true")
    visit.shoot("busy")


@pytest.mark.parametrize("size", ["desktop"], indirect=True)
@pytest.mark.parametrize("scheme", ["light"], indirect=True)
class TestWaysIn:
    """The size and the colours do not matter here."""

    def test_keyboard(self, visit):
        visit.page.keyboard.press("Tab")
        assert visit.page.evaluate("document.activeElement.id") == "file"
        assert visit.page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        with visit.page.expect_file_chooser() as chooser:
            visit.page.keyboard.press("Enter")
        picture = {"name": "a.png", "mimeType": "image/png", "buffer": encode(draw_picture("paper", 0))}
        chooser.value.set_files(picture)
        expect(visit.page.locator("#result")).to_be_visible()

    @pytest.mark.parametrize("kind, carrier", [("drop", "dataTransfer"), ("paste", "clipboardData")])
    def test_drop_and_paste(self, visit, kind, carrier):
        visit.page.evaluate(
            """([kind, carrier, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
                const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new Kind(kind, { [carrier]: data, bubbles: true, cancelable: true }));
            }""",
            [kind, carrier, list(encode(draw_picture("metal", 0)))],
        )
        expect(visit.page.locator("#result")).to_be_visible()
        expect(visit.page.get_by_alt_text("Your picture a.png")).to_be_visible()

    def test_the_last_of_two_pictures_wins(self, visit, client):
        pictures = [encode(draw_picture(label, 1, (512, 384))) for label in ("paper", "metal")]
        for number, data in enumerate(pictures):
            visit.upload(f"{number}.png", data)
        said = client.post("/api/predict", files={"file": pictures[-1]}).json()
        expect(visit.page.locator("#result")).to_be_visible()
        check_answer(visit, said)

    def test_classes_come_from_the_answer(self, visit):
        shares = {"<b>banana</b>": 0.6, "tin": 0.3, "x" * 80: 0.1}
        answer = {"predicted_class": "<b>banana</b>", "confidence": 0.6, "all_probabilities": shares}
        visit.page.route("**/api/predict", lambda route: route.fulfill(json=answer))
        visit.upload("a.png", encode(draw_picture("glass", 0)))
        expect(visit.page.locator("#result")).to_be_visible()
        check_answer(visit, answer)
        expect(visit.page.locator("#advice")).to_be_hidden()

    def test_a_service_that_cannot_be_reached(self, visit):
        visit.page.route("**/api/predict", lambda route: route.abort())
        visit.upload("a.png", encode(draw_picture("glass", 0)))
        expect(visit.page.locator("#problem")).to_contain_text("could not be reached")

    def test_a_file_that_is_too_large(self, visit, tmp_path):
        large = tmp_path / "large.png"
        large.write_bytes(bytes(30_000_000))
        visit.page.get_by_label("Choose").set_input_files(large)
        expect(visit.page.locator("#problem")).to_contain_text("larger than the limit of 10 MB")


def test_without_a_model_the_page_says_so(browser, serve, tmp_path):
    with serve(TRASHSORTING_MODEL=str(tmp_path / "none.onnx")) as server:
        assert httpx.get(f"{server.url}/api/health").json()["model_loaded"] is False
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#problem")).to_contain_text("No model is loaded")
        page.close()
