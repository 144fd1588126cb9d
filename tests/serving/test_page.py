"""The page in a real browser, at the sizes of a desk and of a phone, in both colour schemes."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import encode, find_photograph
from playwright.sync_api import Locator, Route, expect
from starlette.testclient import TestClient
from visits import CUT, SAMPLES, SIZES, SMALL, UNSURE, Visit, open_page

from trashsorting.core.card import mean_over_sources
from trashsorting.data.sample import draw_picture
from trashsorting.serving.app import create_app
from trashsorting.serving.page import write_page


@pytest.fixture(params=["desktop", "phone"])
def size(request) -> str:
    return request.param


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param


@pytest.fixture
def visit(browser, server, size, scheme) -> Iterator[Visit]:
    """The page, opened."""
    with open_page(browser, server.url, size, scheme) as opened:
        yield opened


def verdict(prediction: dict) -> str:
    return "Unsure" if prediction.get("unsure") else prediction["predicted_class"]


def check_answer(visit: Visit, card: Locator, prediction: dict) -> None:
    """The page shows the service's answer, and nothing is wider than the window."""
    expect(card.locator(".verdict")).to_have_text(verdict(prediction))
    rows = card.locator(".bars li")
    assert [row.locator(".name").text_content() for row in rows.all()] == list(prediction["all_probabilities"])
    shown = [float(row.locator(".probability").text_content().rstrip("%")) / 100 for row in rows.all()]
    assert shown == pytest.approx(list(prediction["all_probabilities"].values()), abs=0.0006)
    how = "Unsure, Most likely" if prediction.get("unsure") else "This looks like:"
    expect(visit.page.locator("#spoken")).to_contain_text(f"{how} {prediction['predicted_class']}")
    assert visit.errors == [] and visit.overflow() <= 0


def predict(client: httpx.Client, data: bytes) -> dict:
    return client.post("/api/predict", files={"file": data}).json()


def test_drawn_picture(visit, client, server, predictor):
    visit.shoot("empty")
    visit.upload(glass=SAMPLES["glass"])
    expect(visit.page.get_by_alt_text("Your picture glass.png")).to_be_visible()
    check_answer(visit, visit.card(), predict(client, SAMPLES["glass"]))
    visit.shoot("drawn")
    assert visit.hosts() == {urlsplit(server.url).netloc}


def test_the_footer_states_accuracy_and_measurement(visit, predictor):
    measured, note = predictor.card.evaluation, visit.page.locator("#note")
    known = f"{round(100 * measured.accuracy, 1):g}% of {measured.n:,}"
    text = f"The model was right on {known} test photographs like those it learned from; "
    text += "on others it is wrong more often."
    if mean := mean_over_sources(predictor.card.held_out_sources):
        share = f"{round(100 * mean, 1):g}%"
        text = f"On photographs from sources that it did not learn from, the model was right on {share}. {text}"
    expect(visit.page.locator("#model")).to_have_text(text)
    expect(note).to_be_hidden()
    lines = "footer.getBoundingClientRect().height / parseFloat(getComputedStyle(footer).lineHeight)"
    assert visit.page.evaluate(f"{{ const footer = document.querySelector('footer'); {lines} }}") < 8
    visit.page.get_by_text("How it was measured").click()
    expect(note).to_be_visible()
    expect(note).to_contain_text(f"“{predictor.card.name}” knows {len(predictor.card.classes)} classes")
    expect(note).to_contain_text(predictor.card.evaluation_note)
    assert visit.overflow() <= 0 and visit.errors == []
    visit.shoot("foot")


def luminance(colour: str) -> float:
    """Of what a browser calls rgb(1, 2, 3), as WCAG 2.2 defines it."""
    parts = [int(part) / 255 for part in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(*colours: str) -> float:
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_field_borders_have_enough_contrast(visit):
    """WCAG 1.4.11 asks for a contrast of 3 : 1 where only a border shows where to type."""
    visit.upload(glass=SAMPLES["glass"])
    expect(visit.card().locator(".result")).to_be_visible()
    colour = "([selector, what]) => getComputedStyle(document.querySelector(selector))[what]"
    for field_, behind in [("#key", "body"), (".legend select", ".legend select"), (".legend select", ".card")]:
        edge = visit.page.evaluate(colour, [field_, "borderTopColor"])
        assert contrast(edge, visit.page.evaluate(colour, [behind, "backgroundColor"])) >= 3, (field_, behind)


def test_photograph(visit, client):
    data = find_photograph().read_bytes()
    visit.upload(photograph=data)
    check_answer(visit, visit.card("photograph"), predict(client, data))
    visit.shoot("photograph")


def test_several_files_and_one_is_no_picture(visit, client):
    visit.upload(**SAMPLES, notes=b"a green bottle")
    expect(visit.page.locator("#count")).to_have_text("5 photographs")
    for label, data in SAMPLES.items():
        expect(visit.card(label).locator(".result")).to_be_visible()
        expect(visit.card(label).locator(".verdict")).to_have_text(verdict(predict(client, data)))
    bad = visit.card("notes")
    expect(bad.locator(".problem")).to_contain_text("Not a picture in an accepted format")
    expect(bad.locator(".result")).to_be_hidden()
    expect(bad.locator(".frame")).to_be_hidden()
    expect(bad.locator(".none")).to_have_text("There is no preview of this file.")
    expect(bad.get_by_role("button", name="Try again")).to_be_hidden()
    expect(visit.page.locator("#spoken")).to_contain_text("notes.png: That did not work")
    names = visit.page.locator(".card").evaluate_all("cards => cards.map((card) => card.ariaLabel)")
    assert names == ["glass.png", "paper.png", "metal.png", "plastic.png", "notes.png"]
    assert visit.overflow() <= 0
    visit.shoot("several")


def test_activation_map_and_legend(visit, client, predictor):
    visit.upload(glass=SAMPLES["glass"])
    card = visit.card()
    toggle, overlay = card.get_by_role("button", name="Show what decided"), card.locator("canvas")
    expect(overlay).to_be_hidden()
    toggle.click()
    expect(overlay).to_have_css("opacity", "1")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    image, shown = card.locator("img").bounding_box(), overlay.bounding_box()
    assert shown == pytest.approx(image, abs=1), "the model that ships sees the whole picture"
    expect(card.locator(".label")).to_have_value(predict(client, SAMPLES["glass"])["predicted_class"])
    visit.shoot("decided")
    before = overlay.evaluate("canvas => canvas.toDataURL()")
    other = predict(client, SAMPLES["glass"])["all_probabilities"]
    card.get_by_label("bright parts speak for").select_option([*other][-1])
    expect(overlay).to_have_attribute("aria-label", re.compile(f"What speaks for {[*other][-1]}: "))
    assert overlay.evaluate("canvas => canvas.toDataURL()") != before
    toggle.click()
    expect(overlay).to_be_hidden()
    assert visit.errors == [] and visit.overflow() <= 0
    asked = [url for url in visit.requested if "/api/explain" in url]
    assert len(asked) == 2


def test_unsure_predictions_are_marked(visit):
    visit.answer({**UNSURE, "unsure": True}, {**UNSURE, "unsure": False})
    visit.upload(glass=SAMPLES["glass"])
    card = visit.card()
    expect(card.locator(".verdict")).to_have_text("Unsure")
    expect(card.locator(".confidence")).to_have_text("Most likely glass, but only 40% sure")
    expect(card.locator(".advice")).to_contain_text("look for a recycling mark")
    expect(visit.page.locator("#spoken")).to_contain_text("glass.png: The model cannot tell: Unsure, Most likely glass")
    assert visit.overflow() <= 0
    visit.shoot("unsure")
    visit.upload(paper=SAMPLES["paper"])
    expect(visit.card("paper").locator(".verdict")).to_have_text("glass")
    expect(visit.card("paper").locator(".advice")).to_contain_text("bottle bank")


def test_the_page_is_busy_during_a_request(visit):
    visit.page.route("**/api/predict", lambda route: None)  # Never answered.
    visit.upload(**SAMPLES)
    for label in ("glass", "paper"):
        expect(visit.card(label).locator(".busy")).to_contain_text("Looking at your photograph")
        expect(visit.card(label)).to_have_attribute("aria-busy", "true")
    expect(visit.card("metal").locator(".busy")).to_contain_text("Waiting for its turn")
    assert sum("/api/predict" in url for url in visit.requested) == 2, "two at a time"
    visit.shoot("busy")
    visit.card("metal").get_by_role("button", name="Remove metal.png").click()
    visit.card("glass").get_by_role("button", name="Remove glass.png").click()
    expect(visit.card("plastic").locator(".busy")).to_contain_text("Looking at your photograph")
    assert sum("/api/predict" in url for url in visit.requested) == 3, "nothing is asked about what was removed"


@pytest.mark.parametrize("size", ["phone"], indirect=True)
@pytest.mark.parametrize("scheme", ["light"], indirect=True)
@pytest.mark.parametrize("text", ["100%", "200%"])
def test_large_text_in_a_small_window(visit, text):
    """Nothing is cut off, no target is too small, and a word that fits is not broken."""
    visit.page.set_viewport_size({"width": 320, "height": 640})
    visit.page.evaluate("text => { document.documentElement.style.fontSize = text }", text)
    visit.answer({**UNSURE, "unsure": True}, {**UNSURE, "predicted_class": "cardboard"})
    for name, data in {
        "unsure": SAMPLES["glass"],
        "sure": SAMPLES["glass"],
        "notes": b"a green bottle",
    }.items():
        visit.upload(**{name: data})
        expect(visit.card(name)).to_have_attribute("aria-busy", "false")
    visit.card("sure").get_by_role("button", name="Show what decided").click()
    expect(visit.card("sure").locator("canvas")).to_have_css("opacity", "1")
    visit.page.route("**/api/predict", lambda route: None)
    visit.upload(busy=SAMPLES["glass"])
    expect(visit.card("busy").locator(".busy")).to_contain_text("Looking at your photograph")
    visit.shoot(f"small-{text.rstrip('%')}")
    for script in (CUT, SMALL):
        assert visit.page.evaluate(f"({script})().map((part) => part.outerHTML)") == []
    assert visit.overflow() <= 0
    lines = "part => part.getBoundingClientRect().height / parseFloat(getComputedStyle(part).lineHeight)"
    assert visit.card("sure").locator(".verdict").evaluate(lines) < 1.5


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_camera(visit, size):
    camera = visit.page.locator("#camera")
    assert (camera.get_attribute("capture"), camera.get_attribute("accept")) == ("environment", "image/*")
    button = visit.page.get_by_text("Take a photograph")
    if size == "desktop":
        return expect(button).to_be_hidden()
    expect(button).to_be_visible()
    camera.set_input_files({"name": "glass.png", "mimeType": "image/png", "buffer": SAMPLES["glass"]})
    expect(visit.card().locator(".result")).to_be_visible()


@pytest.mark.parametrize("size", ["desktop"], indirect=True)
@pytest.mark.parametrize("scheme", ["light"], indirect=True)
class TestInputs:
    """The size and the colours do not matter here."""

    def test_keyboard(self, visit):
        """From an empty page to an explained prediction and back, by keyboard only."""

        def focus() -> str:
            return visit.page.evaluate("[...document.activeElement.classList].pop() || document.activeElement.id")

        def press(*keys: str) -> None:
            for key in keys:
                visit.page.keyboard.press(key)

        # Playwright watches for file choosers from the first listener on, and a key press may come earlier.
        visit.page.on("filechooser", lambda chooser: None)
        press("Tab")
        assert visit.page.evaluate("document.activeElement.id") == "language"
        press("Tab")
        assert visit.page.evaluate("document.activeElement.id") == "file"
        outline = "getComputedStyle(document.querySelector('label[for=file]')).outlineStyle"
        assert visit.page.evaluate(outline) == "solid", "the focus can be seen"
        with visit.page.expect_file_chooser() as chooser:
            press("Enter")
        chooser.value.set_files({"name": "glass.png", "mimeType": "image/png", "buffer": SAMPLES["glass"]})
        expect(visit.card().locator(".toggle")).to_be_visible()
        press("Tab", "Tab")
        assert visit.page.evaluate("document.activeElement.id") == "where-service", "after the camera, the switch"
        press("Tab")
        assert focus() == "remove"
        press("Tab", "Space")
        assert focus() == "toggle"
        expect(visit.card().locator("canvas")).to_have_css("opacity", "1")
        press("Tab")
        assert visit.page.evaluate("document.activeElement.tagName") == "SELECT"
        press("Shift+Tab", "Shift+Tab", "Enter")
        expect(visit.card()).to_have_count(0)
        assert visit.page.evaluate("document.activeElement.id") == "file"
        expect(visit.page.locator("#spoken")).to_contain_text("Removed glass.png")

    def test_controls_have_accessible_names_and_targets(self, visit):
        visit.upload(**SAMPLES)
        expect(visit.card("plastic").locator(".toggle")).to_be_visible()
        nameless = """() => [...document.querySelectorAll("button, input, select, a, img")].filter((part) =>
            part.checkVisibility() &&
            !(part.ariaLabel || part.alt || part.textContent.trim() || part.labels?.[0]?.textContent.trim()))"""
        for script in (nameless, SMALL):
            assert visit.page.evaluate(f"({script})().map((part) => part.outerHTML)") == []
        expect(visit.page.get_by_role("log", name="What happened")).to_contain_text("plastic.png: ")
        ids = visit.page.evaluate("[...document.querySelectorAll('[id]')].map((part) => part.id)")
        assert len(ids) == len(set(ids))

    def test_reduced_motion(self, visit):
        duration = "getComputedStyle(document.querySelector('.drop')).transitionDuration"
        assert "0.15s" in visit.page.evaluate(duration)
        visit.page.emulate_media(reduced_motion="reduce")
        assert visit.page.evaluate(duration).strip("s") == "0"

    def test_the_whole_drop_zone_can_be_clicked(self, visit):
        with visit.page.expect_file_chooser() as chooser:
            visit.page.locator("#drop").click(position={"x": 9, "y": 40})
        chooser.value.set_files({"name": "glass.png", "mimeType": "image/png", "buffer": SAMPLES["glass"]})
        expect(visit.card().locator(".result")).to_be_visible()

    @pytest.mark.parametrize("kind, carrier", [("drop", "dataTransfer"), ("paste", "clipboardData")])
    def test_drop_and_paste(self, visit, kind, carrier):
        visit.page.evaluate(
            """([kind, carrier, bytes]) => {
                const data = new DataTransfer();
                for (const name of ["a.png", "b.png"]) {
                    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
                }
                const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new Kind(kind, { [carrier]: data, bubbles: true, cancelable: true }));
            }""",
            [kind, carrier, list(encode(draw_picture("metal", 0)))],
        )
        for name in ("a", "b"):
            expect(visit.card(name).locator(".result")).to_be_visible()
            expect(visit.page.get_by_alt_text(f"Your picture {name}.png")).to_be_visible()

    def test_the_newest_result_is_first_and_the_list_can_be_cleared(self, visit, client):
        visit.upload(paper=SAMPLES["paper"])
        visit.upload(metal=SAMPLES["metal"])
        for label in ("metal", "paper"):
            check_answer(visit, visit.card(label), predict(client, SAMPLES[label]))
        assert visit.page.locator(".card").first.get_attribute("aria-label") == "metal.png"
        assert visit.page.locator("#file").input_value() == "", "a browser sends no event for the same file again"
        visit.page.get_by_role("button", name="Clear the list").click()
        expect(visit.page.locator(".card")).to_have_count(0)
        expect(visit.page.locator("#list")).to_be_hidden()

    def test_classes_come_from_the_answer(self, visit):
        probabilities = {"<b>banana</b>": 0.6, "tin": 0.3, "x" * 80: 0.1}
        answer = {"predicted_class": "<b>banana</b>", "confidence": 0.6, "all_probabilities": probabilities}
        visit.answer(answer)
        visit.upload(glass=SAMPLES["glass"])
        check_answer(visit, visit.card(), answer)
        expect(visit.card().locator(".advice")).to_be_hidden()

    def test_retry_after_an_unreachable_service(self, visit):
        visit.page.route("**/api/predict", lambda route: route.abort())
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".problem")).to_contain_text("could not be reached")
        visit.page.unroute_all()
        visit.card().get_by_role("button", name="Try again").click()
        expect(visit.card()).to_be_focused()  # its button was removed
        expect(visit.card().locator(".result")).to_be_visible()
        expect(visit.card().locator(".failed")).to_be_hidden()

    def test_a_busy_service_is_retried(self, visit):
        asked = visit.answer(503, 503, **{"retry-after": "0"})
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".result")).to_be_visible()
        assert len(asked) == 3

    def test_retries_end_when_the_service_stays_busy(self, visit):
        asked = visit.answer(*[503] * 9, **{"retry-after": "0"})
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".problem")).to_have_text("Busy.")
        assert len(asked) == 4

    @pytest.mark.parametrize("later", [{"retry-after": "3600"}, {}], ids=["in an hour", "no header"])
    def test_a_long_retry_after_is_not_waited_for(self, visit, later):
        asked = visit.answer(503, 503, **later)
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".problem")).to_have_text("Busy.")
        expect(visit.card().get_by_role("button", name="Try again")).to_be_visible()
        assert len(asked) == 1

    def test_a_failed_explanation(self, visit):
        visit.answer(422, path="**/api/explain*")
        visit.upload(glass=SAMPLES["glass"])
        toggle = visit.card().get_by_role("button", name="Show what decided")
        toggle.click()
        expect(visit.card().locator(".reason")).to_have_text("Busy.")
        expect(toggle).to_have_attribute("aria-pressed", "false")
        toggle.click()
        expect(visit.card().locator("canvas")).to_have_css("opacity", "1")
        expect(visit.card().locator(".reason")).to_be_hidden()

    def test_late_responses_are_ignored(self, visit):
        """An explanation of a class no longer selected, one that fails, and one whose result was removed meanwhile."""
        held, page = [], visit.page
        page.route("**/api/explain*", lambda route: held.append(route))

        def asked(act, *arguments) -> Route:
            before = len(held)
            act(*arguments)
            while len(held) == before:
                page.wait_for_timeout(10)
            return held[-1]

        def answered(route: Route, **answer) -> None:
            with page.expect_request_finished():
                route.fulfill(**answer) if answer else route.fallback()
            page.evaluate("new Promise((done) => setTimeout(done, 100))")

        visit.upload(glass=SAMPLES["glass"])
        card, overlay = visit.card(), visit.card().locator("canvas")
        toggle, select, spoken = card.locator(".toggle"), card.locator(".label"), page.locator("#spoken")
        first = asked(toggle.click)
        labels = select.locator("option").all_text_contents()
        second, third = (asked(select.select_option, label) for label in labels[1:3])
        answered(third)
        answered(first)
        answered(second, status=422, json={"detail": "late"})
        expect(overlay).to_have_css("opacity", "1")
        expect(overlay).to_have_attribute("aria-label", re.compile(f"What speaks for {labels[2]}: "))
        expect(toggle).to_have_attribute("aria-pressed", "true")
        expect(card.locator(".reason")).to_be_hidden()
        fourth = asked(select.select_option, labels[3])
        toggle.click()
        answered(fourth)
        expect(overlay).to_be_hidden()
        expect(spoken).to_contain_text(f"What speaks for {labels[2]}: ")
        for label in (labels[0], labels[1], labels[3]):
            expect(spoken).not_to_contain_text(f"What speaks for {label}: ")

    def test_a_model_without_activation_maps(self, visit, client):
        visit.answer({**client.get("/api/model/info").json(), "has_activation_map": False}, path="**/api/model/info")
        visit.page.reload()
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".result")).to_be_visible()
        expect(visit.card().locator(".toggle")).to_be_hidden()

    def test_a_too_large_file(self, visit, tmp_path):
        large = tmp_path / "large.png"
        large.write_bytes(bytes(30_000_000))
        visit.page.locator("#file").set_input_files(large)
        expect(visit.card("large").locator(".problem")).to_contain_text("larger than the limit of 10 MB")


def test_the_page_reports_a_missing_model(browser, serve, tmp_path):
    with serve(TRASHSORTING_MODEL=str(tmp_path / "none.onnx")) as server:
        assert httpx.get(f"{server.url}/api/health").json()["model_loaded"] is False
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#problem")).to_contain_text("No model is loaded")
        page.close()


def test_without_the_runtime_the_page_asks_the_service(monkeypatch, tmp_path, predictor, caplog):
    monkeypatch.setattr("trashsorting.serving.page._RUNTIME", tmp_path)
    with caplog.at_level("WARNING", "trashsorting"):
        client = TestClient(create_app(predictor=predictor))
    assert "run `make runtime`" in caplog.text
    assert '"runtime": null' in client.get("/").text and "runtime/" not in client.get("/sw.js").text
    missing = client.get("/runtime/ort.wasm")
    assert missing.status_code == 404 and "make runtime" in missing.json()["detail"]
    with pytest.raises(FileNotFoundError, match="make runtime"):
        write_page(tmp_path / "app")


@pytest.mark.parametrize("size, scheme", [("phone", "light"), ("desktop", "dark")])
def test_the_api_key_is_asked_for_once(browser, serve, size, scheme):
    with serve(TRASHSORTING_API_KEY="correct horse") as server:
        touch = {"has_touch": size == "phone", "is_mobile": size == "phone"}
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, **touch)
        visit = Visit(context.new_page(), f"{size}-{scheme}")
        visit.page.goto(server.url)
        lock, key = visit.page.locator("#lock"), visit.page.get_by_label("This service wants a key")
        expect(lock).to_be_visible()
        expect(lock).to_contain_text("kept until you close this tab")
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card()).to_have_attribute("aria-busy", "true")
        for wrong, message in [
            ("wrong", "That is not the right key"),
            ("\u043a\u043b\u044e\u0447", "A key has only plain"),
        ]:
            key.fill(wrong)
            key.press("Enter")
            expect(lock.get_by_role("alert")).to_contain_text(message)
            expect(key).to_have_attribute("aria-invalid", "true")
        assert visit.overflow() <= 0
        visit.shoot("key")
        key.fill("correct horse")
        visit.page.get_by_role("button", name="Use this key").click()
        expect(visit.card().locator(".result")).to_be_visible()
        expect(visit.page.locator("#model")).to_contain_text("test photographs")
        assert visit.page.evaluate("sessionStorage.getItem('key')") == "correct horse"
        assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        visit.page.reload()
        expect(visit.page.locator("#model")).to_contain_text("test photographs")
        expect(lock).to_be_hidden()
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".result")).to_be_visible()
        visit.card().get_by_role("button", name="Show what decided").click()
        expect(visit.card().locator("canvas")).to_have_css("opacity", "1")
        assert not any("correct" in url for url in visit.requested) and "correct horse" not in server.said()
        later = context.new_page()  # another tab
        later.goto(server.url)
        expect(later.locator("#lock")).to_be_visible()
        context.close()


def operations(client: httpx.Client) -> list[tuple[str, str]]:
    """Path and method of everything in the OpenAPI document."""
    paths = client.get("/openapi.json").json()["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


def test_the_documentation_loads_no_external_resource(browser, server, client):
    page = browser.new_page(viewport=SIZES["desktop"])
    visit = Visit(page, "docs")
    page.on("console", lambda line: visit.errors.append(line.text) if line.type in ("error", "warning") else None)
    page.on("request", lambda request: visit.requested.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock-summary-path").first).to_be_visible()
    documented = {path for path, _ in operations(client)}
    shown = {path.replace("\u200b", "") for path in page.locator(".opblock-summary-path").all_text_contents()}
    assert shown == documented
    page.locator("#operations-default-health_api_health_get").get_by_role("button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").first).to_be_visible()
    visit.shoot("open")
    assert visit.hosts() == {urlsplit(server.url).netloc} and visit.errors == []
    policy = page.request.get(f"{server.url}/docs").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "http" not in policy and "*" not in policy
    assert '"validatorUrl": null' in page.request.get(f"{server.url}/docs").text(), (
        "off loopback it would ask its makers"
    )
    page.close()


@contextmanager
def behind_a_prefix(url: str, prefix: str) -> Iterator[str]:
    """A proxy that serves a service under a prefix, which it takes away: the service does not know."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            inside = self.path.startswith(prefix)
            answer = httpx.get(url + self.path.removeprefix(prefix)) if inside else httpx.Response(404)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()


@pytest.mark.parametrize("prefix", ["", "/trash", "/trash/can"])
def test_the_documentation_uses_the_mount_prefix(server, browser, prefix):
    with behind_a_prefix(server.url, prefix) as address:
        page = browser.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/docs")
        page.locator("#operations-default-health_api_health_get").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
        page.close()
    assert asked[-1] == f"{address}/api/health" and all(url.startswith(address) for url in asked if "http" in url[:4])
