"""`data import` of annotations in four formats, by folder, file and zip; hostile and half-right files."""

import json
import zipfile
from pathlib import Path

import pytest
from command import call
from PIL import Image

from trashsorting.core.errors import DataError
from trashsorting.data.manifest import manifest_from_csv
from trashsorting.data.sample import draw_picture
from trashsorting.data.sources import load_manifest

BOXES = {"can": (0.1, 0.1, 0.4, 0.6), "bottle": (0.5, 0.2, 0.9, 0.8)}  # left, top, right, bottom


@pytest.fixture
def pictures(tmp_path) -> Path:
    "Four pictures of 640 x 480, in a folder `images`."
    folder = tmp_path / "street/images"
    folder.mkdir(parents=True)
    for number in range(4):
        draw_picture("glass", number).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def write_coco(pictures: Path) -> Path:
    coco: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 0, "name": "bottle"}, {"id": 1, "name": "can"}],
    }
    coco["licenses"] = [
        {"id": 1, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"},
        {"id": 2, "name": "Attribution-NonCommercial", "url": "http://creativecommons.org/licenses/by-nc/2.0/"},
    ]
    for number in range(4):
        coco["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480, "license": 1})
        for name, (left, top, right, bottom) in BOXES.items():
            box = [640 * left, 480 * top, 640 * (right - left), 480 * (bottom - top)]
            coco["annotations"].append({"image_id": number, "category_id": int(name == "can"), "bbox": box})
    path = pictures.parent / "annotations/instances.json"
    path.parent.mkdir()
    path.write_text(json.dumps(coco), encoding="utf-8")
    return path


def write_yolo(pictures: Path) -> Path:
    (pictures.parent / "labels").mkdir()
    for number in range(4):
        lines = []
        for label, (left, top, right, bottom) in zip((1, 0), BOXES.values(), strict=True):
            lines.append(f"{label} {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}")
        (pictures.parent / f"labels/{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    (pictures.parent / "data.yaml").write_text(
        "path: ../anywhere\ntrain: images\nnames:\n  0: bottle\n  1: can\n", encoding="utf-8"
    )
    return pictures.parent / "data.yaml"


def write_voc(pictures: Path) -> Path:
    (pictures.parent / "Annotations").mkdir()
    for number in range(4):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{640 * left}</xmin><ymin>{480 * top}</ymin>"
            f"<xmax>{640 * right}</xmax><ymax>{480 * bottom}</ymax></bndbox></object>"
            for name, (left, top, right, bottom) in BOXES.items()
        )
        size = "<size><width>640</width><height>480</height><depth>3</depth></size>"
        text = f"<annotation><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        (pictures.parent / f"Annotations/{number}.xml").write_text(text, encoding="utf-8")
    return pictures.parent


def write_label_studio(pictures: Path) -> Path:
    tasks = []
    for number in range(4):
        result: list[dict] = [{"type": "choices", "value": {"choices": ["blurred"]}}]
        for name, (left, top, right, bottom) in BOXES.items():
            value = {"x": 100 * left, "y": 100 * top, "width": 100 * (right - left), "height": 100 * (bottom - top)}
            value |= {"rotation": 0, "rectanglelabels": [name]}
            result.append({"type": "rectanglelabels", "original_width": 640, "original_height": 480, "value": value})
        tasks.append({"data": {"image": f"/data/upload/1/{number}.jpg"}, "annotations": [{"result": result}]})
    path = pictures.parent / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


FORMATS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "label studio": write_label_studio}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_the_same_boxes_in_every_format_are_the_same_crops(write, pictures, tmp_path):
    source, out = write(pictures), tmp_path / "data"
    (tmp_path / "map.yaml").write_text("can: metal\nbottle: glass\n", encoding="utf-8")
    imported = call("data", "import", source, "--classes", tmp_path / "map.yaml", "--out", out)
    assert imported.returncode == 0, imported.stderr
    manifest = manifest_from_csv(out / "manifest.csv", out)
    assert sorted(entry.label for entry in manifest.entries) == ["glass"] * 4 + ["metal"] * 4
    sizes = {(entry.width, entry.height) for entry in manifest.entries if entry.label == "metal"}
    assert sizes == {(240, 288)}  # 192 x 240, and a margin of 24 on each side
    assert len({entry.group for entry in manifest.entries}) == 4
    by_group: dict[str, set[str]] = {}
    for entry in manifest.entries:
        by_group.setdefault(entry.group, set()).add(entry.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    assert {next(iter(splits)) for splits in by_group.values()} == {"train", "val"}
    with Image.open(out / manifest.entries[0].file) as crop:
        assert not crop.getexif()


def test_a_zip_of_an_export_and_one_source_of_several(pictures, tmp_path):
    write_yolo(pictures)
    with zipfile.ZipFile(tmp_path / "street.zip", "w") as packed:
        for path in sorted(pictures.parent.rglob("*.*")):
            packed.write(path, path.relative_to(pictures.parent))
    alone = load_manifest(tmp_path / "street.zip", tmp_path / "unpacked")
    assert alone.labels == ("bottle", "can") and alone.sources[0].name == "street"
    (tmp_path / "map.yaml").write_text("can: metal\n'*':\n", encoding="utf-8")
    listed = [
        {"name": "street", "where": "street.zip", "licence": "CC0-1.0", "weight": 2, "classes": "map.yaml"},
        {"name": "drawn", "where": "sample"},
    ]
    (tmp_path / "sources.json").write_text(json.dumps(listed), encoding="utf-8")
    joined = load_manifest(tmp_path / "sources.json", tmp_path / "joined")
    assert {entry.label for entry in joined.entries if entry.source == "street"} == {"metal"}
    assert [(source.name, source.weight, source.licence) for source in joined.sources] == [
        ("street", 2, "CC0-1.0"),
        ("drawn", 1, ""),
    ]
    assert sum("skips its class 'bottle'" in item.reason for item in joined.skipped) == 4


def test_a_licence_by_picture_is_kept_and_a_non_commercial_one_refused(pictures, tmp_path):
    path, out = write_coco(pictures), tmp_path / "data"
    coco = json.loads(path.read_bytes())
    coco["images"][0]["license"] = 2
    path.write_text(json.dumps(coco), encoding="utf-8")
    refused = call("data", "import", path, "--out", out)
    assert refused.returncode and "2 photographs may not be used commercially" in refused.stderr
    assert "CC-BY-NC-2.0" in refused.stderr and "--allow-non-commercial" in refused.stderr and not out.exists()
    assert call("data", "import", path, "--out", out, "--allow-non-commercial").returncode == 0
    assert [entry.licence for entry in manifest_from_csv(out / "manifest.csv", out).entries].count("CC-BY-NC-2.0") == 2
    named = call("data", "notice", out, "--out", tmp_path / "NOTICE")
    assert named.returncode == 0, named.stderr
    text = (tmp_path / "NOTICE").read_text(encoding="utf-8")
    assert "street: 6 photographs\n  Licence: CC-BY-2.0\n" in text and "Licence: CC-BY-NC-2.0" in text
    assert call("data", "notice", out).stdout == text


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/passwd", "..\\..\\1.jpg", "C:\\1.jpg"])
def test_a_picture_outside_of_the_folder_is_refused(name, pictures, tmp_path):
    path = write_coco(pictures)
    path.write_text(path.read_text(encoding="utf-8").replace('"0.jpg"', json.dumps(name)), encoding="utf-8")
    refused = call("data", "import", path, "--out", tmp_path / "data")
    assert refused.returncode == 1 and "instances.json: images.0.file_name" in refused.stderr, refused.stderr
    assert "leads out of the folder" in refused.stderr and not (tmp_path / "data").exists()


def test_a_class_that_leads_out_of_the_folder_is_refused(pictures, tmp_path):
    path = write_coco(pictures)
    path.write_text(path.read_text(encoding="utf-8").replace('"can"', '"../../can"'), encoding="utf-8")
    refused = call("data", "import", path, "--out", tmp_path / "data")
    assert refused.returncode == 1 and "'../../can' cannot be the name of a folder" in refused.stderr
    assert not (tmp_path / "data").exists() and not list(tmp_path.rglob("*can*"))


def test_what_cannot_be_used_is_reported(pictures, tmp_path):
    path = write_label_studio(pictures)
    (pictures / "0.jpg").write_bytes(b"\xff\xd8\xff broken")
    (pictures / "1.jpg").unlink()
    imported = call("data", "import", path, "--out", tmp_path / "data")
    assert imported.returncode == 0, imported.stderr
    assert "1.jpg: the picture is not in the folder" in imported.stderr and "0.jpg" in imported.stderr


def test_json_of_another_kind_is_no_list_of_sources(tmp_path):
    (tmp_path / "other.json").write_text('{"images": [], "annotations": []}', encoding="utf-8")
    with pytest.raises(DataError, match="not a list of sources"):
        load_manifest(tmp_path / "other.json", tmp_path / "data")
