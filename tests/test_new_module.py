"""`make new-module` writes a notebook that nbdev takes as it is, and refuses a name that cannot become a module."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def checkout(tmp_path) -> Path:
    "A checkout of two packages, one of them with two notebooks."
    for name in ("Makefile", "settings.ini", "tools/new_module.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for package in ("core", "data"):
        (tmp_path / "nbs" / package).mkdir(parents=True)
        (tmp_path / "trashsorting" / package).mkdir(parents=True)
        (tmp_path / "trashsorting" / package / "__init__.py").touch()
    shutil.copy(ROOT / "trashsorting" / "__init__.py", tmp_path / "trashsorting")
    empty = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    for name in ("00_storage", "08_sources"):
        (tmp_path / "nbs" / "data" / f"{name}.ipynb").write_text(empty, encoding="utf-8")
    return tmp_path


def new_module(checkout: Path, name: str, title: str = "") -> subprocess.CompletedProcess:
    words = ["make", "--no-print-directory", "new-module", f"NAME={name}", f"TITLE={title}", f"PYTHON={sys.executable}"]
    return subprocess.run(words, cwd=checkout, capture_output=True, text=True, timeout=60)


def test_the_notebook_has_the_next_number_and_becomes_a_module(checkout):
    done = new_module(checkout, "data.foo", 'Foo "and" bar')
    assert done.returncode == 0 and done.stdout.startswith("nbs/data/09_foo.ipynb is written"), done.stderr
    path = checkout / "nbs" / "data" / "09_foo.ipynb"
    text = path.read_text(encoding="utf-8")
    sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    assert sources[0].startswith('# Foo "and" bar\n\n> ') and sources[1:3] == ["#| default_exp data.foo", "#| export"]
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([BIN / command], cwd=checkout, check=True, capture_output=True, timeout=120)
    assert (checkout / "trashsorting" / "data" / "foo.py").is_file()
    assert path.read_text(encoding="utf-8") == text, "nbdev_clean would change it"


def test_the_first_notebook_of_a_package_has_number_zero(checkout):
    assert new_module(checkout, "core.foo").returncode == 0
    assert "# foo\\n" in (checkout / "nbs" / "core" / "00_foo.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "NAME is package.module, such as data.foo; the packages are core, data: ''"),
        ("foo", "NAME is package.module"),
        ("other.foo", "the packages are core, data: 'other.foo'"),
        ("data.", "NAME is package.module"),
        ("data.Foo", "a module's name is a word in lower case"),
        ("data.class", "a module's name is a word in lower case"),
        ("data.a/b", "a module's name is a word in lower case"),
        ("data.a.b", "a module's name is a word in lower case"),
        ("../data.foo", "NAME is package.module"),
        ("data.sources", "data.sources is there already: nbs/data/08_sources.ipynb"),
        ("data.$(shell touch bad)", "a module's name is a word in lower case"),
    ],
)
def test_a_bad_name_is_refused_with_a_sentence(checkout, name, sentence):
    before = sorted(checkout.rglob("*"))
    done = new_module(checkout, name)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(checkout.rglob("*")) == before
