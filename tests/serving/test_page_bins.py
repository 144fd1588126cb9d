"""The page with a place: the bin, the place that the phone remembers, and what a person says about an answer."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Request, Route, expect
from visits import ANSWER, BIN, CANDIDATES, PLACE, SAMPLES, Visit, open_page

from trashsorting.core.places import read_places

HERE = PLACE["id"]
ROME = {**PLACE, "id": "it-rome", "name": "Roma", "country": "IT", "language": "it"}
PREDICT = "**/api/predict*"


@pytest.fixture
def visit(browser, server, client) -> Iterator[Visit]:
    """The page on a phone, with two places and a service that takes feedback."""
    info = {**client.get("/api/model/info").json(), "feedback": True}
    with open_page(browser, server.url, places=(PLACE, ROME)) as opened:
        opened.page.route("**/api/model/info", lambda route: route.fulfill(json=info))
        opened.page.reload()
        yield opened


def choose(visit: Visit, place: str = HERE) -> None:
    visit.page.get_by_label("Your place").select_option(place)


def upload(visit: Visit, *answers: dict) -> None:
    """Send a picture to a service that answers so."""
    visit.answer(*answers, path=PREDICT)
    visit.upload(glass=SAMPLES["glass"])
    expect(visit.card().locator(".result")).to_be_visible()


def take_feedback(visit: Visit, answer: dict, status: int = 201) -> list[Request]:
    """Let the service answer so to feedback; what it is sent."""
    requests = []

    def fulfill(route: Route) -> None:
        requests.append(route.request)
        route.fulfill(status=status, json=answer)

    visit.page.route("**/api/feedback", fulfill)
    return requests


def thanks(card: Locator, words: str) -> None:
    """What a person reads after an answer of the service; hidden it has words too."""
    expect(card.locator(".thanks")).to_be_visible()
    expect(card.locator(".thanks")).to_contain_text(words)


def parts(request: Request) -> dict[str, bytes]:
    """The fields of a form."""
    content = request.post_data_buffer
    separator = content.split(b"\r\n", 1)[0]
    pairs = [part.split(b"\r\n\r\n", 1) for part in content.split(separator)[1:-1]]
    return {head.split(b'name="')[1].split(b'"')[0].decode(): value.removesuffix(b"\r\n") for head, value in pairs}


def test_the_verdict_is_the_bin(visit):
    choose(visit)
    upload(visit, {**ANSWER, "bin": BIN})
    card = visit.card()
    expect(card.locator(".eyebrow")).to_have_text("Put it into")
    expect(card.locator(".verdict")).to_have_text("Glas")
    assert card.locator(".verdict").get_attribute("lang") == card.locator(".advice span").get_attribute("lang") == "da"
    expect(card.locator(".confidence")).to_have_text("97% sure")
    expect(card.locator(".advice")).to_have_text("Skyl glasset.")
    expect(card.locator(".material")).to_have_text("It looks like glass, 90% sure.")
    expect(card.locator(".conditions")).to_have_text("If it is broken: Restaffald. Pak det godt ind.")
    expect(card.locator(".source")).to_have_text("Rule of K\u00f8benhavn, read on May 4, 2026: example.org")
    expect(card.locator(".source")).to_be_visible()
    expect(card.locator(".source a")).to_have_attribute("href", BIN["source"])
    expect(card.locator(".pictogram")).to_have_attribute("fill", "#2e7d32")
    expect(visit.page.locator("#spoken")).to_contain_text("Put it into: Glas, 97% sure. Skyl glasset.")
    assert any(url.endswith(f"/api/predict?place={HERE}") for url in visit.requested)
    assert visit.overflow() <= 0 and visit.errors == []
    visit.shoot("bin")


def test_one_bin_for_all_that_it_may_be_is_said_without_doubt(visit):
    choose(visit)
    upload(visit, {**ANSWER, "confidence": 0.4, "unsure": True, "bin": BIN})
    expect(visit.card().locator(".verdict")).to_have_text("Glas")
    expect(visit.card().locator(".material")).to_have_text(
        "Most likely glass, but only 40% sure. All that it may be goes into this bin."
    )


def test_unsure_names_the_bins_of_the_candidates(visit):
    choose(visit)
    upload(visit, {**ANSWER, "unsure": True, "bin": {**BIN, "candidates": CANDIDATES}})
    card = visit.card()
    expect(card.locator(".verdict")).to_have_text("Unsure")
    expect(card.locator(".candidates li")).to_have_text(["Glas", "no rule here"])
    expect(card.locator(".bin .pictogram")).to_have_count(0)
    expect(card.locator(".source")).to_be_hidden()
    expect(visit.page.locator("#spoken")).to_contain_text("Probably one of these: Glas, no rule here.")


def test_a_class_without_a_rule_says_so(visit):
    choose(visit)
    upload(visit, {**ANSWER, "bin": {**BIN, "id": "none", "name": "no rule", "colour": None}})
    expect(visit.card().locator(".verdict")).to_have_text("glass")
    expect(visit.card().locator(".material")).to_contain_text("There is no rule for this in K\u00f8benhavn")
    expect(visit.card().locator(".pictogram")).to_have_count(0)


def test_markup_in_a_rule_is_text(visit):
    choose(visit)
    markup = "<img src=x onerror=alert()>"
    upload(visit, {**ANSWER, "bin": {**BIN, "name": markup, "advice": markup, "source": "javascript:alert()"}})
    expect(visit.card().locator(".verdict")).to_have_text(markup)
    expect(visit.card().locator(".source")).to_be_hidden()
    assert visit.card().locator("img").count() == 1 and visit.errors == []


def test_the_phone_remembers_the_place(visit):
    expect(visit.page.get_by_label("Your place")).to_have_value("")
    assert visit.page.locator("optgroup").evaluate_all("all => all.map((one) => one.label)") == ["Denmark", "Italy"]
    upload(visit, ANSWER, {**ANSWER, "bin": BIN})
    expect(visit.card().locator(".verdict")).to_have_text("glass")
    choose(visit)
    expect(visit.card().locator(".verdict")).to_have_text("Glas")  # What had an answer was asked again
    visit.page.reload()
    expect(visit.page.get_by_label("Your place")).to_have_value(HERE)
    visit.page.evaluate("localStorage.setItem('place', 'xx-nowhere')")
    visit.page.reload()
    expect(visit.page.locator("#place option")).to_have_count(3)
    expect(visit.page.get_by_label("Your place")).to_have_value("")


def test_a_place_that_is_chosen_while_the_service_thinks(visit):
    held = []
    visit.page.route(PREDICT, lambda route: held.append(route))
    visit.upload(glass=SAMPLES["glass"])
    expect(visit.card().locator(".busy")).to_contain_text("Looking")
    choose(visit)
    with visit.page.expect_request(f"**/api/predict?place={HERE}"):
        held.pop().fulfill(json=ANSWER)
    while not held:
        visit.page.wait_for_timeout(10)
    held.pop().fulfill(json={**ANSWER, "bin": BIN})
    expect(visit.card().locator(".verdict")).to_have_text("Glas")
    expect(visit.page.locator("#spoken")).not_to_contain_text("This looks like")


@pytest.mark.parametrize("places", [404, []], ids=["none", "empty"])
def test_without_places_the_page_names_the_material(visit, places):
    fulfill = {"status": 404, "json": {"detail": "x"}} if places == 404 else {"json": places}
    visit.page.route("**/api/places", lambda route: route.fulfill(**fulfill))
    visit.page.reload()
    upload(visit, ANSWER)
    expect(visit.page.locator("#place")).to_be_hidden()
    expect(visit.card().locator(".verdict")).to_have_text("glass")
    expect(visit.card().locator(".material")).to_be_hidden()
    assert not any("place=" in url for url in visit.requested)


def test_a_folder_is_no_picture(visit, tmp_path):
    visit.drop(tmp_path)
    expect(visit.page.locator(".card .problem")).to_contain_text("damaged or cut off")


def test_right_is_sent_without_the_picture(visit):
    requests = take_feedback(visit, {"token": "20260504-a", "stored": False})
    upload(visit, ANSWER)
    card = visit.card()
    expect(card.get_by_role("checkbox")).not_to_be_checked()
    card.get_by_role("button", name="Right").click()
    thanks(card, "Thank you.")
    assert parts(requests[0]) == {"answer_id": b"1.a", "correct": b"true", "label": b"glass"}
    expect(card.locator(".ask").first).to_be_hidden()
    deleted = []
    visit.page.route("**/api/feedback/*", lambda route: deleted.append(route))
    card.get_by_role("button", name="Take it back").dblclick()
    for route in deleted:
        route.fulfill(status=204)
    thanks(card, "taken back")
    (request,) = [route.request for route in deleted]
    assert (request.method, request.url.rsplit("/", 1)[1]) == ("DELETE", "20260504-a")
    assert visit.errors == []


def test_a_correction_takes_the_picture_along_with_consent(visit):
    requests = take_feedback(visit, {"token": "t", "stored": True})
    upload(visit, ANSWER)
    card = visit.card()
    card.get_by_role("button", name="No, it is").click()
    expect(card.locator(".correction option")).to_have_text(["metal", "something else"])
    card.get_by_label("What it is").select_option("other")
    card.get_by_label("Send this photograph too").check()
    card.get_by_role("button", name="Send", exact=True).click()
    thanks(card, "The photograph was sent along.")
    assert parts(requests[0]) == {
        "answer_id": b"1.a",
        "correct": b"false",
        "label": b"other",
        "consent": b"true",
        "file": SAMPLES["glass"],
    }


def test_an_unsure_answer_can_be_named(visit):
    requests = take_feedback(visit, {"token": "t", "stored": False})
    upload(visit, {**ANSWER, "unsure": True})
    card = visit.card()
    expect(card.get_by_role("button", name="Right")).to_be_hidden()
    card.get_by_role("button", name="It is").click()
    card.get_by_label("What it is").select_option("glass")
    card.get_by_role("button", name="Send", exact=True).click()
    expect(card.locator(".thanks")).to_be_visible()
    assert parts(requests[0])["correct"] == b"true"


def test_feedback_that_is_refused_can_be_sent_again(visit):
    take_feedback(visit, {"code": "feedback-quota", "detail": "too many"}, 429)
    upload(visit, ANSWER)
    card = visit.card()
    card.get_by_role("button", name="Right").click()
    expect(card.locator(".refused")).to_contain_text("enough for today")
    expect(card.get_by_role("button", name="Right")).to_be_enabled()


@pytest.mark.parametrize("answer", [{"id": None}, {}], ids=["no id", "off"])
def test_without_feedback_nothing_is_asked(visit, client, answer):
    if not answer:
        visit.page.unroute("**/api/model/info")
        off = {**client.get("/api/model/info").json(), "feedback": False}
        visit.page.route("**/api/model/info", lambda route: route.fulfill(json=off))
        visit.page.reload()
    upload(visit, {**ANSWER, **answer})
    expect(visit.card().locator(".feedback")).to_be_hidden()


WORDS = """(names) => names.filter((name) => {
    const verdict = document.querySelector(".verdict");
    verdict.textContent = name;
    const text = verdict.firstChild;
    return [...name.matchAll(/[^\\s-]+/g)].some(({ 0: word, index }) => {
        const range = document.createRange();
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size > 1;
    });
})"""


@pytest.mark.parametrize("language", ["en", "ar"])
def test_no_word_of_a_bin_s_name_is_broken(browser, server, language):
    """Of all places, on a narrow phone, also where the page goes from right to left."""
    names = sorted({bin.name for place in read_places() for bin in place.bins})
    with open_page(browser, server.url, places=(PLACE,), locale=language) as visit:
        visit.page.locator("#place").select_option(HERE)
        upload(visit, {**ANSWER, "bin": {**BIN, "name": max(names, key=len)}})
        visit.name = f"phone-{language}"
        visit.shoot("long-bin")
        assert visit.page.evaluate(WORDS, names) == [] and visit.overflow() <= 0
