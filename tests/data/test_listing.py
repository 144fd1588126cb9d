"""Folders of other people, through the commands: their splits, skipped and ignored files, large files."""

import csv
import json
import os
import shutil
import socket
import zipfile
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from command import call
from PIL import Image

from trashsorting.core.errors import DataError
from trashsorting.core.image import DamagedImage, TooManyBytes, open_rgb
from trashsorting.core.settings import MAX_BYTES, MAX_FILE_BYTES
from trashsorting.data.listing import READ_ALREADY, list_folder
from trashsorting.data.manifest import read_folder
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.sources import load_manifest

LABELS = ("glass", "metal", "paper")
SIZES = {"train": 6, "val": 3, "test": 2}  # photographs of each class
FIRST = {"train": 0, "val": 50, "test": 70}  # each split has drawings of its own


def draw_classes(folder: Path, split: str, labels=LABELS) -> None:
    "The photographs of one split, in a folder for each class."
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(FIRST[split], FIRST[split] + SIZES[split]):
            draw_picture(label, number).save(folder / label / f"{label}{number}.png")


def draw_split(root: Path, names: dict[str, str], labels=LABELS) -> Path:
    "A data set with a folder for each split."
    for name, split in names.items():
        draw_classes(root / name, split, labels)
    return root


def rows_of(done) -> list[dict]:
    "The manifest that a command printed."
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(StringIO(done.stdout)))


ROBOFLOW = {"train": "train", "valid": "val", "test": "test"}


# A split that folders name


@pytest.mark.parametrize(
    "names",
    [ROBOFLOW, {"TRAIN": "train", "TEST": "test", "Validation": "val"}, {"train": "train", "dev": "val"}],
    ids=["roboflow", "capitals", "dev"],
)
@pytest.mark.parametrize("layout", ["plain", "nested", "beside a README", "zip", "classes outside"])
def test_the_split_of_the_folders_is_kept(names, layout, tmp_path):
    source = root = tmp_path / "photos"
    draw_split(root / "dataset" if layout == "nested" else root, names)
    if layout == "beside a README":
        (root / "README.roboflow.txt").write_text("six classes", encoding="utf-8")
        (root / "annotations").mkdir()
        (root / "annotations" / "all.json").write_text("{}", encoding="utf-8")
    elif layout == "zip":
        source = tmp_path / "photos.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, path.relative_to(root))
    elif layout == "classes outside":
        source = tmp_path / "turned"
        for name in names:
            for label in LABELS:
                shutil.copytree(root / name / label, source / label / name)
    rows = rows_of(call("data", "manifest", source))
    assert {row["label"] for row in rows} == set(LABELS)
    counts = Counter(row["split"] for row in rows)
    assert counts == {split: 3 * SIZES[split] for split in names.values()}
    assert all(FIRST[row["split"]] <= int(Path(row["file"]).stem[len(row["label"]) :]) for row in rows)


def test_a_list_of_sources_keeps_their_splits(tmp_path):
    draw_split(tmp_path / "theirs", ROBOFLOW)
    draw_sample(tmp_path / "ours", 10, LABELS)
    listed = [{"name": name, "where": name} for name in ("ours", "theirs")]
    (tmp_path / "sources.json").write_text(json.dumps(listed), encoding="utf-8")
    rows = rows_of(call("data", "manifest", tmp_path / "sources.json"))
    theirs = Counter((row["file"].split("/")[1], row["split"]) for row in rows if row["source"] == "theirs")
    assert theirs == {("train", "train"): 18, ("valid", "val"): 9, ("test", "test"): 6}
    assert {row["split"] for row in rows if row["source"] == "ours"} == {"train", "val"}


def test_without_a_validation_split_some_of_the_training_split_is_held_out(tmp_path):
    draw_split(tmp_path / "photos", {"train": "train", "test": "test"})
    done = call("data", "manifest", tmp_path / "photos")
    rows = rows_of(done)
    assert {row["split"] for row in rows if row["file"].startswith("test/")} == {"test"}
    held_out = Counter(row["label"] for row in rows if row["split"] == "val")
    assert set(held_out) == set(LABELS) and set(held_out.values()) == {1}
    assert "there is no validation split" in done.stderr and "18 training photographs" in done.stderr
    assert "the 6 test photographs stay so" in done.stderr
    again = load_manifest(tmp_path / "photos", tmp_path / "work")
    assert {entry.file: entry.split for entry in again.entries} == {row["file"]: row["split"] for row in rows}


def mixed(root: Path) -> None:
    draw_split(root, ROBOFLOW)
    draw_classes(root, "train", ("glass",))


def differing(root: Path) -> None:
    draw_classes(root / "train", "train", ("glass", "metal"))
    draw_classes(root / "test", "test", ("glass", "paper"))


def flat(root: Path) -> None:
    for name in ("train", "test"):
        draw_classes(root / name, "train", ("glass",))
        for path in list((root / name / "glass").iterdir()):
            path.rename(root / name / path.name)
        (root / name / "glass").rmdir()


def split_as_class(root: Path) -> None:
    draw_classes(root, "train", ("glass", "metal"))
    (root / "metal").rename(root / "test")


REFUSED = {
    mixed: "test, train, valid are a split, and beside them lies glass",
    differing: "their classes differ: test has 'paper', the training split has glass, metal",
    flat: "test, train are named like a split, but there are no class folders in them",
    split_as_class: "test is named like a split and lies beside glass",
}


@pytest.mark.parametrize("command", ["manifest", "check", "evaluate", "import"])
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_folders_that_may_mean_two_things_are_refused(make, command, tmp_path):
    make(tmp_path / "photos")
    words = {
        "manifest": ["data", "manifest"],
        "check": ["data", "check", "--hashes-only"],
        "evaluate": ["evaluate"],
        "import": ["data", "import", "--out", tmp_path / "made"],
    }[command]
    done = call(*words, tmp_path / "photos")
    assert done.returncode == 1 and REFUSED[make] in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_training_refuses_what_the_manifest_refuses(tmp_path):
    mixed(tmp_path / "photos")
    done = call("train", "--data", tmp_path / "photos", "--out", tmp_path / "run")
    assert done.returncode == 1 and REFUSED[mixed] in done.stderr


def test_evaluate_scores_the_chosen_split(tmp_path):
    draw_split(tmp_path / "photos", ROBOFLOW)
    metrics = tmp_path / "metrics.json"
    whole = call("evaluate", tmp_path / "photos", "--json", metrics)
    assert whole.returncode == 0 and json.loads(metrics.read_bytes())["n"] == 33
    assert " are scored (18 train, 9 val, 6 test)" in whole.stderr
    tested = call("evaluate", tmp_path / "photos", "--subset", "test", "--json", metrics)
    assert tested.returncode == 0 and not tested.stderr and json.loads(metrics.read_bytes())["n"] == 6
    unknown = call("evaluate", tmp_path / "photos", "--subset", "tests")
    assert unknown.returncode == 1 and "no photograph is in split 'tests'; there is test, train, val" in unknown.stderr
    made = call("data", "import", tmp_path / "photos", "--out", tmp_path / "made")
    assert made.returncode == 0 and "(18 train, 9 val, 6 test)" in made.stdout, made.stderr
    assert call("evaluate", tmp_path / "made", "--subset", "test", "--json", metrics).returncode == 0
    assert json.loads(metrics.read_bytes())["n"] == 6
    assert Counter(row["split"] for row in rows_of(call("data", "manifest", tmp_path / "made"))) == {
        "train": 18, "val": 9, "test": 6,
    }  # fmt: skip


def test_a_checked_split_keeps_the_test_photographs(tmp_path):
    root = draw_split(tmp_path / "photos", ROBOFLOW)
    shutil.copy(root / "test" / "glass" / "glass70.png", root / "train" / "glass" / "leak.png")
    done = call("data", "check", root, "--hashes-only", "--out", tmp_path / "check")
    assert done.returncode == 0 and "1 of them " in done.stdout, done.stderr
    with open(tmp_path / "check" / "split.csv", encoding="utf-8") as stream:
        splits = {row["file"]: row["split"] for row in csv.DictReader(stream)}
    assert splits.pop("train/glass/leak.png") == "test"
    assert all(split == ROBOFLOW[file.split("/")[0]] for file, split in splits.items())
    used = rows_of(call("data", "manifest", root, "--split", tmp_path / "check" / "split.csv"))
    assert Counter(row["split"] for row in used) == {"train": 18, "val": 9, "test": 7}


# Skipped files


@pytest.fixture
def odd(tmp_path, monkeypatch) -> tuple[Path, dict[str, str], set[str]]:
    "A data set with everything that is hard to read, the reason for each, and what can be used."
    root = draw_sample(tmp_path / "photos", 60, ("glass", "metal"))
    (root / "glass/lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "glass/itself.jpg").symlink_to(root / "glass/itself.jpg")
    (root / "glass/circle").symlink_to(root)
    (root / "glass/up").symlink_to(tmp_path)
    draw_classes(tmp_path / "elsewhere", "val", ("metal",))
    (root / "metal/linked").symlink_to(tmp_path / "elsewhere" / "metal")
    (root / "metal/twice").symlink_to(tmp_path / "elsewhere" / "metal")
    os.mkfifo(root / "metal/pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root / "metal")  # the address of a socket is short
        listening.bind("socket.jpg")
    (root / "metal/closed").mkdir()
    reasons = {
        "glass/lost.jpg": "the link leads nowhere",
        "glass/itself.jpg": "the link leads nowhere: Too many levels of symbolic links",
        "glass/circle": READ_ALREADY,
        "glass/up": READ_ALREADY,
        "metal/twice": READ_ALREADY,
        "metal/pipe.png": "it is no file but a pipe, a socket or a device",
        "metal/socket.jpg": "it is no file but a pipe, a socket or a device",
        "metal/closed": "the folder cannot be entered: Permission denied",
    }
    scan = os.scandir

    def scandir(folder="."):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)  # the tests run as root, who may enter everything
    used = {f"{label}/{label}{n:03}.png" for label in ("glass", "metal") for n in range(60)}
    return root, reasons, used | {f"metal/linked/metal{n}.png" for n in range(50, 53)}


def test_every_file_is_used_or_skipped(odd):
    root, reasons, used = odd
    manifest = read_folder(root)
    assert {entry.file for entry in manifest.entries} == used
    assert {item.file: item.reason for item in manifest.skipped} == reasons
    assert [item.file for item in manifest.skipped] == sorted(reasons)


@pytest.mark.parametrize("command", ["manifest", "check", "report", "import", "evaluate"])
def test_every_command_names_the_skipped_files(command, odd, tmp_path):
    root, reasons, used = odd
    out = tmp_path / "out"
    words = {
        "manifest": ["data", "manifest", root],
        "check": ["data", "check", root, "--hashes-only"],
        "report": ["data", "report", root, "--hashes-only", "--out", out],
        "import": ["data", "import", root, "--out", out],
        "evaluate": ["evaluate", root, "--predictions", out],
    }[command]
    done = call(*words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert sorted(lines) == sorted(f"skipped: {file}: {reason}" for file, reason in reasons.items())
    if command == "manifest":
        assert {row["file"] for row in rows_of(done)} == used
    if command == "check":
        assert f"{len(used)} photographs of 2 classes, {len(reasons)} " in done.stdout
    if command == "evaluate":
        with open(out, encoding="utf-8") as stream:
            assert {row["file"] for row in csv.DictReader(stream)} == used


def test_predict_finds_what_evaluate_finds(odd):
    root, reasons, used = odd
    done = call("predict", root, "--json")
    predictions = json.loads(done.stdout)
    errors = {Path(line["file"]).relative_to(root).as_posix(): line.get("error") for line in predictions}
    assert {file for file, error in errors.items() if not error} == used
    assert {file: error for file, error in errors.items() if error} == reasons
    assert done.returncode == 1 and len(done.stderr.splitlines()) == len(reasons)


def test_a_folder_that_cannot_be_entered_is_an_error(odd, tmp_path):
    (tmp_path / "closed").mkdir()
    for words in (["data", "manifest"], ["evaluate"], ["predict"]):
        done = call(*words, tmp_path / "closed")
        assert done.returncode == 1 and "the folder cannot be entered: Permission denied" in done.stderr, words


def test_pictures_in_no_class_folder_are_named(tmp_path):
    root = draw_sample(tmp_path / "photos", 3, LABELS)
    draw_picture("glass", 9).save(root / "overview.png")
    draw_sample(root / "__unsorted", 1, ("glass",))
    done = call("data", "manifest", root)
    assert len(rows_of(done)) == 9
    assert "skipped: overview.png: it lies in no class folder" in done.stderr
    assert "skipped: __unsorted/glass/glass000.png: it lies in no class folder" in done.stderr
    unlabelled = draw_split(tmp_path / "kaggle", {"train": "train"})
    (unlabelled / "test").mkdir()
    for number in range(30):
        draw_picture("glass", number).save(unlabelled / "test" / f"{number}.jpg")
    done = call("data", "manifest", unlabelled)
    assert len(rows_of(done)) == 18 and "skipped: 10 more: it lies in no class folder" in done.stderr


# Files of other programs


def test_files_of_other_programs_are_ignored(tmp_path):
    root = draw_sample(tmp_path / "photos", 5, ("glass", "metal"))
    before = call("data", "manifest", root).stdout
    junk = [".ipynb_checkpoints/a-checkpoint.png", "glass/.ipynb_checkpoints/glass000-checkpoint.png", "@eaDir/a.jpg",
            "glass/@eaDir/glass000.png", "metal/deep/.hidden/glass000.png", "glass/._glass000.png", "glass/Thumbs.db",
            "glass/DESKTOP.INI", ".DS_Store", "metal/.DS_Store", "__MACOSX/glass/._glass000.png"]  # fmt: skip
    for name in junk:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "glass" / "glass000.png", root / name)
    for suffix in ("AAE", "MOV", "json", "xml", "txt", "csv"):
        (root / "glass" / f"glass000.{suffix}").write_text("beside a photograph", encoding="utf-8")
    for words in (["data", "manifest"], ["data", "check", "--hashes-only"], ["evaluate"], ["predict", "--json"]):
        done = call(*words, root)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        skipped = {line.split(": ")[1] for line in lines if line.startswith("skipped: ")}
        assert skipped == {f"glass/glass000.{suffix}" for suffix in ("AAE", "MOV", "json", "xml", "txt", "csv")}, words
        ignored = [line for line in lines if line.startswith("ignored: ")]
        assert len(ignored) == 1 and "hidden or left by other programs" in ignored[0]
        if words == ["data", "manifest"]:
            assert done.stdout == before
        if words[0] == "predict":
            assert len(json.loads(done.stdout)) == 10


def test_damaged_pictures_count(tmp_path):
    root = draw_sample(tmp_path / "photos", 10, ("glass", "metal"))
    for number in range(40):
        (root / "glass" / f"{number}.xml").write_text("<annotation/>", encoding="utf-8")
    assert len(read_folder(root).entries) == 20
    for number in range(2):
        (root / "glass" / f"cut{number}.png").write_bytes((root / "glass/glass000.png").read_bytes()[:-100])
    with pytest.raises(DataError, match="2 of 22 files cannot be used, more than 5 %"):
        read_folder(root)


# Names, sizes, and errors that name the file


def test_the_content_decides_and_not_the_suffix(tmp_path):
    root = draw_sample(tmp_path / "photos", 5, ("glass", "metal"))
    picture = draw_picture("glass", 30)
    picture.save(root / "glass" / "web.jpg", "WEBP")
    picture.save(root / "glass" / "old.jfif", "JPEG")
    picture.save(root / "glass" / "OLDER.JPE", "JPEG")
    new = {"glass/web.jpg", "glass/old.jfif", "glass/OLDER.JPE"}
    done = call("data", "manifest", root)
    assert new <= {row["file"] for row in rows_of(done)} and not done.stderr
    metrics = tmp_path / "metrics.json"
    assert call("evaluate", root, "--json", metrics).returncode == 0
    assert json.loads(metrics.read_bytes())["n"] == 13
    predictions = json.loads(call("predict", root, "--json").stdout)
    assert len(predictions) == 13 and not any("error" in prediction for prediction in predictions)
    assert call("data", "check", root, "--hashes-only").stdout.startswith("13 photographs of 2 classes, 0 ")


def test_every_command_reads_a_photograph_over_the_limit_of_the_service(tmp_path):
    root = draw_sample(tmp_path / "photos", 30, ("glass", "metal"))
    noise = np.random.default_rng(0).integers(0, 256, (1900, 1900, 3), np.uint8)
    Image.fromarray(noise).save(root / "glass" / "large.png", compress_level=0)
    assert MAX_BYTES < (root / "glass" / "large.png").stat().st_size < MAX_FILE_BYTES
    with open(root / "metal" / "larger.jpg", "wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)  # takes no room on the disk
    reason = "the file is larger than the limit of 64 MB"
    for words in (["data", "manifest"], ["data", "check", "--hashes-only"], ["evaluate"], ["predict"]):
        done = call(*words, root)
        assert done.returncode == (words == ["predict"]), done.stderr
        assert "metal/larger.jpg" in done.stderr and reason in done.stderr and len(done.stderr.splitlines()) == 1
    assert "glass/large.png" in {entry.file for entry in read_folder(root).entries}
    assert open_rgb(root / "glass" / "large.png").size == (1900, 1900)


def test_errors_about_a_photograph_name_its_file(tmp_path):
    from trashsorting.data.duplicates import compute_hashes
    from trashsorting.inference.predictor import Predictor
    from trashsorting.inference.session import score

    path = tmp_path / "cut.png"
    draw_picture("glass", 0).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    predictor = Predictor()
    for read in (
        lambda: open_rgb(path),
        lambda: compute_hashes([path]),
        lambda: score(predictor.session, predictor.card.preprocessing, [path]),
        lambda: predictor.predict_one(path),
    ):
        with pytest.raises(DamagedImage, match=r"cut\.png: the picture is damaged or cut off"):
            read()
    [outcome] = predictor.predict([path])
    assert str(path) in str(outcome)
    with pytest.raises(TooManyBytes, match=r"cut\.png: the file is larger"):
        open_rgb(path, max_bytes=10)
    with pytest.raises(OSError, match="/proc/self/mem"):  # can be opened, and not read
        open_rgb("/proc/self/mem")
    with pytest.raises(DamagedImage) as error:
        open_rgb(path.read_bytes())
    assert "cut.png" not in str(error.value)


def test_a_listing_does_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    root = draw_split(tmp_path / "photos", ROBOFLOW)
    (root / "train/glass/more").symlink_to(root / "test" / "glass")
    before, scan = list_folder(root), os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda folder: Reversed(list(scan(folder))[::-1]))
    assert list_folder(root) == before
    assert [item.file for item in before.unread] == ["train/glass/more"]
