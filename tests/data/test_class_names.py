"""Names of classes from strangers: one that cannot be a class's folder is refused, two that look the same, too."""

import json
from pathlib import Path

import pytest
from command import call

from trashsorting.data.sample import draw_sample

OUTSIDE = ("../../evil", "/nowhere/evil", "a/b", "..", ".hidden", "a:b", "a\nb", "\0", " ", "x" * 256, "ü" * 128)
IGNORED = ("train", "Validation", "__x", "Thumbs.db", "lost+found")  # such folders are not read as classes


@pytest.fixture
def sample(tmp_path) -> Path:
    return draw_sample(tmp_path / "photos", 2, ("glass", "metal", "paper"))


def import_with(classes: dict[str, str], sample: Path):
    "Import with these new names."
    listed = [{"name": "photos", "where": "photos", "classes": classes}]
    (sample.parent / "sources.json").write_text(json.dumps(listed), encoding="utf-8")
    return call("data", "import", sample.parent / "sources.json", "--out", sample.parent / "work/data")


@pytest.mark.parametrize("name", [*OUTSIDE, *IGNORED])
def test_a_new_name_that_cannot_be_a_folder_is_refused(name, sample):
    done = import_with({"glass": name}, sample)
    assert done.returncode == 1 and "cannot be the name of a folder" in done.stderr, done
    assert sorted(path.name for path in sample.parent.rglob("*") if path.is_dir()) == [
        "glass", "metal", "paper", "photos", "work"
    ]  # fmt: skip
    table = sample / "list.csv"
    table.write_text(f"file,label\nglass/glass000.png,{json.dumps(name)}\n", encoding="utf-8")
    if name not in (" ", "a\nb", "\0"):  # a CSV has none of these
        done = call("data", "import", table, "--out", sample.parent / "work/data")
        assert done.returncode == 1 and "cannot be the name of a folder" in done.stderr, done


def test_what_is_imported_is_read_again(sample):
    done = import_with({"glass": "Glas ü", "metal": "_metal-1", "paper": "CON"}, sample)
    assert done.returncode == 0, done
    done = call("data", "manifest", sample.parent / "work/data")
    assert done.returncode == 0 and {line.split(",")[1] for line in done.stdout.splitlines()[1:]} == {
        "Glas ü", "_metal-1", "CON"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Glass", "GLASS", "glass "])
def test_two_classes_that_differ_in_case_only_are_refused(name, sample):
    (sample / "metal").rename(sample / name)
    for command in (["manifest", sample], ["import", sample, "--out", sample.parent / "data"]):
        done = call("data", *command)
        assert done.returncode == 1 and "differ in case or spaces only; give them one name" in done.stderr, done
    assert import_with({name: "glass"}, sample).returncode == 0


def test_no_photograph_is_left(sample):
    done = import_with({"*": ""}, sample)
    assert done.returncode == 1 and "sources.json: no photograph is left: source 'photos' skips" in done.stderr, done
    split = sample.parent / "split.csv"
    rows = [f"{path.relative_to(sample).as_posix()},{path.parent.name},none" for path in sample.glob("*/*.png")]
    split.write_text("\n".join(["file,label,split", *rows]), encoding="utf-8")
    done = call("data", "import", sample, "--split", split, "--out", sample.parent / "work/data")
    assert done.returncode == 1 and "split.csv: every photograph has the split 'none'" in done.stderr, done


def test_a_class_map_with_a_misspelt_name_is_told(sample):
    message = "its class map names 'galss', and it has no such class; the nearest is 'glass'"
    done = import_with({"galss": "Glas", "metal": "Dose"}, sample)
    assert done.returncode == 0 and f"source 'photos': {message}" in done.stderr, done
    (sample.parent / "classes.yaml").write_text("galss: Glas\n'*': ''\nmetal: Dose\n", encoding="utf-8")
    files = {label: f"{label}/{label}000.png" for label in ("glass", "metal")}
    table = "".join(f"{file},{label}\n" for label, file in files.items())
    (sample / "list.csv").write_text(f"file,label\n{table}", encoding="utf-8")
    pictures = [{"id": at, "file_name": file, "width": 512, "height": 384} for at, file in enumerate(files.values())]
    coco = {
        "images": pictures,
        "annotations": [{"id": at, "image_id": at, "category_id": at, "bbox": [0, 0, 300, 300]} for at in range(2)],
        "categories": [{"id": at, "name": label} for at, label in enumerate(files)],
    }
    (sample / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    for source in (sample / "list.csv", sample / "coco.json"):
        words = (source, "--classes", sample.parent / "classes.yaml", "--out", sample.parent / "new")
        done = call("data", "import", *words)
        assert message in done.stderr, done
