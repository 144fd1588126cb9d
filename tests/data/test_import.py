"""A folder that is prepared for DVC is replaced as a whole or not at all, and no file is lost."""

import os
from pathlib import Path

import pytest
from command import call

from trashsorting.core.errors import DataError
from trashsorting.data.dvc import import_data
from trashsorting.data.sample import draw_sample
from trashsorting.data.sources import load_manifest
from trashsorting.data.splits import split_csv

LABELS = ("glass", "metal")


def contents(folder: Path) -> dict[str, bytes]:
    "Every file of a folder, hidden ones too."
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def prepared(tmp_path) -> Path:
    "A prepared folder, alone in its parent."
    (tmp_path / "here").mkdir()
    return import_data(draw_sample(tmp_path / "raw", 20, LABELS), tmp_path / "here/data").root


def is_refused(source: str | Path, into: Path, message: str, split: Path | None = None) -> None:
    "Replacing the folder is refused with this message, and no file changes."
    before = contents(into.parent)
    with pytest.raises(DataError, match=message):
        import_data(source, into, split, replace_old=True)
    assert contents(into.parent) == before


def test_a_folder_that_is_no_data_set_is_not_replaced(tmp_path):
    (tmp_path / "here/important/sub").mkdir(parents=True)
    (tmp_path / "here/important/sub/thesis.txt").write_text("years of work", encoding="utf-8")
    is_refused("sample", tmp_path / "here/important", r"important: there is no manifest\.csv, .*choose another --out")


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "notes").write_text("buy milk", encoding="utf-8")
    for replace_old in (False, True):
        with pytest.raises(DataError, match="notes: a file is there already; choose another --out"):
            import_data("sample", tmp_path / "notes", replace_old=replace_old)
    assert contents(tmp_path) == {"notes": b"buy milk"}


@pytest.mark.parametrize("file", ["README.txt", "glass/notes.txt", ".gitignore"])
@pytest.mark.parametrize("source", ["sample", "itself"])
def test_a_file_that_the_manifest_lacks_is_not_deleted(source, file, prepared):
    (prepared / file).write_text("buy milk", encoding="utf-8")
    message = rf"{file} would be lost \(.*\); move it elsewhere"
    is_refused(prepared if source == "itself" else source, prepared, message)


def test_an_unusable_photograph_is_not_deleted(prepared, tmp_path):
    whole = (prepared / "glass/glass003.png").read_bytes()
    (prepared / "glass/glass003.png").write_bytes(whole[:-200])
    is_refused(prepared, prepared, r"glass/glass003\.png would be lost \(.*damaged or cut off\)")
    (prepared / "glass/glass003.png").write_bytes(whole)
    (tmp_path / "split.csv").write_text(
        split_csv(load_manifest(prepared, tmp_path)).replace("train", "none", 1), encoding="utf-8"
    )
    is_refused(prepared, prepared, r"glass/glass000\.png would be lost", tmp_path / "split.csv")
    linked = tmp_path / "linked"
    linked.symlink_to(prepared, target_is_directory=True)
    is_refused(linked, prepared, r"glass/glass000\.png would be lost", tmp_path / "split.csv")


def test_a_folder_is_prepared_again_with_new_photographs(prepared, tmp_path):
    draw_sample(prepared, 21, LABELS)
    (prepared / "metal/metal004.png").unlink()
    done = call("data", "import", prepared, "--out", prepared, "--replace")
    assert done.returncode == 0 and "41 photographs of 2 classes" in done.stdout
    assert len(load_manifest(prepared, tmp_path).entries) == 41
    assert [path.name for path in prepared.parent.iterdir()] == ["data"]
    assert {entry.label for entry in import_data("sample", prepared, replace_old=True).entries} > set(LABELS)


def test_the_old_folder_is_back_when_the_new_one_cannot_be_moved(prepared, monkeypatch):
    before, move = contents(prepared), os.replace

    def fail_for_new(source, target):
        if Path(target) == prepared and Path(source).name == "made":
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail_for_new)
    with pytest.raises(DataError, match=r"data: cannot be put in its place: No space left .*; nothing was replaced"):
        import_data("sample", prepared, replace_old=True)
    assert contents(prepared) == before and [path.name for path in prepared.parent.iterdir()] == ["data"]
