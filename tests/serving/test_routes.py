"""The routes over real HTTP from a real server."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import encode
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from trashsorting.core.card import card_path
from trashsorting.core.image import load_plugin
from trashsorting.core.settings import read_settings
from trashsorting.data.sample import draw_picture
from trashsorting.serving.app import create_app
from trashsorting.serving.schemas import BAD_FORM, LONG_FIELD, NO_FILE, NO_FILENAME, NO_FILENAMES, NO_MODEL, UNEXPECTED

GLASS = encode(draw_picture("glass", 0, (512, 384)))


def predict(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/api/predict", files={"file": ("upload", data)})


# Responses


def test_predict(client, predictor):
    answer = predict(client, GLASS)
    assert answer.status_code == 200
    prediction = answer.json()
    assert prediction.keys() == {"predicted_class", "confidence", "all_probabilities", "unsure"}
    probabilities = list(prediction["all_probabilities"].values())
    assert sorted(prediction["all_probabilities"]) == list(predictor.card.classes)
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1)
    assert next(iter(prediction["all_probabilities"].items())) == (
        prediction["predicted_class"],
        prediction["confidence"],
    )
    assert prediction["all_probabilities"] == pytest.approx(predictor.predict_one(GLASS).all_probabilities, abs=1e-6)


def test_a_query_of_defaults_changes_nothing(client):
    bare, asked = (client.post(f"/api/predict{query}", files={"file": GLASS}) for query in ("", "?timing=false"))
    assert (bare.status_code, bare.content) == (asked.status_code, asked.content)
    assert [*bare.headers] == [*asked.headers] and bare.headers["content-type"] == "application/json"


def test_name_and_declared_type_of_a_file_do_not_matter(client):
    answer = client.post("/api/predict", files={"file": ("notes.txt", GLASS, "text/plain")})
    assert answer.status_code == 200 and answer.json() == predict(client, GLASS).json()


def test_short_fields_beside_the_file_are_allowed(client):
    answer = client.post("/api/predict", data={"note": "found in the kitchen"}, files={"file": GLASS})
    assert answer.status_code == 200


def test_health(client):
    answer = client.get("/api/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "model_loaded": True, "model_error": None}


def test_model_info_is_the_card(client, predictor):
    card, answer = predictor.card, client.get("/api/model/info")
    assert answer.status_code == 200
    assert answer.json() == {
        "name": card.name,
        "architecture": card.architecture,
        "classes": list(card.classes),
        "num_classes": len(card.classes),
        "has_activation_map": card.has_activation_map,
        "file_bytes": predictor.model.stat().st_size,
        "metrics": json.loads(card.evaluation.model_dump_json()),
        "evaluation_note": card.evaluation_note,
        "held_out_sources": card.model_dump(mode="json")["held_out_sources"],
        "feedback": False,
    }
    assert 0 < answer.json()["metrics"]["accuracy"] <= 1


def test_index_names_every_endpoint(client):
    index = client.get("/api/").json()
    assert index.keys() == {"name", "version", "endpoints"} and index["name"] == "trashsorting"
    paths = client.get("/openapi.json").json()["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert {*index["endpoints"]} == documented - {"GET /api/"} | {"GET /docs"}
    for endpoint in index["endpoints"]:
        method, path = endpoint.split()
        assert client.request(method, path).status_code in ((404,) if "feedback" in path else (200, 422)), endpoint


def test_documentation_has_examples_and_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {*paths["/api/predict"]["post"]["responses"]} == {"200", "400", "408", "413", "415", "422", "500", "503"}
    for route in (route for methods in paths.values() for route in methods.values()):
        for status, answer in route["responses"].items():
            if int(status) >= 400:
                content = answer["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert content["example"]["code"] in answer["description"]
                assert isinstance(content["example"]["detail"], str)


def test_a_mounted_application_keeps_its_limits_and_addresses(predictor):
    outer, inner = Starlette(), create_app(predictor=predictor)
    outer.mount("/trash", inner)
    client = TestClient(outer, base_url="http://outer/trash/")
    assert client.get("openapi.json").json()["servers"] == [{"url": "."}]
    large = JPEG + bytes(6_000_000)  # two of them are more than a file may be, and less than a batch
    assert batch(client, large, large, url="api/predict/batch").status_code == 200
    page = client.get("metrics").text
    assert 'requests_total{route="/api/predict/batch",status="200"}' in page


def test_page(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    nowhere = ("default-src", "base-uri", "form-action", "frame-ancestors")
    assert all(f"{what} 'none'" in policy for what in nowhere) and "connect-src 'self'" in policy
    assert not re.search(r"unsafe|\*|http", policy)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", answer.text)


@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/api/predict", 405, "wrong-method"),
        ("PUT", "/api/", 405, "wrong-method"),
        ("POST", "/api/predict/", 404, "not-found"),  # a redirect would send photograph and key over http://
    ],
)
def test_unknown_paths_and_methods(client, method, path, status, code):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert isinstance(answer.json()["detail"], str) and ("allow" in answer.headers) == (status == 405)


def test_ready(client):
    assert (client.get("/api/ready").status_code, client.get("/api/ready").json()) == (200, {"ready": True})


def test_top_k_and_timing(client):
    everything = predict(client, GLASS).json()
    answer = client.post("/api/predict", params={"top_k": 2, "timing": "true"}, files={"file": GLASS})
    prediction = answer.json()
    assert (
        prediction["timing"].keys() == {"queue_ms", "decode_ms", "inference_ms"}
        and min(prediction["timing"].values()) >= 0
    )
    assert 1 <= sum(prediction["timing"].values()) <= 1000 * answer.elapsed.total_seconds()
    assert re.fullmatch(r"queue;dur=[\d.]+, decode;dur=[\d.]+, inference;dur=[\d.]+", answer.headers["server-timing"])
    assert list(prediction["all_probabilities"].items()) == list(everything["all_probabilities"].items())[:2]
    assert prediction["predicted_class"] == everything["predicted_class"]


@pytest.mark.parametrize("query", ["top_k=0", "top_k=-1", "top_k=many", "top_k=1e9", "timing=perhaps"])
def test_parameters_are_checked(client, query):
    answer = client.post(f"/api/predict?{query}", files={"file": GLASS})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-parameter")
    assert query.split("=")[0] in answer.json()["detail"]


def batch(client: httpx.Client, *files: bytes, url: str = "/api/predict/batch", **options) -> httpx.Response:
    return client.post(url, files=[("files", (f"{n}.jpg", data)) for n, data in enumerate(files)], **options)


def test_a_batch_keeps_its_order_and_a_bad_file_affects_no_other(client):
    paper = encode(draw_picture("paper", 3, (512, 384)))
    answer = batch(client, GLASS, b"", paper, b"a green bottle", GLASS[:1000], GLASS)
    assert answer.status_code == 200
    items = answer.json()["answers"]
    assert [item["status"] for item in items] == [200, 422, 200, 415, 422, 200]
    codes = [item["problem"]["code"] for item in items if "problem" in item]
    assert codes == ["empty-image", "not-an-image", "damaged-image"]
    assert items[0]["answer"] == items[5]["answer"] == predict(client, GLASS).json()
    assert items[2]["answer"] == predict(client, paper).json()


def test_batch_is_bounded(serve):
    with serve(TRASHSORTING_MAX_FILES="3", TRASHSORTING_MAX_BATCH_BYTES="2000000") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert batch(client, *[GLASS] * 3).status_code == 200
            many, large, none = batch(client, *[GLASS] * 4), batch(client, bytes(2_100_000)), batch(client)
            text = client.post("/api/predict/batch", data={"files": "a bottle"})
            torn = client.post("/api/predict/batch", content=b"a bottle", headers=MULTIPART)
            documented = client.get("/openapi.json").json()["paths"]["/api/predict/batch"]["post"]["responses"]["413"]
    assert (many.status_code, many.json()) == (413, {"code": "too-many-files", "detail": many.json()["detail"]})
    assert many.json()["detail"] == (
        "the batch holds more photographs than the limit of 3 (TRASHSORTING_MAX_FILES); send it in parts"
    )
    assert (torn.status_code, torn.json()["code"]) == (400, "bad-batch") and "too many" not in torn.json()["detail"]
    assert "too-many-files" in documented["description"]
    assert (large.status_code, large.json()["code"]) == (413, "too-many-bytes") and "2 MB" in large.json()["detail"]
    assert [none.json()["code"], text.json()["code"]] == ["no-files"] * 2


def test_one_file_of_a_batch_is_too_large(client):
    items = batch(client, JPEG + bytes(10_000_001 - len(JPEG)), GLASS).json()["answers"]
    assert [item["status"] for item in items] == [413, 200] and "10 MB" in items[0]["problem"]["detail"]


def test_an_unchanged_page_is_answered_304(client):
    first = client.get("/")
    again = client.get("/", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert "cache-control" in again.headers and "etag" not in client.get("/api/model/info").headers


GETS = ["/", "/api/", "/api/health", "/api/ready", "/api/model/info", "/api/drift", "/metrics", "/docs"]
GETS += ["/openapi.json"]


@pytest.mark.parametrize("path", [*GETS, "/docs/swagger-ui.css"])
def test_every_get_route_answers_head(client, path):
    head, got = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    same = {"content-type", "etag", "cache-control", "content-security-policy"}
    assert {name: head.headers.get(name) for name in same} == {name: got.headers.get(name) for name in same}
    assert path == "/metrics" or head.headers["content-length"] == str(len(got.content))


def test_head_of_an_unknown_path(client, server):
    missing, posted = client.head("/nowhere"), client.head("/api/predict")
    assert (missing.status_code, posted.status_code, posted.headers["allow"]) == (404, 405, "POST")
    assert missing.content == posted.content == b""
    assert client.post("/api/health").headers["allow"] == "GET, HEAD"
    client.head("/api/health", headers={"X-Request-ID": "head-1"})
    for _ in range(50):  # the line is written after the answer
        if any(line.get("request_id") == "head-1" for line in server.lines()):
            break
        time.sleep(0.1)
    (line,) = [line for line in server.lines() if line.get("request_id") == "head-1"]
    assert (line["method"], line["route"], line["status"]) == ("HEAD", "/api/health", 200)


@pytest.mark.parametrize(
    "headers, status, code",
    [({"Range": "bytes=a-b"}, 400, "bad-header"), ({"Range": "bytes=99999999-"}, 416, "bad-range")],
)
def test_errors_of_libraries_are_problems(client, headers, status, code):
    answer = client.get("/docs/swagger-ui.css", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code) and answer.json()["detail"]
    assert client.get("/docs/swagger-ui.css", headers={"Range": "bytes=0-9"}).status_code == 206


ODD_PYTHON = """
import warnings
from PIL import ImageFile

load = ImageFile.ImageFile.load

def warn(picture):
    warnings.warn("an odd picture")
    return load(picture)

ImageFile.ImageFile.load = warn
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_of_the_log_is_json(serve, tmp_path, workers):
    "Warnings and exceptions of Python too, with the id of their request."
    (tmp_path / "sitecustomize.py").write_text(ODD_PYTHON, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serve(workers=workers, PYTHONPATH=path, PYTHONWARNINGS="always") as server:
        with httpx.Client(base_url=server.url, timeout=60, headers={"X-Request-ID": "odd-1"}) as client:
            assert predict(client, GLASS).status_code == 200
            with connect(server) as connection:
                connection.sendall(b"no HTTP\r\n\r\n")
                connection.recv(65_536)
    plain = [line for line in server.said().splitlines() if not line.startswith("{")]
    assert [line for line in plain if not line.startswith("trashsorting: ready at")] == []
    warned = [line for line in server.lines() if "an odd picture" in line["message"]]
    assert warned and all((line["level"], line["request_id"]) == ("warning", "odd-1") for line in warned)


def test_routes_that_need_the_key(serve):
    with serve(TRASHSORTING_API_KEY="correct horse") as server, httpx.Client(base_url=server.url) as client:
        for path in ("/", "/api/", "/api/health", "/api/ready", "/openapi.json"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Y29ycmVjdCBob3JzZQ=="}):
            for method, path in [
                ("POST", "/api/predict"),
                ("POST", "/api/predict/batch"),
                ("POST", "/api/explain"),
                ("GET", "/api/model/info"),
                ("GET", "/metrics"),
            ]:
                answer = client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "no-key")
                assert answer.headers["www-authenticate"] == "Bearer"
        client.headers["authorization"] = "Bearer correct horse"
        assert predict(client, GLASS).status_code == client.get("/metrics").status_code == 200
        assert client.get("/api/model/info").status_code == 200
        assert "correct horse" not in server.said()
        documented = client.get("/openapi.json").json()["paths"]
    assert "401" in documented["/api/predict"]["post"]["responses"] and documented["/api/predict"]["post"]["security"]
    assert "401" not in documented["/api/health"]["get"]["responses"]


def test_the_service_checks_itself_without_a_proxy(serve):
    """Docker can set a proxy in containers. Checked: the line that the service is ready, and the health check."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    text = (Path(__file__).parents[2] / "dockerfiles" / "api.dockerfile").read_text(encoding="utf-8")
    check = json.loads(re.search(r"HEALTHCHECK .*\\\n *CMD (.*)", text)[1])
    with serve(**proxies) as server:
        environment = {**os.environ, **proxies, "PORT": server.url.rpartition(":")[2]}
        subprocess.run([sys.executable, *check[1:]], env=environment, check=True)


def test_cors(serve, client):
    asked = {"Origin": "https://one.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/api/predict", headers=asked).headers
    with serve(TRASHSORTING_CORS_ORIGINS="https://one.example, https://two.example") as server:
        for origin, allowed in [("https://one.example", True), ("https://three.example", False)]:
            answer = httpx.options(f"{server.url}/api/predict", headers={**asked, "Origin": origin})
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
            assert "access-control-allow-credentials" not in answer.headers
        asked["Origin"] = "https://one.example"
        for what, status in [({"Headers": "authorization, x-request-id"}, 200), ({"Method": "PUT"}, 400)]:
            more = {f"Access-Control-Request-{name}": value for name, value in what.items()}
            answer = httpx.options(f"{server.url}/api/predict", headers={**asked, **more})
            assert answer.status_code == status
            assert status == 200 or answer.json()["code"] == "bad-header"
        large = httpx.post(f"{server.url}/api/predict", headers=asked, files={"file": bytes(11_000_000)})
        assert large.status_code == 413 and large.headers["access-control-allow-origin"] == "https://one.example"
        assert {"retry-after", "x-request-id"} <= {*large.headers["access-control-expose-headers"].split(", ")}


def test_each_request_is_logged_without_private_data(serve):
    with serve() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        named = client.post(
            "/api/predict?secret=1", files={"file": ("my-kitchen.jpg", GLASS)}, headers={"X-Request-ID": "order-66"}
        )
        odd = client.get("/api/health", headers={"X-Request-ID": 'x" y'})
        client.get("/nowhere/my-cellar")
    assert named.headers["x-request-id"] == "order-66" and re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])
    lines = [line for line in server.lines() if line["message"] == "request"]
    record = next(line for line in lines if line["request_id"] == "order-66")
    assert record["time"].endswith("Z") and 1 <= record["ms"] <= 1000 * named.elapsed.total_seconds() + 1000
    about = {key: record[key] for key in ("method", "route", "status", "level")}
    assert about == {"method": "POST", "route": "/api/predict", "status": 200, "level": "info"}
    assert any(line["request_id"] == odd.headers["x-request-id"] for line in lines)
    assert [line["route"] for line in lines if line["status"] == 404] == ["other"]
    assert not any(word in server.said() for word in ("kitchen", "cellar", "secret", "127.0.0.1:5"))


# One picture in many formats


def rotated(picture: Image.Image, orientation: int) -> bytes:
    """The picture as a camera stores it that was held in this way."""
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # Image.Transpose, by EXIF orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture if undo is None else picture.transpose(undo), exif=exif)


def colour_16_bit(picture: Image.Image) -> bytes:
    """A PNG with 16 bits a channel, which Pillow reads and cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (np.asarray(picture).astype(">u2") * 257).astype(">u2").reshape(picture.height, -1)
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def grey_16_bit(picture: Image.Image) -> bytes:
    return encode(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257))


ENCODINGS = {
    "JPEG": lambda picture: encode(picture, "JPEG", quality=95, subsampling=0),
    "WebP": lambda picture: encode(picture, "WEBP", lossless=True),
    "CMYK": lambda picture: encode(picture.convert("CMYK"), "JPEG", quality=95, subsampling=0),
    "palette": lambda picture: encode(picture.quantize(256)),
    "alpha": lambda picture: encode(picture.convert("RGBA")),
    "16-bit colour": colour_16_bit,
    "greyscale": lambda picture: encode(picture.convert("L")),
    "16-bit grey": grey_16_bit,
    "grey with alpha": lambda picture: encode(picture.convert("LA")),
    **{f"EXIF {orientation}": partial(rotated, orientation=orientation) for orientation in range(1, 9)},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_picture_in_another_format(client, picture, encoding):
    plain = picture.convert("L").convert("RGB") if "grey" in encoding else picture
    expected = predict(client, encode(plain)).json()
    answer = predict(client, ENCODINGS[encoding](picture))
    assert answer.status_code == 200, answer.text
    prediction = answer.json()
    assert prediction["predicted_class"] == expected["predicted_class"]
    assert prediction["all_probabilities"] == pytest.approx(expected["all_probabilities"], abs=0.05)


def test_transparent_parts_are_white(client):
    bottle = Image.new("RGBA", (200, 200))
    bottle.paste("seagreen", (60, 20, 140, 190))
    on_white = Image.new("RGB", (200, 200), "white")
    on_white.paste("seagreen", (60, 20, 140, 190))
    assert predict(client, encode(bottle)).json() == predict(client, encode(on_white)).json()


# Errors


JPEG = encode(draw_picture("glass", 0, (512, 384)), "JPEG")
BAD_FILES = {
    "empty": (b"", 422, "empty"),
    "text": (b"a green bottle", 415, "not a picture"),
    "GIF": (encode(draw_picture("glass", 0), "GIF"), 415, "accepted format"),
    "TIFF": (encode(draw_picture("glass", 0), "TIFF"), 415, "accepted format"),
    "half a PNG": (GLASS[: len(GLASS) // 2], 422, "cut off"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], 422, "cut off"),
    "51 megapixels": (encode(Image.new("1", (10_200, 5_000))), 413, "10200 x 5000 pixels"),
    "400 megapixels": (encode(Image.new("1", (20_000, 20_000))), 413, "50 megapixels"),
    "11 MB": (bytes(11_000_000), 413, "limit of 10 MB"),
    "one byte too many": (JPEG + bytes(10_000_001 - len(JPEG)), 413, "limit of 10 MB"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(client, name):
    data, status, word = BAD_FILES[name]
    answer = predict(client, data)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"code", "detail"} and word in answer.json()["detail"]


def test_the_limit_itself_is_allowed(client):
    assert predict(client, JPEG + bytes(10_000_000 - len(JPEG))).status_code == 200


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
BAD_REQUESTS = {
    "nothing": ({}, 422, NO_FILE),
    "another field": ({"files": {"image": GLASS}}, 422, NO_FILE),
    "text in the field": ({"data": {"file": "a bottle"}}, 422, NO_FILE),
    "no filename": ({"files": {"file": (None, b"a bottle")}}, 422, NO_FILENAME),
    "no filename, as of curl -F file=<photo.jpg": ({"files": {"file": (None, GLASS)}}, 400, LONG_FIELD),
    "JSON": ({"json": {"file": "a bottle"}}, 422, NO_FILE),
    "the bare file": ({"content": GLASS, "headers": {"content-type": "image/png"}}, 422, NO_FILE),
    "two files": ({"files": [("file", GLASS), ("file", GLASS)]}, 400, BAD_FORM),
    "a thousand fields": ({"data": {str(n): "" for n in range(1000)}, "files": {"file": GLASS}}, 400, BAD_FORM),
    "a long field": ({"data": {"note": "x" * 100_000}, "files": {"file": GLASS}}, 400, LONG_FIELD),
    "no boundary": ({"content": GLASS, "headers": {"content-type": "multipart/form-data"}}, 400, BAD_FORM),
    "not multipart": ({"content": GLASS, "headers": MULTIPART}, 400, BAD_FORM),
    "a part without a name": ({"content": b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n", "headers": MULTIPART}, 400, BAD_FORM),
    "a form cut off": (
        {"content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n', "headers": MULTIPART},
        422,
        NO_FILE,
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(client, name):
    request, status, detail = BAD_REQUESTS[name]
    answer = client.post("/api/predict", **request)
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)


def test_a_batch_whose_parts_have_no_filename(client):
    for files in ([("files", (None, b"x"))], [("files", GLASS), ("files", (None, b"x"))]):
        answer = client.post("/api/predict/batch", files=files)
        assert (answer.status_code, answer.json()["detail"]) == (422, NO_FILENAMES)
    long = client.post("/api/predict/batch", files=[("files", (None, GLASS))])
    assert (long.status_code, long.json()) == (400, {"code": "bad-batch", "detail": LONG_FIELD})


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "hex", "nonsense"])
def test_unknown_character_sets_are_no_server_error(client, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\n\xff\r\n--x--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post("/api/predict", content=body, headers=headers)
    assert answer.status_code in (400, 422) and isinstance(answer.json()["detail"], str)


def test_exception_texts_are_not_sent(predictor, caplog):
    class Broken:
        card = predictor.card

        def observe(self, picture):
            raise RuntimeError("/secret/path")

    with TestClient(create_app(predictor=Broken()), raise_server_exceptions=False) as client:
        answer = predict(client, GLASS)
    assert (answer.status_code, answer.json()) == (500, {"code": "unexpected", "detail": UNEXPECTED})
    assert "/secret/path" in caplog.text


def test_a_service_without_heic(serve, client, tmp_path):
    """As in an image that was built with HEIC=0; the fixture's service has it."""
    load_plugin("HEIF")
    heic, avif = (encode(draw_picture("glass", 0, (256, 192)), format) for format in ("HEIF", "AVIF"))
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['pillow_heif'] = None", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serve(PYTHONPATH=path) as server, httpx.Client(base_url=server.url, timeout=60) as without:
        refused, not_image, fine = (predict(without, data) for data in (heic, b"a green bottle", avif))
        assert (refused.status_code, refused.json()["code"], fine.status_code) == (415, "not-an-image", 200)
        assert "HEIC, which is not read here" in refused.json()["detail"]
        assert "(JPEG, PNG, WEBP, AVIF)" in not_image.json()["detail"]
        assert [item["status"] for item in batch(without, heic, GLASS).json()["answers"]] == [415, 200]
        assert "Traceback" not in server.said()
        for asked, has_it in ((client, True), (without, False)):
            text = asked.get("/openapi.json").text + asked.get("/").text.partition("<script>")[0]
            assert ("HEIC" in text, "image/heic" in text, "image/avif" in text) == (has_it, has_it, True)
            assert not re.search("hei[cf]", text, re.IGNORECASE) or has_it
    assert predict(client, heic).status_code == 200


# Bodies that are too large


def answer_on(connection: socket.socket) -> bytes:
    """All that comes until the answer's body, a short JSON object, is complete."""
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65_536)
    return received


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


HEAD = b"POST /api/predict HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_too_large_without_a_declared_length(client):
    def chunks():
        yield PART
        for _ in range(120):
            yield bytes(100_000)
        yield b"\r\n--x--\r\n"

    answer = client.post("/api/predict", content=chunks(), headers=MULTIPART)
    assert answer.status_code == 413 and "limit of 10 MB" in answer.json()["detail"]
    assert "content-length" not in answer.request.headers


def test_a_too_large_declared_length_is_refused_before_the_body(server):
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n")
        answer = answer_on(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"limit of 10 MB" in answer


def test_an_endless_body_is_answered_at_the_limit(serve):
    with serve(TRASHSORTING_MAX_BYTES="1000000") as server, connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n" % (len(PART), PART))
        part, sent = b"186a0\r\n" + bytes(100_000) + b"\r\n", 0
        while sent <= 1_100_000:
            connection.sendall(part)
            sent += 100_000
        answer = answer_on(connection)  # the end of the body is not sent
        assert answer.startswith(b"HTTP/1.1 413 ") and b"limit of 1 MB" in answer
        assert httpx.get(f"{server.url}/api/health").json()["model_loaded"]


def test_a_client_that_disconnects_is_no_error(serve):
    with serve() as server:
        with connect(server) as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + PART + bytes(1000))
        assert httpx.get(f"{server.url}/api/health").status_code == 200
        server.process.terminate()
        assert server.process.wait(15) == 0, "it is not waited for either"
    assert "Traceback" not in server.said() and not [line for line in server.lines() if line["level"] != "info"]


# Under load, without a model, and light


def test_health_answers_while_large_pictures_are_predicted(server):
    large = encode(draw_picture("glass", 0, (5000, 4000)))  # PNG: a JPEG would be decoded at a fraction of its size
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(16) as pool:
        predictions = [pool.submit(predict, client, large) for _ in range(16)]
        waits, between = [], 0
        while not all(prediction.done() for prediction in predictions):
            done, start = sum(prediction.done() for prediction in predictions), time.perf_counter()
            assert httpx.get(f"{server.url}/api/health", timeout=10).status_code == 200
            waits.append(time.perf_counter() - start)
            between += done == sum(prediction.done() for prediction in predictions)
            time.sleep(0.01)
    answers = [prediction.result() for prediction in predictions]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json() == answers[0].json() for answer in answers)
    print(f"{len(waits)} health checks, median {np.median(waits):.3f} s, slowest {max(waits):.3f} s")
    assert between  # a health check that waits for a prediction would never return between two of them


def broken_models(folder):
    """Name -> what to do to a copy of the model, and what the log says then."""
    model = folder / "model.onnx"
    source = read_settings().model

    def copy():
        model.write_bytes(source.read_bytes())
        card_path(model).write_bytes(card_path(source).read_bytes())

    def cut():
        copy()
        model.write_bytes(source.read_bytes()[:-100])

    def without_card():
        copy()
        card_path(model).unlink()

    def without_model():
        copy()
        model.unlink()

    def of_another_size():
        copy()
        card = json.loads(card_path(model).read_text(encoding="utf-8"))
        card["preprocessing"]["input_size"] += 32
        card_path(model).write_text(json.dumps(card), encoding="utf-8")

    return model, {
        "cut": (cut, "is not the file"),
        "no card": (without_card, "no such file"),
        "no model": (without_model, "no such file"),
        "another size": (of_another_size, "the model cannot be loaded"),  # found by the warm-up
    }


@pytest.mark.parametrize("damage", ["cut", "no card", "no model", "another size"])
def test_the_service_starts_without_a_model_and_reports_it(serve, tmp_path, damage):
    model, damages = broken_models(tmp_path)
    break_it, logged = damages[damage]
    break_it()
    with serve(TRASHSORTING_MODEL=str(model)) as server, httpx.Client(base_url=server.url) as client:
        health = client.get("/api/health")
        assert health.status_code == 200
        assert health.json() == {"status": "degraded", "model_loaded": False, "model_error": NO_MODEL}
        for answer in (predict(client, GLASS), client.get("/api/model/info"), client.get("/api/ready")):
            assert (answer.status_code, answer.json()) == (503, {"code": "no-model", "detail": NO_MODEL})
        assert client.get("/").status_code == 200
        assert str(tmp_path) not in health.text and logged in server.said()
        assert "but is not ready: no model is loaded" in server.said()


def test_a_limit_from_the_environment(serve):
    with serve(TRASHSORTING_MAX_PIXELS="1000") as server, httpx.Client(base_url=server.url) as client:
        answer = predict(client, GLASS)
    assert answer.status_code == 413 and "512 x 384 pixels; the limit is 0.001 megapixels" in answer.json()["detail"]


def test_the_service_imports_no_training_library():
    heavy = "{'torch', 'torchvision', 'fastai', 'timm', 'matplotlib', 'pandas', 'nbdev', 'onnx'}"
    code = (
        f"import sys, trashsorting.serving.app; print(sorted({heavy} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
