"""Where an import may write, and which file a table means."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from command import call

from trashsorting.cli.train import _make_folder, _read_parameters
from trashsorting.core.errors import DataError, TrashsortingError
from trashsorting.data.dvc import tracked_version
from trashsorting.data.sample import draw_sample
from trashsorting.data.storage import folder_for


def test_a_folder_in_its_own_source_is_refused(tmp_path):
    photos = draw_sample(tmp_path / "photos", 2, ("glass", "metal"))
    (tmp_path / "link").symlink_to(photos)
    for out in (photos / "made", tmp_path / "link/deep/made"):
        done = call("data", "import", photos, "--out", out)
        assert done.returncode == 1 and "would be read as a class the next time; choose another --out" in done.stderr
    assert sorted(path.name for path in photos.iterdir()) == ["glass", "metal"]
    assert call("data", "import", photos, "--out", tmp_path / "photos-made").returncode == 0
    made = tmp_path / "photos-made"
    assert call("data", "import", made, "--out", made, "--replace").returncode == 0


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_table_and_the_disk_may_spell_an_umlaut_differently(forms, tmp_path):
    photos = draw_sample(tmp_path / "photos", 2, ("glass", "metal"))
    listed, stored = (unicodedata.normalize(form, "grün") for form in forms)
    (photos / "glass/glass000.png").rename(photos / f"glass/{stored}.png")
    rows = [f"glass/{listed}.png,glass", "glass/glass001.png,glass", *(f"metal/metal00{n}.png,metal" for n in (0, 1))]
    (photos / "list.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    done = call("data", "import", photos / "list.csv", "--out", tmp_path / "data")
    assert done.returncode == 0 and "4 photographs of 2 classes" in done.stdout, done


@pytest.mark.parametrize("md5", ["5", "[1]", "'a b'", "../x", "{a: b}", "'0'"])
def test_a_version_that_is_none_is_one_sentence(md5, tmp_path, monkeypatch):
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {md5}\n", encoding="utf-8")
    with pytest.raises(DataError, match="not a file that `dvc add` wrote"):
        tracked_version(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    done = call("job", "train", "--image", "r/i:1", "--bucket", "gs://bkt", "--dry-run")
    assert done.returncode == 1 and "data.dvc: not a file that `dvc add` wrote" in done.stderr, done


def test_a_typed_path_is_no_number():
    assert _read_parameters(None, (("out", "007"), ("split", "1e3"), ("seed", "007"))) == {
        "out": "007",
        "split": "1e3",
        "seed": 7,
    }


def test_a_run_that_cannot_be_sent_is_kept(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with (
        pytest.raises(DataError, match="the files are kept in ") as error,
        folder_for(f"file://{tmp_path}/taken/run") as folder,
    ):
        (folder / "checkpoint.pth").write_text("hours of work", encoding="utf-8")
    kept = Path(str(error.value).rpartition("the files are kept in ")[2])
    assert (kept / "checkpoint.pth").read_text(encoding="utf-8") == "hours of work"
    shutil.rmtree(kept)
    with folder_for("memory://bucket/kept/run") as folder:
        (folder / "checkpoint.pth").write_text("hours of work", encoding="utf-8")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1: 2", "needs a line `name: value`"),
        ("~: 3", "needs a line `name: value`"),
        ("out: [1]", r"out=\[1\]: must be a path"),
        ("data: {a: 1}", "data={'a': 1}: must be a path"),
    ],
)
def test_parameters_that_are_none_are_one_sentence(text, reason, tmp_path):
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(TrashsortingError, match=rf"params\.yaml: {reason}"):
        _read_parameters(tmp_path / "params.yaml", ())


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file/run", Path("/dev/null")):
        with pytest.raises(TrashsortingError, match="is a file, and a folder is needed; choose another one"):
            _make_folder(folder)
