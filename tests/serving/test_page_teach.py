"""A thing that is taught to the page: tried, kept without a network, saved for the command, and forgotten."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from command import call
from conftest import encode
from PIL import Image, ImageDraw, ImageOps
from playwright.sync_api import Page, expect
from test_page_device import MORE_SWITCHES, Proxy, first_visit, predict_there, report
from visits import SMALL, Visit

from trashsorting.core.card import read_card
from trashsorting.core.image import open_rgb, to_input
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.duplicates import is_duplicate, perceptual_hash
from trashsorting.export.teach import Features, _known_features, _measure, fit_row, recalibrate
from trashsorting.inference.features import compute_features
from trashsorting.inference.predictor import Predictor
from trashsorting.serving import on_device
from trashsorting.serving import page as page_module

__all__ = ["MORE_SWITCHES"]
pytestmark = pytest.mark.skipif(
    page_module._runtime_version() is None,
    reason="!!! ONNX Runtime Web was not fetched, so no browser ran it: make runtime",
)


def draw_battery(seed: int) -> bytes:
    """A battery that lies somewhere, in any direction, on a coloured table."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (480, 360), tuple(rng.integers(120, 255, 3).tolist()))
    pen, left, top = ImageDraw.Draw(picture), int(rng.integers(15, 180)), int(rng.integers(15, 255))
    pen.rectangle((left, top, left + 195, top + 84), fill=(35, 35, 40))
    pen.rectangle((left + 195, top, left + 285, top + 84), fill=(190, 120, 60))
    return encode(picture.rotate(int(rng.integers(360)), fillcolor=picture.getpixel((0, 0))))


def near_copies(data: bytes) -> list[bytes]:
    """A picture as a smaller JPEG, and mirrored."""
    with Image.open(BytesIO(data)) as picture:
        return [
            encode(picture.convert("RGB").resize((320, 240)), "JPEG", quality=80),
            encode(ImageOps.mirror(picture)),
        ]


BATTERIES = [draw_battery(seed) for seed in range(10)]
COPIES = near_copies(BATTERIES[4])


def choose(page: Page, pictures: list[bytes]) -> None:
    chosen = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": data} for i, data in enumerate(pictures)]
    page.locator("#teach-files").set_input_files(chosen)


def explain_there(page: Page, data: bytes, label: str) -> dict:
    """What the page draws over a picture."""
    script = """async ([encoded, label]) => {
        const { explainHere } = await import("./page/device.js");
        const file = new File([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], "photo");
        return explainHere(file, label);
    }"""
    return page.evaluate(script, [base64.b64encode(data).decode(), label])


@pytest.fixture(scope="module")
def visit(browser, server) -> Iterator[Visit]:
    """The page on a phone with the device chosen, whose service can be cut off."""
    proxy = Proxy(server.url)
    with first_visit(browser, proxy.url, permissions=["camera"], accept_downloads=True) as visit:
        visit.proxy = proxy
        visit.page.on("filechooser", lambda chooser: None)  # Playwright takes over from here on.
        visit.page.get_by_text("On this device", exact=True).click()
        visit.page.locator("#teach summary").click()
        predict_there(visit.page, BATTERIES[0])  # The network is open.
        yield visit
    with suppress(OSError):
        proxy.close()


def test_only_this_device_is_taught(visit):
    teach_part = visit.page.locator("#teach")
    visit.page.get_by_text("On the server", exact=True).click()
    expect(teach_part).to_be_hidden()
    visit.page.get_by_text("On this device", exact=True).click()
    expect(teach_part).to_be_visible()
    expect(visit.page.locator("#teach-how")).to_contain_text("5 to 50 pictures")


def test_what_cannot_be_taught_is_named(visit):
    page = visit.page
    choose(page, [*BATTERIES[:3], b"no picture"])
    expect(page.locator("#teach-problem")).to_contain_text("Not a picture in an accepted format")
    expect(page.locator("#teach-pictures li")).to_have_count(3)
    page.get_by_role("button", name="Teach it", exact=True).click()
    expect(page.locator("#teach-problem")).to_have_text("At least 5 pictures are needed.")
    page.get_by_role("button", name="Remove picture 2").click()
    expect(page.locator("#teach-pictures li")).to_have_count(2)
    choose(page, BATTERIES[3:6])
    expect(page.locator("#teach-pictures li")).to_have_count(5)
    for name, problem in [
        ("Glass", "It knows “Glass” already"),
        ("a/b", "no slash"),
        ("", "1 to 100"),
        ("other", "already"),
    ]:
        page.get_by_label("Its name").fill(name)
        page.get_by_role("button", name="Teach it", exact=True).click()
        expect(page.locator("#teach-problem")).to_contain_text(problem)
    while page.locator("#teach-pictures li").count():
        page.get_by_role("button", name="Remove picture 1", exact=True).click()


def test_a_name_that_another_tab_taught_is_known(visit):
    page = visit.page
    page.evaluate("""async () => {
        const { keepThing } = await import("./page/things.js");
        await keepThing({ name: "Batterie", added: 0, sha256: "0", pictures: [] });
    }""")
    choose(page, BATTERIES[:5])
    expect(page.locator("#teach-pictures li")).to_have_count(5)
    page.get_by_label("Its name").fill("Batterie")
    page.get_by_role("button", name="Teach it", exact=True).click()
    expect(page.locator("#teach-problem")).to_contain_text("It knows “Batterie” already")
    page.get_by_role("button", name="Forget it: Batterie").click()
    expect(page.locator("#teach-known")).to_be_hidden()
    while page.locator("#teach-pictures li").count():
        page.get_by_role("button", name="Remove picture 1", exact=True).click()


def test_near_copies_are_said_and_do_not_count(visit):
    """By the rule of `teach`: the first one counts, in any size and orientation."""
    page = visit.page
    assert all(
        is_duplicate(perceptual_hash(open_rgb(copy)), perceptual_hash(open_rgb(BATTERIES[4]))[0]).any()
        for copy in COPIES
    )
    choose(page, [*BATTERIES[:5], *COPIES])
    expect(page.locator("#teach-count")).to_have_text("7 photographs")
    expect(page.locator("#teach-copies")).to_contain_text("not counted: 2 of 7. Take pictures from other sides.")
    expect(page.locator("#spoken")).to_contain_text("not counted: 2 of 7")
    expect(page.locator("#teach-pictures .copy")).to_have_count(2)
    expect(page.get_by_alt_text("picture 7, nearly the same as another one")).to_be_visible()
    page.get_by_role("button", name="Remove picture 1", exact=True).click()
    page.get_by_role("button", name="Teach it", exact=True).click()
    expect(page.locator("#teach-problem")).to_have_text("At least 5 pictures are needed.")
    page.get_by_role("button", name="Remove picture 4", exact=True).click()
    expect(page.locator("#teach-copies")).to_contain_text("not counted: 1 of 5")  # The next of them counts.
    page.get_by_role("button", name="Remove picture 5", exact=True).click()
    expect(page.locator("#teach-copies")).to_be_hidden()
    while page.locator("#teach-pictures li").count():
        page.get_by_role("button", name="Remove picture 1", exact=True).click()


def test_a_thing_is_taught_and_tried_with_the_keyboard(visit):
    page = visit.page
    page.locator("#teach-name").fill("")
    page.keyboard.type("Batterie")
    choose(page, [*BATTERIES, *COPIES])
    expect(page.locator("#teach-count")).to_have_text("12 photographs", timeout=120_000)
    page.locator("#teach-name").press("Enter")
    expect(page.locator("#teach-list li")).to_contain_text("recognized")
    expect(page.locator("#spoken")).to_contain_text("It knows “Batterie”")
    expect(page.locator("#kept")).to_be_hidden()
    expect(page.get_by_role("button", name="Try it: Batterie")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "new.png", "mimeType": "image/png", "buffer": draw_battery(99)}])
    card = visit.card("new")
    expect(card.locator(".verdict")).to_have_text("Batterie")
    for hint in ("#teach-how", "#teach-count", "#teach-list .hint"):
        expect(page.locator(hint)).to_be_visible()  # Also where there are pictures in the list
    card.get_by_role("button", name="Show what decided").click()
    expect(card.locator("canvas")).to_have_css("opacity", "1")
    card.locator(".label").select_option("Batterie")
    expect(card.locator("canvas")).to_have_attribute("aria-label", re.compile("Batterie"))
    expect(card.locator("canvas")).to_have_css("opacity", "1")
    assert visit.errors == [] and visit.overflow() <= 0


def saved(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as file: Batterie").click()
    assert download.value.suggested_filename == "Batterie.zip"
    path = folder / "Batterie.zip"
    download.value.save_as(path)
    return path


def test_the_file_is_read_by_the_command_which_answers_as_the_page(visit, tmp_path, request):
    path = saved(visit.page, tmp_path)
    done = call("teach", "--add", path, "--out", tmp_path / "new.onnx")
    assert done.returncode == 0 and "'Batterie' from 10 photographs" in done.stdout, done.stderr
    with ZipFile(path) as file:
        assert len(file.namelist()) == 10, "without copies"
    taught, item = Predictor(tmp_path / "new.onnx"), read_card(tmp_path / "new.onnx").taught[0]
    text = visit.page.locator("#teach-list li").text_content()
    assert f"{item.recognized} of 10 recognized, {item.lost} of {item.n_known} other" in text
    differences = []
    for seed in range(100, 110):
        expected, answer = taught.predict_one(draw_battery(seed)), predict_there(visit.page, draw_battery(seed))
        assert answer["predicted_class"] == expected.predicted_class
        probabilities = answer["all_probabilities"]
        differences += [abs(probabilities[label] - value) for label, value in expected.all_probabilities.items()]
    threshold = visit.page.evaluate("import('./page/device.js').then((device) => device.threshold())")
    report(
        request, f"largest difference {max(differences):.4f}, threshold {threshold:.4f}, {taught.card.unsure_below:.4f}"
    )
    assert max(differences) < 0.05 and abs(threshold - taught.card.unsure_below) < 0.01


def test_the_map_of_a_taught_thing_is_that_of_the_command(visit, tmp_path):
    """And those of the other classes are, too, which it competes with."""
    done = call("teach", "--add", saved(visit.page, tmp_path), "--out", tmp_path / "new.onnx")
    assert done.returncode == 0, done.stderr
    taught = Predictor(tmp_path / "new.onnx")
    for label in ("Batterie", "metal"):
        _, expected = taught.explain(Image.open(BytesIO(draw_battery(99))), label)
        shown = explain_there(visit.page, draw_battery(99), label)
        assert shown["label"] == label and np.abs(np.array(shown["activation_map"]) - expected).max() < 0.1


def test_the_same_features_give_the_same_row(visit, tmp_path):
    """On features of Python, only rounding is left between the browser and `teach`, also for what is left out."""
    before = Predictor(SHIPPED_MODEL)
    inputs = [to_input(Image.open(BytesIO(data)).convert("RGB"), before.card.preprocessing) for data in BATTERIES]
    features, logits = compute_features(before.session, inputs)
    new = Features(features, logits / before.card.temperature)
    known = _known_features(before.card, before.session, None, False)
    row = fit_row(new, known)
    script = """async ([sample, temperature, threshold, photographs]) => {
        const { learn, unpackSample } = await import("./page/learn.js");
        const { rows, measured, unsureBelow } = learn([{ photographs }], unpackSample(sample, temperature), threshold);
        return { weights: [...rows[0].weights], bias: rows[0].bias, threshold: unsureBelow, measured: measured[0] };
    }"""
    photographs = [
        {"features": a.tolist(), "logits": b.tolist()} for a, b in zip(new.features, new.logits, strict=True)
    ]
    sample = json.loads(before.card.feature_sample.model_dump_json())
    there = visit.page.evaluate(script, [sample, before.card.temperature, before.card.unsure_below, photographs])
    assert np.abs(row.weights - there["weights"]).max() < 1e-6 * np.abs(row.weights).max()
    assert abs(row.bias - there["bias"]) < 1e-6
    item = _measure("Batterie", new, known, None)
    assert there["measured"] == {"n": 10, "recognized": item.recognized, "known": item.n_known, "lost": item.lost}
    assert abs(there["threshold"] - recalibrate(before.card.unsure_below, known, row)) < 1e-4


def test_the_camera_takes_one_after_the_other(visit):
    page = visit.page
    page.get_by_role("button", name="Take pictures").click()
    expect(page.locator("#live-text")).to_have_text("0 photographs")
    for count in ("1 photograph", "2 photographs"):
        page.get_by_role("button", name="Keep this picture").click()
        expect(page.locator("#live-text")).to_contain_text(count)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#teach-pictures li")).to_have_count(2)


@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("ar", "dark")])
def test_axe_finds_nothing(visit, language, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make lock").Axe()
    page = visit.page
    page.emulate_media(color_scheme=scheme)
    page.locator("#language").select_option(language)
    page.locator("#teach-name").fill("ab/c")
    choose(page, [BATTERIES[0], *near_copies(BATTERIES[0]), b"no picture"])
    expect(page.locator("#teach-problem")).to_be_visible()
    expect(page.locator("#teach-copies")).to_be_visible()
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate(f"({SMALL})().map((part) => part.outerHTML)") == [] and visit.overflow() <= 0
        cut = "[...document.querySelectorAll('.teach, .teach .button, .teach li')]"
        assert page.evaluate(f"{cut}.filter((part) => part.scrollWidth > part.clientWidth).length") == 0
        found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in axe.run(page).response["violations"]}
        assert found == {}
        visit.name = f"{width}-{scheme}-{language}"
        visit.shoot("teach")
    page.locator("#language").select_option("en")
    page.locator("#teach-name").fill("")


def test_it_is_kept_without_a_network_and_forgotten(visit, tmp_path):
    page = visit.page
    before = predict_there(page, draw_battery(99))["all_probabilities"]
    visit.proxy.close()
    page.reload()
    page.locator("#teach summary").click()
    expect(page.locator("#teach-list li")).to_contain_text("Batterie")
    assert predict_there(page, draw_battery(99))["all_probabilities"] == pytest.approx(before, abs=1e-6)
    assert saved(page, tmp_path).stat().st_size > 10_000
    visit.upload(before=draw_battery(99))
    expect(visit.card("before").locator(".verdict")).to_have_text("Batterie")
    page.get_by_role("button", name="Forget it: Batterie").click()
    expect(page.locator("#teach-known")).to_be_hidden()
    expect(page.locator("#teach summary")).to_be_focused()
    expect(visit.card("before").locator(".result")).to_be_visible()
    expect(visit.card("before").locator(".bars")).not_to_contain_text("Batterie")
    assert "Batterie" not in predict_there(page, draw_battery(99))["all_probabilities"]
    page.reload()
    page.locator("#teach summary").click()
    expect(page.locator("#teach-known")).to_be_hidden()
    assert [error for error in visit.errors if "ERR_" not in error] == []


def teach_batteries(page):
    """Five pictures and a name, until it is learned."""
    choose(page, BATTERIES[:5])
    expect(page.locator("#teach-pictures li")).to_have_count(5)
    page.locator("#teach-name").fill("Batterie")
    page.locator("#teach-name").press("Enter")
    expect(page.locator("#teach-list li")).to_contain_text("recognized")


def test_a_file_without_cells_has_no_map_of_a_taught_thing(visit, monkeypatch):
    """As one that an earlier page has left in the browser."""
    page = visit.page
    teach_batteries(page)
    monkeypatch.setattr(on_device, "add_cells", lambda content: content)
    file = gzip.compress(on_device.optimize(SHIPPED_MODEL.read_bytes()))
    script = """async (encoded) => {
        const cache = await caches.open("on-device");
        const [model] = (await cache.keys()).filter(({ url }) => url.includes("model.onnx.gz"));
        await cache.put(model, new Response(Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))));
    }"""
    page.evaluate(script, base64.b64encode(file).decode())
    page.reload()
    visit.upload(without=draw_battery(99))
    card = visit.card("without")
    expect(card.locator(".verdict")).to_have_text("Batterie")
    assert sorted(card.locator(".label option").all_text_contents()) == sorted(Predictor(SHIPPED_MODEL).card.classes)
    card.get_by_role("button", name="Show what decided").click()
    expect(card.locator("canvas")).to_have_css("opacity", "1")
    page.locator("#teach summary").click()
    page.get_by_role("button", name="Forget it: Batterie").click()
    expect(page.locator("#teach-known")).to_be_hidden()


def test_what_does_not_fit_is_said_to_be_lost(visit):
    """A full disk ends a transaction after its request has succeeded."""
    page = visit.page
    page.evaluate("""() => {
        const { put } = IDBObjectStore.prototype;
        IDBObjectStore.prototype.put = function (thing) {
            const request = put.call(this, thing);
            request.addEventListener("success", () => this.transaction.abort());
            return request;
        };
    }""")
    teach_batteries(page)
    expect(page.locator("#teach-lost")).to_contain_text("forgotten when you leave the page")
    page.get_by_role("button", name="Forget it: Batterie").click()
    expect(page.locator("#teach-known")).to_be_hidden()
    page.reload()
    page.locator("#teach summary").click()


def test_a_model_that_cannot_be_taught_forgets(visit):
    page = visit.page
    teach_batteries(page)
    script = """async () => {
        const cache = await caches.open("on-device");
        const [{ url }] = (await cache.keys()).filter(({ url }) => url.endsWith("model.json"));
        const card = await (await cache.match(url)).text();
        await cache.put(url, new Response(card.replace('"teachable":true', '"teachable":false')));
        return card;
    }"""
    card = page.evaluate(script)
    page.reload()
    page.locator("#teach summary").click()
    expect(page.locator("#teach-form")).to_be_hidden()
    page.get_by_role("button", name="Forget it: Batterie").click()
    expect(page.locator("#teach")).to_be_hidden()
    page.evaluate(
        """async (card) => {
        await (await caches.open("on-device")).put("api/on-device/model.json", new Response(card));
    }""",
        card,
    )
    page.reload()
    page.locator("#teach summary").click()


def test_a_model_that_has_learned_it_itself_needs_no_row(visit):
    """And with features of another model, the pictures are looked at again."""
    page = visit.page
    teach_batteries(page)
    script = """async () => {
        const { keepThing, readThings } = await import("./page/things.js");
        const [thing] = await readThings();
        const pictures = thing.pictures.map(({ picture }) => ({ picture }));
        await keepThing({ ...thing, sha256: "0", pictures });
    }"""
    page.evaluate(script)
    before = predict_there(page, draw_battery(99))["all_probabilities"]
    page.reload()
    after = predict_there(page, draw_battery(99))["all_probabilities"]
    assert after == pytest.approx(before, abs=1e-6)
    cache = """async () => {
        const cache = await caches.open("on-device");
        const [card] = (await cache.keys()).filter(({ url }) => url.endsWith("model.json"));
        const known = await (await cache.match(card)).json();
        known.info.classes = known.info.classes.map((label) => label === "trash" ? "Batterie" : label);
        await cache.put(card, new Response(JSON.stringify(known)));
    }"""
    page.evaluate(cache)
    page.reload()
    page.locator("#teach summary").click()
    expect(page.locator("#teach-list li")).to_contain_text("It knows “Batterie” already")
    assert len(predict_there(page, draw_battery(99))["all_probabilities"]) == 6
