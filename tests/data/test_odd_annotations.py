"""Annotations as clumsy and hostile strangers write them: nothing is lost silently, errors name the file."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from command import call
from PIL import Image

from trashsorting.data.sample import draw_picture

BOXES = ((64, 48, 192, 240), (320, 96, 256, 288))  # left, top, width, height, of classes 0 and 1


@pytest.fixture
def street(tmp_path) -> Path:
    "Four pictures of 640 x 480."
    (tmp_path / "street/images").mkdir(parents=True)
    for number in range(4):
        drawn = draw_picture("glass", number).resize((640, 480), Image.Resampling.BICUBIC)
        drawn.save(tmp_path / f"street/images/{number}.jpg")
    return tmp_path / "street"


def coco_of(*numbers: int) -> dict:
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in numbers],
        "annotations": [{"image_id": n, "category_id": k, "bbox": box} for n in numbers for k, box in enumerate(BOXES)],
        "categories": [{"id": 0, "name": "bottle"}, {"id": 1, "name": "can"}],
    }


def write(folder: Path, content: dict | list | str, name: str = "boxes.json") -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


def write_yolo(
    folder: Path, names: bytes = b"bottle\ncan\n", boxes: bytes = b"0 0.3 0.3 0.4 0.6\n1 0.7 0.7 0.4 0.4\n"
) -> None:
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_bytes(names)
    for number in range(4):
        (folder / f"labels/{number}.txt").write_bytes(boxes)


def imported(folder: Path):
    "What the import says, and the classes of what it made; no error names a folder that is gone."
    out = folder.parent / "data"
    done = call("data", "import", folder, "--out", out)
    assert f"{folder.parent}/.data-" not in done.stderr, done
    return done, sorted(path.name for path in out.glob("[!.]*") if path.is_dir())


def test_one_id_for_two_things_is_refused(street):
    for field, twice in (("images", "1.jpg"), ("categories", "jar")):
        content = coco_of(0, 2)
        named = "file_name" if field == "images" else "name"
        content[field].append(content[field][0] | {named: twice})
        write(street, content)
        done, _ = imported(street)
        assert (
            done.returncode == 1 and f"{street}/boxes.json: {field}.2.id: 0 is the id of {field}.0, too" in done.stderr
        )


def test_a_picture_that_is_annotated_twice_is_refused(street):
    write(street, coco_of(0, 1, 2))
    write(street, coco_of(2, 3), "more.json")
    done, _ = imported(street)
    assert done.returncode == 1 and f"{street}: images/2.jpg is annotated twice" in done.stderr, done
    (street / "more.json").unlink()
    content = coco_of(0, 1, 2)
    content["images"][1]["file_name"] = "elsewhere/0.jpg"
    write(street, content)
    done, _ = imported(street)
    assert done.returncode == 1 and f"{street}/boxes.json: images/0.jpg is annotated twice" in done.stderr, done


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_damaged_file_beside_a_good_one_is_not_passed_over(encoding, street):
    write(street, coco_of(0, 1))
    (street / "val.json").write_text(json.dumps(coco_of(2, 3))[:-9], encoding=encoding)
    done, _ = imported(street)
    assert done.returncode == 1 and f"{street}/val.json: has annotations, but is not JSON: " in done.stderr, done
    (street / "val.json").write_text("{", encoding=encoding)  # of another program
    assert imported(street)[0].returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"width": 640', f'"width": {"9" * 400}', "images.0.width: "),
        ('"width": 640', f'"width": {"9" * 5000}', "has annotations, but is not JSON: "),
        ("[64, 48", f"[{'9' * 400}, 48", "annotations.0.bbox.0: "),
        ("[64, 48", "[NaN, 48", "annotations.0.bbox.0: Input should be a finite number"),
        ('"can"', '"can\\ud800"', "has annotations, but is not JSON: .* surrogates not allowed"),
        (
            '"height": 480',
            '"height": 480, "author": "\\udfff"',
            "has annotations, but is not JSON: .* surrogates not allowed",
        ),
    ],
)
def test_an_impossible_value_is_named_with_its_file(old, new, reason, street):
    write(street, json.dumps(coco_of(0, 1)).replace(old, new, 1))
    done, _ = imported(street)
    assert done.returncode == 1 and re.match(f"trashsorting: {street}/boxes.json: {reason}", done.stderr), done


def test_what_no_annotation_names_is_reported(street):
    content = coco_of(0, 1)
    content["images"].append({"id": 9, "file_name": "9.bmp", "width": 640, "height": 480})
    content["annotations"].append({"image_id": 9, "category_id": 0, "bbox": BOXES[0]})
    (street / "images/9.bmp").write_bytes(b"BM")
    write(street, content)
    done, _ = imported(street)
    assert done.returncode == 0 and done.stderr.count("no annotation names it") == 2, done
    assert (
        "9.bmp: not a picture in an accepted format" in done.stderr
        and "4 photographs of 2 classes (2 train, 2 val), 3 skipped" in done.stdout
    )


def test_a_text_without_a_picture_is_reported(street):
    write_yolo(street)
    (street / "labels/5.txt").write_bytes(b"0 0.3 0.3 0.4 0.6\n")
    done, _ = imported(street)
    assert done.returncode == 0 and "labels/5.txt: there is no picture of its name" in done.stderr, done


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_yolo_of_other_systems(encoding, end, street):
    boxes = end.join(["0 0.3 0.3 0.4 0.6", "1 0.7 0.7 0.4 0.4", ""]).encode(encoding)
    write_yolo(street, end.join(["Glasflasche ü", "can", ""]).encode(encoding), boxes)
    done, classes = imported(street)
    assert done.returncode == 0 and classes == ["Glasflasche ü", "can"], done


def test_yolo_that_would_be_misread_is_refused(street):
    write_yolo(street, b"bottle\n\ncan\n")
    for names, boxes, reason in (
        (b"bottle\n\ncan\n", b"", "classes.txt, line 2: is empty"),
        ("Müll\ncan".encode("latin-1"), b"", "classes.txt, line 1: byte 0xfc is not UTF-8; save it as UTF-8"),
        (b"bottle\ncan\n", b"0.5 0.3 0.3 0.4 0.6", "0.txt, line 1: '0.5' is not the number of a class"),
        (b"bottle\ncan\n", b"9" * 5000 + b" 0 0 0 0", "0.txt, line 1: '99999999999999999999' is not the number"),
        (b"bottle\ncan\n", "0 ½ 0 0 0".encode("latin-1"), "0.txt, line 1: byte 0xbd is not UTF-8"),
    ):
        (street / "classes.txt").write_bytes(names)
        (street / "labels/0.txt").write_bytes(boxes)
        done, _ = imported(street)
        assert done.returncode == 1 and str(street) in done.stderr and reason in done.stderr, done


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_yaml_and_an_xml_are_found_in_any_encoding(encoding, street):
    write_yolo(street)
    (street / "classes.txt").unlink()
    (street / "data.yaml").write_text("names: [bottle, can]\n", encoding=encoding)
    assert imported(street)[1] == ["bottle", "can"]
    (street / "data.yaml").unlink()
    for number in range(4):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name, (x, y, w, h) in zip(("jar", "tin"), BOXES, strict=True)
        )
        size = "<size><width>640</width><height>480</height></size>"
        text = f"<annotation><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        (street / f"{number}.xml").write_text(text, encoding=encoding)
    done = call("data", "import", street, "--out", street.parent / "voc")
    assert done.returncode == 0 and (street.parent / "voc/jar").is_dir(), done


def test_names_in_another_normal_form_and_long_ones(street):
    (street / "images/0.jpg").rename(street / "images" / unicodedata.normalize("NFD", "grün.jpg"))
    (street / "images/1.jpg").rename(street / "images" / f"{'y' * 250}.jpg")
    content = coco_of(0, 1, 2, 3)
    content["images"][0]["file_name"] = "grün.jpg"
    content["images"][1]["file_name"] = f"{'y' * 250}.jpg"
    content["categories"] = [{"id": 0, "name": unicodedata.normalize("NFD", "Büchse")}, {"id": 1, "name": " can "}]
    write(street, content)
    (street.parent / "classes.yaml").write_text(f"{unicodedata.normalize('NFD', 'Büchse')}: tin\n", encoding="utf-8")
    out = street.parent / "data"
    done = call("data", "import", street, "--out", out, "--classes", street.parent / "classes.yaml")
    assert done.returncode == 0 and "8 photographs of 2 classes" in done.stdout and (out / "tin").is_dir(), done


def test_a_blank_class_is_not_lost_without_a_word(street):
    content = coco_of(0, 1, 2, 3)
    content["categories"][0]["name"] = " "
    write(street, content)
    done, classes = imported(street)
    assert classes == ["can"] and done.stderr.count("skips its class ''") == 4 and "4 skipped" in done.stdout, done


def test_other_shapes_of_label_studio_are_reported(street):
    tasks = []
    for number in range(4):
        shapes = [
            ("rectanglelabels", "can", 0),
            ("rectanglelabels", "jar", 45 * (number > 1)),
            ("polygonlabels", "cup", 0),
        ]
        result = [
            {
                "type": kind,
                "value": {"x": 45 * at, "y": 5, "width": 40, "height": 60, "rotation": turn, kind: [label]},
            }
            for at, (kind, label, turn) in enumerate(shapes)
        ]
        tasks.append({"data": {"image": f"{number}.jpg"}, "annotations": [{"result": result}]})
    write(street, tasks)
    done, classes = imported(street)
    assert done.returncode == 0 and classes == ["can", "jar"] and "6 skipped" in done.stdout, done
    assert done.stderr.count("the rectangle is turned") == 2 and done.stderr.count("drawn as polygonlabels") == 4
