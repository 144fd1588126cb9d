"""YAML of strangers: a sentence with the file, never a traceback, never code that runs."""

from pathlib import Path

import pytest
from command import call

from trashsorting.core.errors import DataError
from trashsorting.core.system import read_yaml
from trashsorting.data.dvc import tracked_version
from trashsorting.data.sources import read_class_map

WRONG = [
    'a: !!int ""',
    'a: !!float ""',
    "a: !!bool maybe",
    "a: !!timestamp soon",
    "a: 2020-13-45",
    "a: " + "[" * 2_000,
    "a: [",
    "a: \x01",
    "a: 1\nb: 2\na: 3",
    "a: {b: 1, c: 2, b: 1}",
    'a: !!python/object/apply:os.system ["touch ran"]',
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_yaml_is_one_sentence(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("classes.yaml", "params.yaml", "data.dvc"):
        Path(name).write_text(text, encoding="utf-8")
    for read, path in ((read_yaml, "classes.yaml"), (read_class_map, "classes.yaml"), (tracked_version, "data")):
        with pytest.raises(DataError, match=r"^(classes.yaml|data.dvc)(, line \d+)?: not YAML: "):
            read(Path(path))
    done = call("train", "-f", "params.yaml")
    assert done.returncode == 1 and done.stderr.startswith("trashsorting: params.yaml") and "not YAML" in done.stderr
    assert not Path("ran").exists()


def test_a_name_that_is_there_twice_is_told_with_its_line(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("bottle: glass\ncan: metal\nbottle: plastic\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classes\.yaml, line 3: not YAML: 'bottle' is there twice"):
        read_class_map(path)
    path.write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nlist: [{a: 1}, {a: 2}]\n", encoding="utf-8")
    assert read_yaml(path)["more"] == {"a": 1, "b": 3}


def test_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "params.yaml").write_bytes("epochs: 1\nout: Müll\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"params\.yaml, line 2: byte 0xfc is not UTF-8"):
        read_yaml(tmp_path / "params.yaml")
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "params.yaml").write_text("out: Müll\n", encoding=encoding)
        assert read_yaml(tmp_path / "params.yaml") == {"out": "Müll"}


@pytest.mark.parametrize("text", ["outs: [data]", "outs: 3", "7", "outs:\n- files: [1]", "outs:\n- files: data"])
def test_a_note_that_dvc_did_not_write_is_one_sentence(text, tmp_path):
    (tmp_path / "data.dvc").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a file that `dvc add` wrote"):
        tracked_version(tmp_path / "data")
