"""The page in its languages: every text is there and used, the browser chooses, and nothing breaks."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import expect
from visits import ANSWER, BIN, CANDIDATES, CUT, PLACE, SAMPLES, SMALL, open_page

import trashsorting
from trashsorting.serving.schemas import CODES

STATIC = Path(trashsorting.__file__).parent / "static"
HTML = (STATIC / "index.html").read_text(encoding="utf-8")
SCRIPTS = "".join(path.read_text(encoding="utf-8") for path in sorted((STATIC / "page").glob("*.js")))
LANGUAGES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (STATIC / "languages").glob("*.json")}
ENGLISH = LANGUAGES["en"]
LOCALES = {"en": "en-GB", "da": "da-DK", "de": "de-DE", "ar": "ar"}
NOT_FOR_PEOPLE = {  # Codes that only other programs meet, or that the page answers itself (a key)
    "no-reference",
    *("bad-form", "bad-batch", "bad-request", "bad-header", "bad-parameter", "bad-range", "bad-feedback", "no-consent"),
    *("no-file", "no-files", "too-many-files", "large-head", "wrong-method", "not-found", "unknown-class"),
    *("no-key", "no-explanation", "no-metrics", "unknown-place", "unknown-feedback", "feedback-off"),
}


def forms(text: str | dict[str, str]) -> list[str]:
    """A text, or each plural form of it."""
    return list(text.values()) if isinstance(text, dict) else [text]


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_language_is_complete(code):
    texts = LANGUAGES[code]
    assert list(texts) == list(ENGLISH), "the same keys in the same order"
    for key, text in texts.items():
        assert all(form.strip() == form != "" for form in forms(text)), key
        names = set(re.findall(r"\{(\w+)\}", forms(ENGLISH[key])[-1]))
        assert set(re.findall(r"\{(\w+)\}", forms(text)[-1])) == names, key
    same = [key for key in texts if texts[key] == ENGLISH[key] and key != "language.direction"]
    assert code == "en" or len(same) <= 4, f"not translated: {same}"


def test_no_text_is_missing_and_none_is_unused(predictor):
    by_class = {f"{family}.{label}" for family in ("class", "advice") for label in predictor.card.classes}
    quoted = set(re.findall(r'"([a-z-]+\.[a-z-]+|title|subtitle)"', HTML + SCRIPTS))
    used = {key for key in quoted if key.split(".")[0] in {known.split(".")[0] for known in ENGLISH}}
    assert used - set(ENGLISH) == set(), "texts that no file has"
    elsewhere = {"language.name", "class.other"}  # The service lists the names; `other` is no class of the model
    assert set(ENGLISH) - used - by_class == elsewhere, "texts that nothing shows"
    assert by_class < set(ENGLISH)


def test_every_error_that_a_person_can_meet_has_a_text():
    translated = set(re.findall(r'^  "([a-z-]+)": "error\.', SCRIPTS, re.MULTILINE))
    assert set(CODES) - translated - NOT_FOR_PEOPLE == set()


def test_the_page_holds_no_text_of_its_own():
    class Texts(HTMLParser):
        found, inside = "", ""

        def handle_starttag(self, tag, attributes):
            self.inside = tag

        def handle_data(self, data):
            self.found += "" if self.inside in ("script", "style") else data

    parser = Texts()
    parser.feed(HTML)
    assert re.findall(r"\w+", parser.found) == []
    assert re.findall(r'(?:aria-label|placeholder|title|alt)="\w', HTML) == []


@pytest.mark.parametrize(("accepted", "language"), [("da-DK,da;q=0.9,en;q=0.8", "da"), ("ar", "ar"), ("fi", "en")])
def test_the_service_follows_accept_language(client, accepted, language):
    answer = client.get("/", headers={"accept-language": accepted})
    direction = LANGUAGES[language]["language.direction"]
    assert f'<html lang="{language}" dir="{direction}">' in answer.text
    assert "accept-language" in answer.headers["vary"].lower()
    again = client.get("/", headers={"accept-language": accepted, "if-none-match": answer.headers["etag"]})
    other = client.get("/", headers={"accept-language": "sv", "if-none-match": answer.headers["etag"]})
    assert (again.status_code, other.status_code) == (304, 200)


def test_a_hostile_accept_language_gets_english(client):
    for accepted in ("q" * 8000, "da;q=" + "9" * 4000, "../../etc/passwd", "<script>", "da" * 3000, ",;=" * 2000):
        answer = client.get("/", headers={"accept-language": accepted})
        assert answer.status_code == 200 and '<html lang="en" dir="ltr">' in answer.text
    assert client.get("/languages/../index.html").status_code == client.get("/languages/xx.json").status_code == 404


def test_the_choice_survives_a_reload(browser, server, predictor):
    with open_page(browser, server.url, locale="da-DK") as visit:
        page = visit.page
        expect(page.locator("h1")).to_have_text(LANGUAGES["da"]["title"])
        assert page.evaluate("[localStorage.length, document.documentElement.lang]") == [0, "da"]
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".result")).to_be_visible()
        page.locator("#language").select_option("ar")
        expect(page.locator("h1")).to_have_text(LANGUAGES["ar"]["title"])
        label = predictor.predict_one(SAMPLES["glass"]).predicted_class
        expect(visit.card().locator(".bars .name").first).to_have_text(LANGUAGES["ar"][f"class.{label}"])
        assert page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == ["ar", "rtl"]
        assert sum("/api/predict" in url for url in visit.requested) == 1, "an answer is not asked for again"
        page.reload()
        expect(page.locator("h1")).to_have_text(LANGUAGES["ar"]["title"])
        expect(page.locator("#language")).to_have_value("ar")
        assert page.title() == LANGUAGES["ar"]["title"] and visit.overflow() <= 0 and visit.errors == []


def test_a_language_that_cannot_be_loaded_leaves_the_page_as_it_is(browser, server):
    with open_page(browser, server.url) as visit:
        visit.page.route("**/languages/de.json", lambda route: route.abort())
        busy = {"code": "too-many-connections", "detail": "later"}
        visit.page.route("**/languages/fr.json", lambda route: route.fulfill(status=503, json=busy))
        for count, language in enumerate(("de", "fr"), 1):
            visit.page.locator("#language").select_option(language)
            expect(visit.page.locator("#spoken p", has_text="could not be reached")).to_have_count(count)
        expect(visit.page.locator("#language")).to_have_value("en")
        expect(visit.page.locator("h1")).to_have_text("Trash sorting")


def test_errors_are_translated_by_their_code(browser, server, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(10_000_001))
    with open_page(browser, server.url, locale="da-DK") as visit:
        visit.page.locator("#file").set_input_files(large)
        visit.upload(notes=b"a green bottle")
        expect(visit.card("large").locator(".problem")).to_have_text(
            LANGUAGES["da"]["error.large"].replace("{megabytes}", "10")
        )
        expect(visit.card("notes").locator(".problem")).to_contain_text("JPEG, PNG")
        visit.page.route("**/api/predict", lambda route: route.fulfill(status=418, json={"detail": "I am a teapot"}))
        visit.upload(tea=SAMPLES["glass"])
        problem = visit.card("tea").locator(".problem")
        expect(problem).to_have_text("I am a teapot.")
        assert problem.get_attribute("lang") == "en"


def show_every_state(visit, client):
    """A sure bin with its map and open feedback, one that thanks, an unsure one, a failure, and one that waits."""
    page, info = visit.page, client.get("/api/model/info").json()
    page.route("**/api/model/info", lambda route: route.fulfill(json={**info, "feedback": True}))
    page.route("**/api/feedback", lambda route: route.fulfill(status=201, json={"token": "t", "stored": True}))
    page.reload()
    page.locator("#place").select_option("dk-copenhagen")
    unsure = {**ANSWER, "unsure": True, "bin": {**BIN, "candidates": CANDIDATES}}
    visit.answer(
        {**ANSWER, "bin": BIN}, {**ANSWER, "bin": BIN}, unsure, {**ANSWER, "unsure": False}, path="**/api/predict*"
    )
    for name in ("sure", "thanked", "unsure", "material"):
        visit.upload(**{name: SAMPLES["glass"]})
        expect(visit.card(name).locator(".result")).to_be_visible()
    visit.card("sure").locator(".toggle").click()
    expect(visit.card("sure").locator("canvas")).to_have_css("opacity", "1")
    visit.card("sure").locator(".wrong").click()
    visit.card("thanked").locator(".right").click()
    expect(visit.card("thanked").locator(".undo")).to_be_visible()
    page.unroute("**/api/predict*")
    visit.upload(notes=b"a green bottle")
    expect(visit.card("notes").locator(".problem")).to_be_visible()
    page.route("**/api/predict*", lambda route: None)
    visit.upload(first=SAMPLES["glass"], second=SAMPLES["glass"], third=SAMPLES["glass"])
    expect(visit.card("first").locator(".busy")).to_be_visible()
    page.evaluate("for (const part of document.querySelectorAll('#lock, #notice')) part.hidden = false")
    page.evaluate("document.querySelector('details').open = true")


def check_layout(visit):
    """Nothing is cut off, too small to be hit, or wider than the window."""
    for script in (CUT, SMALL):
        assert visit.page.evaluate(f"({script})().map((part) => part.outerHTML)") == []
    refused = "status of 415"  # The browser notes that a file was refused
    assert visit.overflow() <= 0 and [error for error in visit.errors if refused not in error] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["de", "ar"])
def test_axe_finds_nothing(browser, server, client, language, scheme):
    """WCAG's rules that a program can check, on every state at once, at the smallest width and on a desk."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make lock").Axe()
    with open_page(browser, server.url, "desktop", scheme, (PLACE,), locale=LOCALES[language]) as visit:
        show_every_state(visit, client)
        for width in (1280, 360, 320):
            visit.page.set_viewport_size({"width": width, "height": 740})
            visit.name = f"{width}-{scheme}-{language}"
            visit.shoot("every-state")
            check_layout(visit)
            result = axe.run(visit.page).response
            found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in result["violations"]}
            assert found == {} and len(result["passes"]) > 20


@pytest.mark.parametrize("language", ["de", "ar"])
def test_texts_of_twice_the_length_break_nothing(browser, server, client, language):
    longer = {
        key: text if key.startswith("language.") or isinstance(text, dict) else f"{text} {text}"
        for key, text in LANGUAGES[language].items()
    }
    with open_page(browser, server.url, places=(PLACE,), locale="en-GB") as visit:
        show_every_state(visit, client)
        visit.page.route("**/languages/*.json", lambda route: route.fulfill(json=longer))
        visit.page.locator("#language").select_option(language)
        expect(visit.page.locator("h1")).to_have_text(longer["title"])
        for width in (320, 360, 1280):
            visit.page.set_viewport_size({"width": width, "height": 740})
            visit.name = f"{width}-long-{language}"
            visit.shoot("every-state")
            check_layout(visit)
