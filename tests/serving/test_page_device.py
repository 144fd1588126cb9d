"""The page on the device: installed, without a network, and with the same answers as Python."""

import base64
import csv
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from PIL import Image, ImageCms
from playwright.sync_api import Page, expect
from visits import ARTIFACTS, SAMPLES, SIZES, SMALL, Visit

from trashsorting.core.card import Preprocessing
from trashsorting.core.image import crop_box, resize, to_input
from trashsorting.core.places import bin_for, read_places
from trashsorting.core.prediction import Prediction
from trashsorting.data.duplicates import perceptual_hash
from trashsorting.data.sample import draw_picture
from trashsorting.serving import page as page_module
from trashsorting.serving.page import write_page

pytestmark = pytest.mark.skipif(
    page_module._runtime_version() is None,
    reason="!!! ONNX Runtime Web was not fetched, so no browser ran it: make runtime",
)
PHOTOGRAPHS = int(os.environ.get("CHECK_PHOTOGRAPHS", "6"))  # Of TrashNet's validation split
FIRST_ANSWER = float(os.environ.get("CHECK_FIRST_ANSWER", "120"))  # Seconds; a machine may be busy
MEGABYTES = 7  # That a first visit may transfer
MORE_SWITCHES = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


class Proxy:
    """Passes every byte to a service and counts those that come back; once closed, nobody answers at its port."""

    def __init__(self, url: str):
        host, port = url.removeprefix("http://").split(":")
        self.target, self.received = (host, int(port)), 0
        self.listener, self.open = socket.create_server(("127.0.0.1", 0)), set()
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                inside, outside = self.listener.accept()[0], socket.create_connection(self.target)
                self.open |= {inside, outside}
                for pair in ((inside, outside), (outside, inside)):
                    threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                if source.getpeername() == self.target:
                    self.received += len(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextmanager
def first_visit(browser, url: str, **options) -> Iterator[Visit]:
    """The page on a phone that keeps what it gets, once model and page are there."""
    options = {"viewport": SIZES["phone"], "has_touch": True, "is_mobile": True, "locale": "en-GB", **options}
    context = browser.new_context(**options)
    context.set_default_timeout(120_000)  # The machine may be busy.
    visit = Visit(context.new_page(), "device")
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.goto(url)
    wait_until_ready(visit.page)
    yield visit
    context.close()


def wait_until_ready(page: Page) -> None:
    """Until a visit without a network would work."""
    page.evaluate("""async () => {
        const device = await import("./page/device.js");
        const pause = () => new Promise((done) => setTimeout(done, 50));
        while (!navigator.serviceWorker.controller || device.state !== "ready") await pause();
    }""")


def predict_there(page: Page, data: bytes, place: str | None = None) -> dict:
    """What the model in the browser says about a file."""
    script = """async ([encoded, place]) => {
        const { predictHere } = await import("./page/device.js");
        const file = new File([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], "photo");
        return predictHere(file, place).catch((problem) => ({ problem: problem.key }));
    }"""
    return page.evaluate(script, [base64.b64encode(data).decode(), place])


def difference(answer: dict, prediction: Prediction) -> float:
    """The largest difference of a probability."""
    there = answer["all_probabilities"]
    return max(abs(there[label] - value) for label, value in prediction.all_probabilities.items())


def report(request, text: str) -> None:
    """Show a measurement beside the test's dot."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f" [{text}]", end="")


@pytest.fixture(scope="module")
def proxy(server) -> Iterator[Proxy]:
    started = Proxy(server.url)
    yield started
    with suppress(OSError):
        started.close()


@pytest.fixture(scope="module")
def offline(browser, proxy) -> Iterator[Visit]:
    """The page after one visit, opened again when nobody answers any more."""
    with first_visit(browser, proxy.url) as visit:
        visit.transferred = proxy.received
        errors = visit.page.context.new_cdp_session(visit.page).send("Page.getAppManifest")["errors"]
        visit.installable = visit.page.context.new_cdp_session(visit.page).send("Page.getInstallabilityErrors")
        assert errors == []
        proxy.close()
        visit.page.reload()
        expect(visit.page.locator("#model")).to_contain_text("test photographs")
        yield visit


def test_a_first_visit_transfers_at_most_7_megabytes(offline, request):
    report(request, f"{offline.transferred / 1e6:.2f} MB")
    assert offline.transferred <= MEGABYTES * 1e6


def test_a_browser_offers_to_install_the_page(offline):
    errors = [error["errorId"] for error in offline.installable["installabilityErrors"]]
    assert errors == ["in-incognito"], "which each window of a test is"


def test_the_manifest_follows_the_language_and_its_icons_are_there(client):
    answer = client.get("/manifest.webmanifest", headers={"accept-language": "ar"})
    manifest = answer.json()
    assert answer.headers["content-type"].startswith("application/manifest+json")
    assert (manifest["lang"], manifest["dir"], manifest["display"]) == ("ar", "rtl", "standalone")
    assert len(manifest["short_name"]) <= 20 and manifest["start_url"] == manifest["scope"] == "./"
    assert {icon["purpose"] for icon in manifest["icons"]} == {"any", "maskable"}
    for icon in manifest["icons"]:
        file = client.get(f"/{icon['src']}")
        assert file.status_code == 200 and file.headers["content-type"] == icon["type"]
        if icon["sizes"] != "any":
            with Image.open(page_module._STATIC / icon["src"]) as picture:
                assert f"{picture.width}x{picture.height}" == icon["sizes"]


def test_the_files_for_the_device_are_sent_compressed(client, predictor):
    card = client.get("/api/on-device/model.json").json()
    assert card["sha256"] == predictor.card.file_sha256
    model = client.get("/api/on-device/model.onnx.gz", params={"sha256": card["sha256"]})
    assert model.headers["content-type"] == "application/gzip" and model.content[:2] == b"\x1f\x8b"
    known = client.get("/api/on-device/model.onnx.gz", headers={"if-none-match": model.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    other = client.get("/api/on-device/model.onnx.gz", params={"sha256": "0" * 64})
    assert (other.status_code, other.json()["code"]) == (404, "not-found")
    for accepted, kind in [("gzip", "gzip"), ("br;q=0, gzip", "gzip"), ("gzip, br", "wasm")]:
        with client.stream("GET", "/runtime/ort.wasm", headers={"accept-encoding": accepted}) as answer:
            assert answer.headers["content-type"] == f"application/{kind}"
            assert answer.headers.get("content-encoding") == ("br" if kind == "wasm" else None)


def rotated(picture: Image.Image) -> bytes:
    """A JPEG that its EXIF turns upright, and that has another size across than down."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture.rotate(90, expand=True), "JPEG", quality=92, exif=exif.tobytes())


def files() -> dict[str, bytes]:
    """The drawn sample in every format that Chromium opens, and in unusual colours."""
    glass = draw_picture("glass", 3, (512, 384))
    transparent = glass.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(glass.size))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {
        "png": encode(glass),
        "jpeg": encode(glass, "JPEG", quality=90),
        "progressive": encode(glass, "JPEG", quality=80, progressive=True),
        "rotated": rotated(glass),
        "webp": encode(glass, "WEBP", quality=90),
        "avif": encode(glass, "AVIF", quality=80),
        "grey": encode(glass.convert("L"), "JPEG"),
        "palette": encode(glass.convert("P")),
        "transparent": encode(transparent),
        "profile": encode(glass, "PNG", icc_profile=profile),
        "large": encode(glass.resize((2048, 1536)), "JPEG", quality=85),
        **{label: SAMPLES[label] for label in SAMPLES},
    }


def test_drawn_files_get_the_same_answer_without_a_network(offline, predictor, request):
    place = read_places()[0]
    differences = {}
    for name, data in files().items():
        expected = predictor.predict_one(data)
        answer = predict_there(offline.page, data, place.id)
        assert answer["predicted_class"] == expected.predicted_class, name
        assert answer["bin"]["id"] == bin_for(place, expected, predictor.card.unsure_below).id
        differences[name] = difference(answer, expected)
    report(request, f"largest difference {max(differences.values()):.4f}, {max(differences, key=differences.get)}")
    assert max(differences.values()) < 0.05, differences


def test_photographs_get_the_same_answer_without_a_network(offline, predictor, request):
    if "TRASHNET" not in os.environ:
        pytest.skip("!!! no real photograph: set TRASHNET to a folder that holds TrashNet's images/<class>/*.jpg")
    paths = validation_photographs()
    differences, changed = [], []
    for path in paths[:: max(1, len(paths) // PHOTOGRAPHS)]:
        expected, answer = predictor.predict_one(path), predict_there(offline.page, path.read_bytes())
        differences.append(difference(answer, expected))
        if answer["predicted_class"] != expected.predicted_class:
            changed.append((path.name, expected.confidence))
    report(
        request, f"{len(differences)} photographs, largest difference {max(differences):.4f}, {len(changed)} changed"
    )
    assert changed == []


def validation_photographs() -> list[Path]:
    """The validation split, as the file beside the photographs has it."""
    folder = Path(os.environ["TRASHNET"])
    with (folder / "split.csv").open(encoding="utf-8") as stream:
        return [folder / "images" / row["file"] for row in csv.DictReader(stream) if row["split"] == "val"]


def test_what_is_no_picture_is_named(offline):
    for data, key in [
        (b"", "error.empty"),
        (b"a green bottle", "error.format"),
        (SAMPLES["glass"][:500], "error.damaged"),
    ]:
        assert predict_there(offline.page, data) == {"problem": key}
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    assert predict_there(offline.page, heic) == {"problem": "error.not-readable-here"}


def test_a_card_without_a_network(offline, predictor):
    """The service was chosen, and the device answers instead; then the device is chosen."""
    offline.upload(glass=SAMPLES["glass"])
    expect(offline.card().locator(".instead")).to_contain_text("the service could not be reached")
    offline.card().get_by_role("button", name="Show what decided").click()
    expect(offline.card().locator("canvas")).to_have_css("opacity", "1")
    _, expected = predictor.explain(draw_picture("glass", 0, (512, 384)))
    script = """async (encoded) => {
        const { explainHere } = await import("./page/device.js");
        const file = new File([Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0))], "photo");
        return explainHere(file, "%s");
    }"""
    label = predictor.predict_one(SAMPLES["glass"]).predicted_class
    shown = offline.page.evaluate(script % label, base64.b64encode(SAMPLES["glass"]).decode())
    assert np.abs(np.array(shown["activation_map"]) - expected).max() < 0.1 and shown["box"] == [0, 0, 1, 1]
    offline.page.get_by_text("On this device", exact=True).click()
    expect(offline.page.locator("#where-note")).to_be_visible()
    expect(offline.page.locator("#where-note")).to_have_text(
        "Photographs stay on this device. It works without a network."
    )
    offline.upload(paper=SAMPLES["paper"])
    expect(offline.card("paper").locator(".result")).to_be_visible()
    expect(offline.card("paper").locator(".instead")).to_be_hidden()
    offline.page.locator("#place").select_option("dk-copenhagen")
    expect(offline.card("paper").locator(".verdict.of-bin, .candidates li").first).to_be_visible()
    offline.shoot("offline")
    assert offline.errors == [] and offline.overflow() <= 0


@pytest.fixture(scope="module")
def modules(browser, server) -> Iterator[Page]:
    """A page that may load the scripts, and does nothing itself."""
    page = browser.new_page()
    page.goto(f"{server.url}/page/icon.svg")
    yield page
    page.close()


RESIZE = """async ([encoded, width, height, preprocessing]) => {
    const { cropBox, normalize, resize } = await import("/page/resize.js");
    const values = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
    const rows = (top, count) => values.subarray(top * width * 4, (top + count) * width * 4);
    const box = cropBox(width, height, preprocessing);
    const pixels = resize({ width, height, rows }, box, preprocessing.input_size, preprocessing.interpolation);
    const encode = (array) => {
        let text = "";
        for (const byte of new Uint8Array(array.buffer)) text += String.fromCharCode(byte);
        return btoa(text);
    };
    return { box, pixels: encode(pixels), input: encode(normalize(pixels, preprocessing)) };
}"""


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("crop_mode", "crop_pct"), [("squash", 1.0), ("center", 0.875)])
@pytest.mark.parametrize("size", [(512, 384), (100, 81), (37, 600), (224, 224), (1000, 300), (1, 1)])
def test_the_browser_resizes_as_pillow_does(modules, size, crop_mode, crop_pct, interpolation):
    means = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    how = Preprocessing(input_size=224, crop_mode=crop_mode, crop_pct=crop_pct, interpolation=interpolation, **means)
    lowest, highest = (64, 192) if size[1] > size[0] else (0, 256)  # Clipping between the passes depends on their order
    noise = np.random.default_rng(0).integers(lowest, highest, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(noise[:, :, :3].copy())
    arguments = [base64.b64encode(noise.tobytes()).decode(), *size, how.model_dump(mode="json")]
    answer = modules.evaluate(RESIZE, arguments)
    assert answer["box"] == list(crop_box(size, how))
    pixels = np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(224, 224, 3)
    difference = np.abs(pixels.astype(int) - np.asarray(resize(picture, how)))
    assert difference.max() <= (size[1] > size[0]), "equal, or one step where Pillow 13 goes down first"
    values = np.frombuffer(base64.b64decode(answer["input"]), np.float32).reshape(3, 224, 224)
    whole = how.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
    assert np.array_equal(values, to_input(Image.fromarray(pixels), whole))


HASH = """async ([encoded, width, height]) => {
    const { perceptualHash } = await import("/page/hash.js");
    const values = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
    const rows = (top, count) => values.subarray(top * width * 4, (top + count) * width * 4);
    return perceptualHash({ width, height, rows }).map((bits) => [...bits]);
}"""


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (1024, 683), (40, 30), (31, 33)])
def test_the_browser_hashes_as_python_does(modules, size):
    """All bits of all orientations, of drawn pictures and of noise."""
    noise = np.random.default_rng(0).integers(64, 192, (size[1] // 4, size[0] // 4, 3), np.uint8)
    pictures = [draw_picture(label, 0, size) for label in SAMPLES] + [Image.fromarray(noise).resize(size)]
    for picture in pictures:
        arguments = [base64.b64encode(picture.convert("RGBA").tobytes()).decode(), *size]
        bits = np.packbits(np.array(modules.evaluate(HASH, arguments), np.uint8), axis=1).view(np.uint64)
        differing = np.bitwise_count(bits ^ perceptual_hash(picture)).sum(axis=1).max()
        assert differing <= (4 if size[1] > size[0] else 0), "equal, or nearly where Pillow 13 goes down first"


def test_the_browser_names_the_same_bin_as_the_service(modules, predictor):
    places, threshold = read_places(), predictor.card.unsure_below
    random = np.random.default_rng(0)
    predictions = []
    for concentration in (0.05, 0.3, 1.0):
        for values in random.dirichlet([concentration] * len(predictor.card.classes), 20).tolist():
            ranked = dict(sorted(zip(predictor.card.classes, values, strict=True), key=lambda pair: -pair[1]))
            top, confidence = next(iter(ranked.items()))
            predictions.append(Prediction(predicted_class=top, confidence=confidence, all_probabilities=ranked))
    script = """async ([places, predictions, threshold]) => {
        const { binFor } = await import("/page/rules.js");
        return places.map((place) => predictions.map((prediction) => binFor(place, prediction, threshold)));
    }"""
    rules = [json.loads(place.model_dump_json(exclude_none=True)) for place in places]
    answers = modules.evaluate(script, [rules, [one.model_dump() for one in predictions], threshold])
    unsure = 0
    for place, row in zip(places, answers, strict=True):
        for prediction, answer in zip(predictions, row, strict=True):
            expected = bin_for(place, prediction, threshold).model_dump_json(exclude_none=True)
            assert round_floats(json.dumps(answer)) == round_floats(expected)
            unsure += "candidates" in answer
    assert 0 < unsure < len(places) * len(predictions)


def round_floats(text: str) -> dict:
    """JSON with numbers of nine digits: both sides add in double precision, not always in the same order."""
    return json.loads(text, parse_float=lambda number: round(float(number), 9))


@contextmanager
def files_at(folder: Path) -> Iterator[str]:
    """A host of files that compresses nothing and knows no service."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_copy_without_a_service_answers_and_follows_its_host(browser, predictor, tmp_path):
    """Another model, here only its card, and another page reach a device that has been here before."""
    write_page(tmp_path / "app")
    with files_at(tmp_path / "app") as url, first_visit(browser, url, locale="da-DK") as visit:
        page = visit.page
        page.on("request", lambda request: visit.requested.append(request.url))
        expect(page.locator("h1")).to_have_text("Affaldssortering")
        expect(page.locator("#where-choice")).to_be_hidden()
        expect(page.locator("#where-note")).to_contain_text("Det virker uden netværk")
        expect(page.locator("#place-row")).to_be_visible()
        expect(page.locator("#model")).to_contain_text(f"{predictor.card.evaluation.n:,}".replace(",", "."))
        visit.upload(glass=SAMPLES["glass"])
        expect(visit.card().locator(".result")).to_be_visible()
        expect(visit.card().locator(".feedback")).to_be_hidden()
        before, expected = predict_there(page, SAMPLES["glass"]), predictor.predict_one(SAMPLES["glass"])
        assert difference(before, expected) < 0.05
        card = json.loads((tmp_path / "app/api/on-device/model.json").read_bytes())
        changed = {**card, "sha256": "0" * 64, "temperature": 100 * card["temperature"]}
        (tmp_path / "app/api/on-device/model.json").write_text(json.dumps(changed), encoding="utf-8")
        replace(tmp_path / "app/page/page.css", "--ground: #f3f5ef", "--ground: #123456")
        replace(tmp_path / "app/sw.js", 'VERSION = "', 'VERSION = "next-')
        page.reload()
        page.evaluate("""async () => {
            const device = await import("./page/device.js");
            const pause = () => new Promise((done) => setTimeout(done, 50));
            const old = (name) => /^page-(?!next)/.test(name);
            while (device.card?.sha256[0] !== "0" || (await caches.keys()).some(old)) await pause();
        }""")
        assert predict_there(page, SAMPLES["glass"])["confidence"] < 0.2 < before["confidence"]
        page.reload()
        ground = "getComputedStyle(document.documentElement).getPropertyValue('--ground')"
        assert page.evaluate(ground) == "#123456"
        kept = "caches.open('on-device').then((cache) => cache.keys()).then((keys) => keys.length)"
        assert page.evaluate(kept) == 5, "the model before is gone"
        assert visit.hosts() == {url.split("/")[2]} and visit.errors == []


def test_the_first_answer_with_a_cold_cache(browser, client, server, predictor, request):
    """From the navigation to the answer on the screen, without anything kept. The aim is 4 s on an idle machine."""
    made = client.get("/api/on-device/model.onnx.gz", params={"sha256": predictor.card.file_sha256})
    assert made.status_code == 200  # The service makes the file once.
    context = browser.new_context(viewport=SIZES["phone"], has_touch=True, is_mobile=True, locale="en-GB")
    context.add_init_script("localStorage.setItem('where', 'device')")
    page = context.new_page()
    page.goto(server.url, wait_until="domcontentloaded")
    visit = Visit(page, "cold")
    visit.upload(glass=SAMPLES["glass"])
    script = """(limit) => new Promise((done) => {
        const look = () => {
            const [text, seconds] = [document.querySelector(".card .verdict")?.textContent, performance.now() / 1000];
            if (text || seconds > limit) done(seconds);
            else requestAnimationFrame(look);
        };
        look();
    })"""
    seconds = page.evaluate(script, FIRST_ANSWER)
    report(request, f"first answer after {seconds:.1f} s, at most {FIRST_ANSWER:g} s")
    assert seconds <= FIRST_ANSWER
    context.close()


FULL = "Cache.prototype.put = async () => { throw new DOMException('', 'QuotaExceededError'); }"


def test_a_full_disk_keeps_nothing_and_answers(browser, server, predictor):
    context = browser.new_context(service_workers="block")
    context.add_init_script(FULL)
    page = context.new_page()
    page.goto(server.url)
    assert difference(predict_there(page, SAMPLES["glass"]), predictor.predict_one(SAMPLES["glass"])) < 1e-3
    context.close()


CHROME_TORCH = """() => {
    MediaStreamTrack.prototype.getCapabilities = () => ({ torch: true });
    MediaStreamTrack.prototype.applyConstraints = async ({ advanced }) => { window.torch = advanced[0].torch; };
}"""


@pytest.fixture(scope="module")
def here(browser, server) -> Iterator[Visit]:
    """The page with the device chosen, the model on it, and a camera."""
    with first_visit(browser, server.url, permissions=["camera"]) as visit:
        visit.page.get_by_text("On this device", exact=True).click()
        yield visit


def test_the_camera_says_what_it_sees_and_keeps_a_picture(here):
    page = here.page
    page.get_by_role("button", name="Live camera").click()
    expect(page.locator("#live-text")).to_contain_text("sure")
    expect(page.get_by_role("button", name="Light")).to_be_hidden()
    assert page.locator("#video").evaluate("video => video.videoWidth") > 0
    page.screenshot(path=ARTIFACTS / "page-device-camera.png", animations="disabled")
    page.get_by_role("button", name="Keep this picture").click()
    card = page.locator(".card").first
    expect(card.locator(".result")).to_be_visible()
    assert card.get_attribute("aria-label").startswith("photo-")
    expect(page.locator("#viewfinder")).to_be_hidden()
    assert page.locator("#video").evaluate("video => video.srcObject.getTracks()[0].readyState") == "ended"
    assert here.errors == []


def test_the_camera_s_light_is_switched_where_there_is_one(here):
    page = here.page
    page.evaluate(CHROME_TORCH)
    page.get_by_role("button", name="Live camera").click()
    light = page.get_by_role("button", name="Light")
    light.click()
    expect(light).to_have_attribute("aria-pressed", "true")
    light.click()
    expect(light).to_have_attribute("aria-pressed", "false")
    assert page.evaluate("torch") is False
    page.get_by_role("button", name="Close").click()


SLOW_CAMERA = """() => {
    const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    window.tracks = [];
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((done) => setTimeout(done, 300));
        const stream = await open(wanted);
        window.tracks.push(...stream.getTracks());
        return stream;
    };
}"""


def test_a_camera_that_is_opened_twice_ends_as_a_whole(here):
    page = here.page
    page.evaluate(SLOW_CAMERA)
    for _ in range(2):
        page.get_by_role("button", name="Live camera").click()
        page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Live camera").click()
    expect(page.get_by_role("button", name="Keep this picture")).to_be_enabled()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Close").click()
    page.wait_for_function("tracks.every((track) => track.readyState === 'ended')")  # the event comes after the click
    assert page.evaluate("tracks.length") == 3


def test_a_model_that_is_replaced_answers_what_it_was_asked(here):
    page, asked = here.page, []
    page.route("**/api/on-device/model.json", lambda route: asked.append(route))
    page.route("**/*sha256=*", lambda route: route.continue_(url=route.request.url.partition("?")[0]))
    page.reload()
    names = [f"photo{number}" for number in range(12)]
    here.upload(**dict.fromkeys(names, SAMPLES["glass"]))
    expect(here.card(names[0]).locator(".result")).to_be_visible()
    asked[0].fulfill(json={**asked[0].fetch().json(), "sha256": "0" * 64})
    for name in names:
        expect(here.card(name).locator(".result")).to_be_visible()
    page.unroute_all()
    page.reload()
    wait_until_ready(page)


def test_what_was_removed_is_not_looked_at(here):
    page = here.page
    page.evaluate("""() => {
        const post = Worker.prototype.postMessage;
        window.asked = 0;
        Worker.prototype.postMessage = function (...message) { asked += 1; return post.apply(this, message); };
    }""")
    here.upload(**{f"photo{number}": SAMPLES["glass"] for number in range(12)})
    page.get_by_role("button", name="Clear the list").click()
    here.upload(last=SAMPLES["paper"])
    expect(here.card("last").locator(".result")).to_be_visible()
    assert page.evaluate("asked") < 12


def test_a_folder_is_no_picture(here, tmp_path):
    here.drop(tmp_path)
    expect(here.page.locator(".card .problem").first).to_contain_text("damaged or cut off")


def test_a_refused_camera_is_explained(here):
    page = here.page
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error(); }; }")
    page.get_by_role("button", name="Live camera").click()
    expect(page.get_by_role("alert")).to_contain_text("Allow this page to use it")
    page.keyboard.press("Escape")
    expect(page.locator("#viewfinder")).to_be_hidden()


@pytest.mark.parametrize(("language", "scheme"), [("da", "light"), ("ar", "dark")])
def test_axe_finds_nothing_on_the_device(here, language, scheme):
    """On the states that a visit to the service has not: the switch, an answer from here, the camera."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make lock").Axe()
    page = here.page
    page.set_viewport_size({"width": 320, "height": 640})
    page.emulate_media(color_scheme=scheme)
    page.locator("#language").select_option(language)
    page.evaluate("document.querySelector('#where-again').hidden = document.querySelector('.instead')?.hidden")
    for what in ("page", "camera"):
        if what == "camera":
            page.evaluate("viewfinder.showModal(); document.querySelector('#camera-problem').hidden = false")
        assert page.evaluate(f"({SMALL})().map((part) => part.outerHTML)") == [] and here.overflow() <= 0
        page.screenshot(
            path=ARTIFACTS / f"page-device-{what}-{language}-{scheme}.png",
            animations="disabled",
            full_page=what == "page",
        )
        found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in axe.run(page).response["violations"]}
        assert found == {}, what
    page.evaluate("viewfinder.close()")
    here.page.locator("#language").select_option("en")
