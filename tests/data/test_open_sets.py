"""Open data sets by name, each against a fake on loopback: what is fetched, kept, left out, and fetched again."""

import json
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from command import call
from PIL import Image

from trashsorting.core.errors import DataError
from trashsorting.data.manifest import manifest_from_csv
from trashsorting.data.sample import draw_picture
from trashsorting.data.sources import load_manifest

TACO = "/raw.githubusercontent.com/pedropro/TACO/master/data/annotations.json"
LISTS = "/storage.googleapis.com/openimages"
PICTURES = "/open-images-dataset.s3.amazonaws.com/validation"
DRINKING = "/www.kaggle.com/api/v1/datasets/download/arkadiyhacks/drinking-waste-classification"


def jpeg(label: str, number: int) -> bytes:
    stream = BytesIO()
    draw_picture(label, number).resize((400, 300), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    "A server with the files that a test puts into `files`; `asked` counts the requests."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked[self.path] += 1
            body = server.files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, Counter()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TRASHSORTING_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def put_taco(fake, n: int = 6) -> dict:
    box = {"bbox": [40, 30, 200, 200]}
    coco = {
        "images": [
            {
                "id": number,
                "file_name": f"batch_1/{number}.jpg",
                "width": 800,
                "height": 600,
                "license": 3 if number == 5 else None,
                "flickr_url": f"https://farm.example/{number}_o.png",
            }
            for number in range(n)
        ],
        "categories": [{"id": 0, "name": "Drink can"}, {"id": 1, "name": "Glass bottle"}],
        "annotations": [{"image_id": number, "category_id": number % 2} | box for number in range(n)],
        "licenses": [{"id": 3, "name": "NC", "url": "https://creativecommons.org/licenses/by-nc/2.0/"}],
    }
    fake.files[TACO] = json.dumps(coco).encode()
    fake.files |= {f"/farm.example/{number}_o.png": jpeg("glass", number) for number in range(n - 2)}
    return coco


def test_taco_by_name_goes_on_where_it_ended(fake, tmp_path):
    put_taco(fake)  # four of six pictures are there, one is gone, one is non-commercial
    imported = call("data", "import", "taco", "--out", tmp_path / "data")
    assert imported.returncode == 0, imported.stderr
    manifest = manifest_from_csv(tmp_path / "data/manifest.csv", tmp_path / "data")
    assert Counter(entry.label for entry in manifest.entries) == {"metal": 2, "glass": 2}
    assert not fake.asked["/farm.example/5_o.png"] and "2 pictures are left out" in imported.stderr
    cache = tmp_path / "cache/trashsorting/taco"
    report = (cache / "left_out.txt").read_text(encoding="utf-8").splitlines()
    assert report == [
        "batch_1/4.jpg: the server answers 404",
        "batch_1/5.jpg: its licence, CC-BY-NC-2.0, is non-commercial",
    ]
    assert len(json.loads((cache / "fetched.json").read_bytes())) == 5  # the annotations and four pictures
    assert "By: TACO, Pedro F. Proença and Pedro Simões" in call("data", "notice", tmp_path / "data").stdout

    # Again: only what was missing, and what was damaged, is asked for.
    (cache / "batch_1/0.jpg").write_bytes(b"damaged")
    fake.asked.clear()
    fake.files["/farm.example/4_o.png"] = jpeg("glass", 4)
    assert call("data", "import", "taco", "--out", tmp_path / "data", "--replace").returncode == 0
    assert fake.asked == {"/farm.example/0_o.png": 1, "/farm.example/4_o.png": 1}
    assert len(manifest_from_csv(tmp_path / "data/manifest.csv", tmp_path / "data").entries) == 5


def test_a_picture_of_taco_outside_of_the_folder_is_refused(fake, tmp_path):
    coco = put_taco(fake)
    coco["images"][0]["file_name"] = "../../0.jpg"
    fake.files[TACO] = json.dumps(coco).encode()
    with pytest.raises(DataError, match="leads out of the folder"):
        load_manifest("taco", tmp_path / "data")
    assert not list(tmp_path.rglob("*.jpg"))


def test_a_list_that_cannot_be_fetched_is_one_sentence(fake, tmp_path):
    refused = call("data", "import", "taco", "--out", tmp_path / "data")
    assert refused.returncode == 1 and "the server answers 404; try again later" in refused.stderr
    assert not (tmp_path / "data").exists()


def put_open_images(fake) -> None:
    fake.files[f"{LISTS}/v7/oidv7-class-descriptions-boxable.csv"] = (
        b"LabelName,DisplayName\n/m/1,Tin can\n/m/2,Plastic bag\n/m/3,Dog\n"
    )
    boxes, pictures = (
        ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf,IsDepiction"],
        ["ImageID,OriginalLandingURL,License,Author"],
    )
    for number, label in enumerate((1, 1, 2, 2, 3)):
        boxes.append(f"{number:016x},/m/{label},0.1,0.6,0.1,0.9,0,0")
        licence = "https://creativecommons.org/licenses/by/2.0/"
        pictures.append(f"{number:016x},https://flickr.example/{number},{licence},Person {number}")
        fake.files[f"{PICTURES}/{number:016x}.jpg"] = jpeg("metal", number)
    boxes.append(f"{4:016x},/m/1,0.1,0.6,0.1,0.9,1,0")  # a group of cans
    fake.files[f"{LISTS}/v5/validation-annotations-bbox.csv"] = "\n".join(boxes).encode()
    fake.files[f"{LISTS}/2018_04/validation/validation-images-with-rotation.csv"] = "\n".join(pictures).encode()


def test_open_images_with_the_authors(fake, tmp_path):
    put_open_images(fake)
    manifest = load_manifest("open-images", tmp_path / "data")
    assert Counter(entry.label for entry in manifest.entries) == {"metal": 2, "plastic": 2}
    assert not fake.asked[f"{PICTURES}/{4:016x}.jpg"]
    notice = call("data", "notice", "open-images").stdout
    assert all(f"Licence: CC-BY-2.0\n  By: Person {number}" in notice for number in range(4))
    (tmp_path / "sources.json").write_text(
        json.dumps([{"name": "dogs", "where": "open-images", "classes": {"Cat": "trash"}}]), encoding="utf-8"
    )
    with pytest.raises(DataError, match="there is no class 'Cat'"):
        load_manifest(tmp_path / "sources.json", tmp_path / "cats")


def test_copies_in_drinking_waste_are_dropped(fake, tmp_path):
    packed, ours = BytesIO(), tmp_path / "ours"
    for label, number in [("glass", 0), ("glass", 1), ("glass", 7), ("metal", 0), ("metal", 1)]:
        (ours / label).mkdir(parents=True, exist_ok=True)
        (ours / label / f"{number}.jpg").write_bytes(jpeg(label, number))
    with zipfile.ZipFile(packed, "w") as archive:
        for folder, label, numbers in [("Glass", "glass", (7, 8, 9)), ("AluCan", "metal", (10, 11))]:
            for number in numbers:
                archive.writestr(f"rawimgs/{folder}/{number}.jpg", jpeg(label, number))
    fake.files[DRINKING] = packed.getvalue()
    listed = [{"name": "ours", "where": "ours"}, "drinking-waste"]
    (tmp_path / "sources.json").write_text(json.dumps(listed), encoding="utf-8")
    manifest = load_manifest(tmp_path / "sources.json", tmp_path / "data")
    copies = [Path(item.file).name for item in manifest.skipped if "copy of another source" in item.reason]
    assert "7.jpg" in copies
    assert all(Path(entry.file).name != "7.jpg" for entry in manifest.entries if entry.source == "drinking-waste")
    assert {entry.label for entry in manifest.entries} == {"glass", "metal"}
    assert len(manifest.entries) == 10 - len(copies)
