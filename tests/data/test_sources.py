"""Photographs from any source: zips from a bucket, replaced or refused; odd names; manifests with errors."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest
from command import call

from trashsorting.core.errors import DataError
from trashsorting.data.archive import unpack
from trashsorting.data.manifest import Manifest, manifest_from_csv, read_folder
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.sources import load_manifest
from trashsorting.data.splits import split_by_hash, split_csv

LABELS = ("glass", "metal")


def pack(folder: Path, archive: Path, inside: str = "") -> Path:
    "Zip a folder, its files under `inside`, which is empty or ends in a slash."
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for path in sorted(folder.rglob("*.png")):
            made.write(path, f"{inside}{path.relative_to(folder).as_posix()}")
    return archive


@pytest.fixture
def sample(tmp_path) -> Path:
    return draw_sample(tmp_path / "sample", 5, LABELS)


# Zips


@pytest.mark.parametrize("inside", ["", "photos/"], ids=["classes outermost", "one folder around them"])
def test_a_zip_in_a_bucket_is_read_and_a_retry_replaces_it(inside, sample, tmp_path):
    bucket, into = fsspec.filesystem("memory"), tmp_path / "run/data"
    address = f"memory://zips/{tmp_path.name}/photos.zip"
    bucket.pipe(address, pack(sample, tmp_path / "first.zip", inside).read_bytes())
    before = load_manifest(address, into)
    assert before.sha256 == load_manifest(sample, tmp_path).sha256
    assert before.root.is_relative_to(into) and list((tmp_path / "run").iterdir()) == [into]

    # The bucket's zip is another one by now: of what was unpacked before, nothing is left.
    shutil.rmtree(sample / "metal")
    draw_sample(sample, 3, ("paper",))
    bucket.pipe(address, pack(sample, tmp_path / "second.zip", inside).read_bytes())
    after = load_manifest(address, into)
    assert after.labels == ("glass", "paper") and after.sha256 == load_manifest(sample, tmp_path).sha256
    assert not list(into.rglob("metal"))


def test_a_damaged_zip_leaves_what_an_earlier_one_brought(sample, tmp_path):
    good = pack(sample, tmp_path / "good.zip")
    before = read_folder(unpack(good, tmp_path / "data"))
    (tmp_path / "bad.zip").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"bad\.zip: cannot be unpacked"):
        unpack(tmp_path / "bad.zip", tmp_path / "data")
    assert read_folder(tmp_path / "data") == before


def test_a_zip_replaces_no_other_files(sample, tmp_path):
    archive, mine = pack(sample, tmp_path / "photos.zip"), tmp_path / "mine"
    (mine / "glass").mkdir(parents=True)
    (mine / "glass/thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine: 'glass' is there already; .* another folder"):
        unpack(archive, mine)
    assert [path.name for path in mine.rglob("*")] == ["glass", "thesis.txt"]


def test_files_of_an_earlier_zip_are_no_longer_replaced(sample, tmp_path):
    unpack(pack(sample, tmp_path / "first.zip"), tmp_path / "data")
    shutil.rmtree(sample / "metal")
    unpack(pack(sample, tmp_path / "second.zip"), tmp_path / "data")
    draw_sample(tmp_path / "data", 1, ("metal",))  # by hand
    with pytest.raises(DataError, match="'metal' is there already"):
        unpack(tmp_path / "second.zip", tmp_path / "data")
    assert (tmp_path / "data/metal/metal000.png").is_file()


def overwrite(archive: Path, local: int, central: int, value: bytes) -> None:
    "Overwrite bytes in the headers of a zip's first member: so far into its own, so far into the directory's."
    data = bytearray(archive.read_bytes())
    for start, place in ((data.index(b"PK\3\4"), local), (data.index(b"PK\1\2"), central)):
        data[start + place : start + place + len(value)] = value
    archive.write_bytes(data)


def scramble(archive: Path) -> None:
    "Damage the compressed bytes of a zip's first member."
    data = bytearray(archive.read_bytes())
    start = 30 + len("glass/glass000.png")
    data[start : start + 40] = b"\xff" * 40
    archive.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda archive: overwrite(archive, 6, 8, b"\1\0"),
            "is encrypted, .*; pack it again without a password",
        ),
        (lambda archive: overwrite(archive, 8, 10, b"\x09\0"), "compression .* not supported; pack it again"),
        (scramble, "Error -3 while decompressing data.*; it is damaged"),
    ],
    ids=["encrypted", "Deflate64", "damaged"],
)
def test_a_zip_that_cannot_be_unpacked_is_refused(damage, reason, sample, tmp_path):
    archive = pack(sample, tmp_path / "photos.zip")
    damage(archive)
    with pytest.raises(DataError, match=rf"photos\.zip: cannot be unpacked: .*{reason}"):
        unpack(archive, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(sample, tmp_path):
    archive = pack(sample, tmp_path / "bomb.zip")
    data, start = bytearray(archive.read_bytes()), 0
    for _ in range(6):  # in the directory, 24 bytes into a member, is what it claims to unpack to: 4 GiB less two
        start = data.index(b"PK\1\2", start) + 24
        data[start : start + 4] = (2**32 - 2).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"bomb\.zip: unpacks to more than 20 GiB"):
        unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data").exists()


# Names and lists


def test_a_name_that_is_not_utf_8_is_skipped_with_the_reason(tmp_path):
    sample, out = draw_sample(tmp_path / "sample", 20, LABELS), tmp_path / "manifest.csv"
    os.rename(sample / "glass/glass007.png", os.fsencode(sample) + b"/glass/fl\xe4schchen.png")
    done = call("data", "manifest", sample, "--out", out)
    assert done.returncode == 0 and "39 photographs of 2 classes, 1 " in done.stdout
    assert r"skipped: glass/fl\xe4schchen.png: the name is not valid UTF-8" in done.stderr
    assert len(manifest_from_csv(out, sample).entries) == 39


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("glass/a.png,glass,val,00,160,120", r"old\.csv, line 3: glass/a\.png is listed twice"),
        ("glass/b.png,glass,vall,00,160,120", r"old\.csv, line 3: unknown split 'vall' for glass/b\.png; known"),
    ],
    ids=["twice", "misspelt"],
)
def test_a_manifest_that_contradicts_itself_is_refused(more, reason, tmp_path):
    head = "file,label,split,sha256,width,height\nglass/a.png,glass,train,00,160,120\n"
    (tmp_path / "old.csv").write_text(f"{head}{more}\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        manifest_from_csv(tmp_path / "old.csv", tmp_path)
    undecided = more.replace("a.png", "b.png").replace(",vall,", ",,").replace(",val,", ",,")
    (tmp_path / "old.csv").write_text(f"{head}{undecided}\n", encoding="utf-8")
    read: Manifest = manifest_from_csv(tmp_path / "old.csv", tmp_path)
    assert [(entry.file, entry.split) for entry in read.entries] == [("glass/a.png", "train"), ("glass/b.png", "")]


def test_a_folder_with_its_own_manifest_must_match_it(tmp_path):
    sample = draw_sample(tmp_path / "sample", 20, LABELS)
    (sample / "glass/.hidden.png").write_bytes(b"a file manager's")
    (sample / "glass/notes.txt").write_text("buy milk", encoding="utf-8")
    listed = split_by_hash(read_folder(sample), seed=3)
    (sample / "manifest.csv").write_text(listed.to_csv(), encoding="utf-8")
    loaded = load_manifest(sample, tmp_path)
    assert loaded == listed and [item.file for item in loaded.skipped] == ["glass/notes.txt"]
    draw_picture("glass", 99).save(sample / "glass/glass000.png")  # of the same size
    with pytest.raises(DataError, match=r"manifest\.csv: glass/glass000\.png is not the file that is listed"):
        load_manifest(sample, tmp_path)


# Lists of sources


def test_a_list_with_a_split_file_and_a_csv_of_several_sources(sample, tmp_path):
    "Each source keeps its own split; the CSV's sources have its weight, their licences, and groups with their names."
    divided = split_by_hash(read_folder(sample), 3)
    (tmp_path / "split.csv").write_text(split_csv(divided), encoding="utf-8")
    draw_sample(tmp_path / "open", 4, ("glass", "metal", "paper"))
    rows = ["file,label,source,group,licence,attribution"]
    for label, theirs in [("glass", "bottle"), ("metal", "can"), ("paper", "book")]:
        for number in range(4):
            place = ("street", "CC-BY-4.0", "Ann") if number % 2 else ("office", "MIT", "")
            name, licence, author = place
            rows.append(f"{label}/{label}{number:03}.png,{theirs},{name},{label}{number // 2},{licence},{author}")
    (tmp_path / "open/list.csv").write_text("\n".join(rows), encoding="utf-8")
    listed = [
        {"name": "ours", "where": "sample", "split": "split.csv"},
        {
            "name": "open",
            "where": "open/list.csv",
            "weight": 3,
            "classes": {"bottle": "glass", "can": "metal", "*": ""},
        },
    ]
    (tmp_path / "sources.json").write_text(json.dumps(listed), encoding="utf-8")
    manifest = load_manifest(tmp_path / "sources.json", tmp_path / "joined")
    ours = {entry.file.removeprefix("ours/"): entry.split for entry in manifest.entries if entry.source == "ours"}
    assert ours == {entry.file: entry.split for entry in divided.entries}
    assert [(source.name, source.licence, source.attribution, source.weight) for source in manifest.sources] == [
        ("ours", "", "", 1),
        ("office", "MIT", "", 3),
        ("street", "CC-BY-4.0", "Ann", 3),
    ]
    assert {entry.group for entry in manifest.entries if entry.source == "street"} == {
        f"street/{label}{number}" for label in ("glass", "metal") for number in range(2)
    }
    assert all(entry.split for entry in manifest.entries) and len(manifest.entries) == 10 + 8
    (tmp_path / "again.csv").write_text(manifest.to_csv(), encoding="utf-8")
    assert manifest_from_csv(tmp_path / "again.csv", manifest.root).entries == manifest.entries


def test_a_csv_alone_is_a_data_set(tmp_path):
    draw_sample(tmp_path / "open", 2, LABELS)
    rows = [f"{label}/{label}{number:03}.png,{label}" for label in LABELS for number in range(2)]
    (tmp_path / "open/list.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    manifest = load_manifest(tmp_path / "open/list.csv", tmp_path / "data")
    assert manifest.labels == LABELS and [source.name for source in manifest.sources] == ["open"]
    imported = call("data", "import", tmp_path / "open/list.csv", "--out", tmp_path / "prepared")
    assert imported.returncode == 0, imported.stderr
    assert load_manifest(tmp_path / "prepared", tmp_path / "unused").sources == manifest.sources
