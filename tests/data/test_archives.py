"""Archives, tables and names as other programs write them: read correctly, or refused with a clear error."""

import io
import json
import os
import re
import shutil
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path
from unicodedata import normalize

import fsspec
import pytest
from command import call

from trashsorting.core.errors import DataError
from trashsorting.data import archive as archives
from trashsorting.data.archive import unpack
from trashsorting.data.manifest import manifest_from_csv, read_folder
from trashsorting.data.sample import draw_picture, draw_sample
from trashsorting.data.sources import load_manifest, open_source, own_sources
from trashsorting.data.splits import read_split, split_csv
from trashsorting.evaluation.oof import load_predictions

LABELS = ("glass", "metal")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, bytes]:
    "A small data set: file by file, its bytes."
    folder = draw_sample(tmp_path_factory.mktemp("drawn"), 5, LABELS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.png"))}


def make_zip(target: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return target


def make_tar(target: Path, members: dict[str, bytes], mode: str = "w:gz", **fields) -> Path:
    with tarfile.open(target, mode) as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        if fields:
            info = tarfile.TarInfo("glass/odd.png")
            for name, value in fields.items():
                setattr(info, name, value)
            made.addfile(info, io.BytesIO(bytes(info.size if info.isreg() else 0)))
    return target


def labels_of(archive: Path, into: Path) -> tuple[tuple[str, ...], int]:
    manifest = load_manifest(archive, into)
    return manifest.labels, len(manifest.entries)


# Names in a zip


def unflag(target: Path) -> Path:
    "Take the flag for UTF-8 from every name, as macOS leaves it out."
    data = bytearray(target.read_bytes())
    for magic, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := data.find(magic, start + 1)) >= 0:
            data[start + place + 1] &= ~0x08
    target.write_bytes(data)
    return target


def test_names_in_utf_8_without_the_flag_are_utf_8(photographs, tmp_path):
    named = {file.replace("glass/", "Gläser/"): data for file, data in photographs.items()}
    archive = unflag(make_zip(tmp_path / "mac.zip", named))
    with zipfile.ZipFile(archive) as opened:
        assert any("GlΣ" in name or "Gl├" in name for name in opened.namelist())  # what an old code page makes of it
    assert labels_of(archive, tmp_path / "data") == (("Gläser", "metal"), 10)


def test_names_of_the_old_code_page_are_read_as_that(photographs, tmp_path):
    named = {file.replace("glass/", "Gl__ser/"): data for file, data in photographs.items()}
    archive = make_zip(tmp_path / "old.zip", named)
    archive.write_bytes(archive.read_bytes().replace(b"Gl__ser", b"Gl\x84_ser"))
    assert labels_of(archive, tmp_path / "data") == (("Glä_ser", "metal"), 10)


def test_backslashes_are_slashes(photographs, tmp_path):
    named = {f"photos\\{file}".replace("/", "\\"): data for file, data in photographs.items()}
    archive = make_zip(tmp_path / "windows.zip", {"photos\\": b"", "photos\\glass\\": b"", **named})
    assert labels_of(archive, tmp_path / "data") == (LABELS, 10)


@pytest.mark.parametrize("name", ["PHOTOS.ZIP", "photos", "photos.tar.gz", "photos.jpg"])
def test_a_zip_is_known_by_its_content(name, photographs, tmp_path):
    assert labels_of(make_zip(tmp_path / name, photographs), tmp_path / "data") == (LABELS, 10)


def test_class_folders_are_found_beside_stray_files(photographs, tmp_path):
    stray = {
        "README.txt": b"hello",
        "__MACOSX/a/._b": b"\0",
        ".DS_Store": b"\0",
        "a/LICENSE": b"MIT",
        "a/.DS_Store": b"\0",
        "a/b/notes.md": b"notes",
    }
    archive = make_zip(
        tmp_path / "deep.zip", {**stray, **{f"a/b/c/{file}": data for file, data in photographs.items()}}
    )
    assert labels_of(archive, tmp_path / "data") == (LABELS, 10)
    assert open_source(archive, tmp_path / "data") == tmp_path / "data/a/b/c"


def test_one_class_in_an_archive_is_one_class(photographs, tmp_path):
    members = {f"photos/{file}": data for file, data in photographs.items() if "glass" in file}
    root = open_source(make_zip(tmp_path / "one.zip", members), tmp_path / "data")
    assert read_folder(root, LABELS).labels == ("glass",)


# Tars, and what is neither


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.TAR.XZ", "w:xz"), ("a", "w")],
)
def test_a_tar_is_read_as_a_zip_is(name, mode, photographs, tmp_path):
    members = {f"./photos/{file}": data for file, data in photographs.items()}
    manifest = load_manifest(make_tar(tmp_path / name, members, mode), tmp_path / "data")
    folder = load_manifest(make_zip(tmp_path / "same.zip", photographs), tmp_path / "same")
    assert manifest.sha256 == folder.sha256 and len(manifest.entries) == 10


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../evil.png", "size": 1}, r"\.\./evil\.png leads out"),
        ({"name": "/etc/evil.png", "size": 1}, r"/etc/evil\.png leads out"),
        ({"name": "glass\\..\\..\\..\\evil.png", "size": 1}, "leads out"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link or a device"),
        ({"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"}, "is a link or a device"),
        ({"type": tarfile.FIFOTYPE}, "is a link or a device"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1}, "is a link or a device"),
        ({"name": "glass/glass000.png", "size": 1}, r"glass000\.png is in it twice"),
        ({"name": "./glass//glass000.png", "size": 1}, r"glass000\.png is in it twice"),
        ({"name": "glass/glass000.png/more", "size": 1}, "cannot be unpacked: "),
        ({"name": f"glass/{'x' * 300}.png", "size": 1}, "cannot be unpacked: File name too long"),
    ],
    ids=[
        "up",
        "absolute",
        "backslashes",
        "symlink",
        "hard link",
        "pipe",
        "device",
        "twice",
        "twice, otherwise",
        "in a file",
        "long",
    ],
)
def test_what_a_tar_may_not_hold(fields, reason, photographs, tmp_path):
    archive = make_tar(tmp_path / "odd.tar.gz", photographs, **fields)
    with pytest.raises(DataError, match=rf"^{re.escape(str(archive))}: .*{reason}") as refused:
        unpack(archive, tmp_path / "in/data")
    assert ".unpacking" not in str(refused.value)  # the folder that is gone by now
    assert not (tmp_path / "in/data").exists() and not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("..\\..\\evil.png", 0, "leads out"),
        ("/evil.png", 0, "leads out"),
        ("glass/link.png", stat.S_IFLNK | 0o777, "is a link or a device"),
        ("glass/glass000.png", 0, "is in it twice"),
        ("glass\\glass000.png", 0, "is in it twice"),
        (f"glass/{'x' * 300}.png", 0, "cannot be unpacked: File name too long"),
        ("glass", 0, "cannot be unpacked: "),
    ],
)
def test_what_a_zip_may_not_hold(name, mode, reason, photographs, tmp_path):
    archive = make_zip(tmp_path / "odd.zip", photographs)
    with zipfile.ZipFile(archive, "a") as made, warnings.catch_warnings(action="ignore"):
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        made.writestr(info, b"/etc/passwd")
    with pytest.raises(DataError, match=rf"^{re.escape(str(archive))}: .*{reason}") as refused:
        unpack(archive, tmp_path / "in/data")
    assert ".unpacking" not in str(refused.value)
    assert not (tmp_path / "in/data").exists() and not list(tmp_path.rglob("evil*"))


def test_a_tar_bomb_is_refused(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 2**20)
    big = make_tar(tmp_path / "big.tar.gz", {"glass/zeros.png": bytes(2**21)})
    many = make_tar(tmp_path / "many.tar.gz", {f"glass/{number}.png": b"" for number in range(300)})
    for archive in (big, many):
        assert archive.stat().st_size < 20_000
        with pytest.raises(DataError, match="unpacks to more than 0 GiB"):
            unpack(archive, tmp_path / "data")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_refused(kind, photographs, tmp_path):
    header = tarfile.TarInfo("comment")
    header.type, header.size = kind, 2**32
    before = make_tar(tmp_path / "photos.tar", photographs, "w").read_bytes().rstrip(b"\0")
    before += bytes(-len(before) % 512)
    (tmp_path / "late.tar").write_bytes(before + header.tobuf() + bytes(2048))
    (tmp_path / "first.tar").write_bytes(header.tobuf() + bytes(2048))
    with pytest.raises(DataError, match=r"late\.tar: cannot be unpacked: one of its headers is too long"):
        unpack(tmp_path / "late.tar", tmp_path / "data")
    with pytest.raises(DataError, match=r"first\.tar: neither a zip nor a tar"):
        unpack(tmp_path / "first.tar", tmp_path / "data")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_a_tar_that_is_cut_off_is_refused(mode, fraction, photographs, tmp_path):
    whole = make_tar(tmp_path / "whole", photographs, mode).read_bytes()
    length = len(whole.rstrip(b"\0")) if mode == "w" else len(whole)
    (tmp_path / "cut.tar").write_bytes(whole[: int(length * fraction)])
    with pytest.raises(DataError, match=r"cut\.tar: (cannot be unpacked: .*; it is damaged|neither a zip nor a tar)"):
        unpack(tmp_path / "cut.tar", tmp_path / "data")


def test_a_tar_that_ends_between_two_members_is_refused(photographs, tmp_path):
    with tarfile.open(make_tar(tmp_path / "whole.tar", photographs, "w")) as opened:
        start = opened.getmembers()[6].offset
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:start])
    (tmp_path / "damaged.tar").write_bytes(data[:start] + b"\xff" * 512 + data[start + 512 :])
    for name in ("cut.tar", "damaged.tar"):
        with pytest.raises(DataError, match=rf"{name}: cannot be unpacked: it ends in the middle of its list"):
            unpack(tmp_path / name, tmp_path / "data")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100), "a 7z archive cannot be read here; pack it as a zip"),
        (b"Rar!\x1a\x07\1\0" + bytes(100), "a RAR archive cannot be read here; pack it as a zip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "a Zstandard archive cannot be read here; pack it as a zip"),
        (b"", r"the file is empty \(0 bytes\)"),
        (b"buy milk", "neither a zip nor a tar; name a folder, a zip or a tar"),
        (b"PK\5\6" + bytes(18), "there are no files in it"),
        (bytes(10240), "there are no files in it"),
        (b"PK\3\4" + bytes(100), "cannot be unpacked: File is not a zip file; it is damaged"),
        (b"\x1f\x8b\x08" + bytes(100), "neither a zip nor a tar"),
    ],
)
@pytest.mark.parametrize("name", ["photos.zip", "photos.7z", "photos"])
def test_any_other_file_is_refused(name, data, reason, tmp_path):
    (tmp_path / name).write_bytes(data)
    done = call("data", "manifest", tmp_path / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(rf"^trashsorting: {re.escape(str(tmp_path / name))}: .*{reason}", done.stderr), done.stderr


# Names in errors


def test_errors_name_the_archive_and_no_temporary_folder(photographs, tmp_path):
    (tmp_path / "split.csv").write_text("file,label,split\nglass/x.png,glass,val\n", encoding="utf-8")
    hollow = make_zip(tmp_path / "hollow.zip", {**photographs, "void/notes.txt": b"x"})
    good = make_zip(tmp_path / "good.zip", photographs)
    bucket = fsspec.filesystem("memory")
    bucket.pipe(f"memory://{tmp_path.name}/hollow.zip", hollow.read_bytes())
    bucket.pipe(f"memory://{tmp_path.name}/bad.zip", good.read_bytes()[:-60])
    bucket.pipe(f"memory://{tmp_path.name}/photos/void/notes.txt", b"x")
    for words, named in {
        ("evaluate", hollow): f"{hollow}: ",
        ("data", "manifest", hollow): f"{hollow}: ",
        ("data", "check", "--hashes-only", hollow): f"{hollow}: ",
        ("data", "import", hollow, "--out", tmp_path / "new"): f"{hollow}: ",
        ("evaluate", good, "--split", tmp_path / "split.csv"): f"{good}",
        ("data", "check", "--hashes-only", good, "--split", tmp_path / "split.csv"): f"{good}",
        ("data", "import", good, "--out", tmp_path / "new", "--split", tmp_path / "split.csv"): f"{good}",
        ("data", "manifest", f"memory://{tmp_path.name}/hollow.zip"): f"memory://{tmp_path.name}/hollow.zip: ",
        ("data", "manifest", f"memory://{tmp_path.name}/bad.zip"): f"memory://{tmp_path.name}/bad.zip: ",
        ("data", "manifest", f"memory://{tmp_path.name}/photos"): f"memory://{tmp_path.name}/photos: ",
    }.items():
        done = call(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert named in done.stderr, done.stderr
        assert not re.search(r"tmp\w{8}/|\.new-|\.fetched", done.stderr.replace(str(tmp_path), "")), done.stderr


@pytest.mark.parametrize("name", ["sample", "hub", "garythung/trashnet"])
def test_a_folder_comes_before_the_built_in_source_of_its_name(name, tmp_path, monkeypatch):
    draw_sample(tmp_path / name, 2, ("glass", "paper"))
    monkeypatch.chdir(tmp_path)
    done = call("data", "manifest", name)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert f"{name}: the one in {tmp_path} is read, and not the built-in source" in done.stderr
    (tmp_path / "sources.json").write_text(json.dumps([{"name": "first", "where": name}]), encoding="utf-8")
    assert len(call("data", "manifest", "sources.json").stdout.splitlines()) == 5
    # A run works in another folder, so there it is an absolute path.
    from trashsorting.cli.train import resolve_paths

    assert resolve_paths({}, data=name, out="run")["data"] == str(tmp_path / name)


# Names that look the same


def test_names_in_another_normal_form_are_the_same_names(photographs, tmp_path):
    short, long = (normalize(form, "Gläser") for form in ("NFC", "NFD"))
    folder = tmp_path / "photos"
    for file, data in photographs.items():
        target = folder / file.replace("glass", long)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    manifest = load_manifest(folder, tmp_path)
    assert manifest.labels == (short, "metal")
    assert all((manifest.root / entry.file).is_file() for entry in manifest.entries)

    (tmp_path / "split.csv").write_text(normalize("NFC", split_csv(manifest)), encoding="utf-8")
    assert load_manifest(folder, tmp_path, tmp_path / "split.csv") == manifest
    (folder / "manifest.csv").write_text(normalize("NFC", manifest.to_csv()), encoding="utf-8")
    assert load_manifest(folder, tmp_path) == manifest

    made = call("data", "import", folder, "--out", tmp_path / "data")
    assert made.returncode == 0, made.stderr
    assert load_manifest(tmp_path / "data", tmp_path).labels == (short, "metal")


def test_two_folders_that_look_the_same_are_one_class(tmp_path):
    short, long = (normalize(form, "Gläser") for form in ("NFC", "NFD"))
    for number, name in enumerate((short, long, "metal", "metal")):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        draw_picture("glass", number).save(tmp_path / "photos" / name / f"{number}.png")
    manifest = load_manifest(tmp_path / "photos", tmp_path)
    assert manifest.labels == (short, "metal") and len(manifest.entries) == 4


# Tables


ROWS = (("file", "label", "split"), ("glass/a, b.png", "Gläser", "val"), ('metal/"c".png', "metal", "train"))


def table(separator: str = ",", end: str = "\n", head: str = "file{0}label{0}split") -> str:
    quoted = [separator.join('"{}"'.format(value.replace('"', '""')) for value in row) for row in ROWS[1:]]
    return end.join([head.format(separator), *quoted, ""])


@pytest.mark.parametrize(
    "data",
    [
        table().encode(),
        table().encode("utf-8-sig"),
        table(";", "\r\n").encode("utf-8-sig"),
        table("\t", "\r\n").encode("utf-16"),
        b"\xfe\xff" + table("\t").encode("utf-16-be"),
        table(",", "\r").encode(),
        table(head="File{0} LABEL {0}Split ").encode(),
        (table().replace("\n", ",,\n") + ",,,,\n\n").encode(),
        "\n".join(
            f"{line},{more}" for line, more in zip(table().split("\n"), ("note", "dark", "x"), strict=False)
        ).encode(),
    ],
    ids=["plain", "mark", "Excel", "Unicode text", "big end", "old Mac", "case", "empty columns", "more columns"],
)
def test_a_table_is_read_as_a_spreadsheet_saves_it(data, tmp_path):
    (tmp_path / "split.csv").write_bytes(data)
    assert read_split(tmp_path / "split.csv") == {row[0]: row[1:] for row in ROWS[1:]}


BAD_TABLES = {
    "empty": (b"", "is empty; a CSV is needed"),
    "blank": (b"\xef\xbb\xbf\r\n;;\r\n", "is empty; a CSV is needed"),
    "head only": (b"HEAD\n", "has a header and no rows"),
    "cp1252": (b"HEAD\n" + "Gläser".encode("cp1252"), r", line 2: byte 0xe4 is not UTF-8; save it as 'CSV UTF-8'"),
    "UTF-16 without a mark": ("HEAD\n".encode("utf-16-le"), "is not text; a CSV is needed"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8"),
    "another table": (b"image,class\n1,2\n", "no column 'file'; needs the columns file,label,.*, has image,class"),
    "twice": (b"HEAD,label\n", "2 columns are called 'label'"),
    "an open quote": (b'HEAD\n"glass/a.png,1\nb,2\n', "cannot be read as CSV: unexpected end of data"),
    "a long row": (b"HEAD\n1,2,3,4,5,6,7,8,9\n", "line 2: has 9 values for . columns"),
    "a long field": (b"HEAD\n" + b"x" * 200_000, "cannot be read as CSV: field larger than"),
    "JSON": (b'{"file": 1}', "no column 'file'"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
@pytest.mark.parametrize(
    ("read", "head"),
    [
        (read_split, b"file,label,split"),
        (lambda path: manifest_from_csv(path, path.parent), b"file,label,split,sha256,width,height"),
        (load_predictions, b"file,label,fold,logit:a"),
    ],
    ids=["split", "manifest", "predictions"],
)
def test_a_table_that_cannot_be_read_is_refused(kind, read, head, tmp_path):
    data, reason = BAD_TABLES[kind]
    wide = head.decode().encode("utf-16-le")
    (tmp_path / "x.csv").write_bytes(data.replace(b"HEAD", head).replace("HEAD".encode("utf-16-le"), wide))
    with pytest.raises(DataError, match=rf"x\.csv.*{reason}"):
        read(tmp_path / "x.csv")


def test_a_manifest_that_excel_saved_is_the_same_manifest(tmp_path):
    manifest = load_manifest(draw_sample(tmp_path / "photos", 3, LABELS), tmp_path)
    saved = manifest.to_csv().replace(",", ";").replace("\n", ";\r\n").replace("file;", "File ;")
    (tmp_path / "photos/manifest.csv").write_text(saved, encoding="utf-8-sig", newline="")
    again = load_manifest(tmp_path / "photos", tmp_path)
    assert again.entries == manifest.entries
    (tmp_path / "photos/manifest.csv").write_text(saved.replace(";160;", ";wide;"), encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"manifest\.csv, line 2: not a manifest: width and height are pixels"):
        load_manifest(tmp_path / "photos", tmp_path)


# Lists of sources


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "7",
        '"hub"',
        "not JSON",
        "[[[[",
        "[" * 100_000,
        '{"sources": [{"name": "a", "where": "b"}]}',
        '[{"id": 1, "file_name": "a.jpg"}]',
        '[{"name": "..", "where": "sample"}]',
        '[{"name": ".hidden", "where": "sample"}]',
        "[1, 2]",
        "[null]",
        "\udcff",
    ],
)
def test_any_other_list_of_sources_is_refused(text, tmp_path):
    (tmp_path / "sources.json").write_bytes(os.fsencode(text))
    done = call("data", "manifest", tmp_path / "sources.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"trashsorting: .*sources\.json: not a list of sources: .*; known by name are", done.stderr)
    with pytest.raises(DataError, match=r"sources\.json: not a list of sources"):
        own_sources(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "7", '["../mine"]', "[1]", "[" * 100_000])
def test_a_note_of_another_program_deletes_nothing(text, photographs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.unpacked").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"\.unpacked: not a list of what was unpacked here"):
        unpack(make_zip(tmp_path / "photos.zip", photographs), tmp_path / "data")
    assert (tmp_path / "mine/thesis.txt").is_file()


# Progress


def test_a_long_unpacking_shows_a_bar(photographs, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(archives, "progress_bar", lambda items, what, wanted, *_: shown.append((what, wanted)) or items)
    for archive in (make_zip(tmp_path / "a.zip", photographs), make_tar(tmp_path / "a.tgz", photographs)):
        open_source(archive, tmp_path / "data", progress=True)
        shutil.rmtree(tmp_path / "data")
    assert shown == [("unpacking", True)] * 2
