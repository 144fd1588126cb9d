"""What the website promises that can be told without rendering it; `make docs` checks the rest."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str):
    "A file of tools/, which is no package."
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


website = tool("website")


def test_every_public_name_says_what_it_is():
    assert website.missing_docstrings() == []


def test_llms_lists_every_page_and_every_public_name():
    text = website.llms()
    for _, sources in website.sections():
        for source in sources:
            assert website.page_name(source) in text
    for path in website.modules().values():
        for name in website.public_names(path):
            assert f"`{website.dotted(path)}.{name}`: " in text


def test_no_page_loses_its_opening(tmp_path, monkeypatch):
    assert website.dropped_openings() == []
    source = ["# core\n", "\n", "> What all agree on.\n", "\n", "And why."]
    (tmp_path / "00_core.ipynb").write_text(json.dumps({"cells": [{"source": source}]}), encoding="utf-8")
    monkeypatch.setattr(website, "NBS", tmp_path)
    assert website.dropped_openings() == [
        "nbs/00_core.ipynb: the first cell holds more than a title and one line; the rest is left out"
    ]


def test_the_logo_is_drawn_by_its_tool_and_is_the_page_s_icon():
    logo = tool("logo")
    assert (ROOT / "nbs" / "logo.svg").read_text(encoding="utf-8") == logo.logo()
    assert (logo.PAGE / "icon.svg").read_text(encoding="utf-8") == logo.logo()
    for side in (192, 512):
        assert Image.open(logo.PAGE / f"icon-{side}.png").convert("RGBA") == logo.icon(side).convert("RGBA")


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A website of two pages with one fault of each kind."
    (tmp_path / "index.html").write_text(
        '<p id="here"><a href="core/card.html#there">a</a><a href="gone.html">b</a></p>', encoding="utf-8"
    )
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "card.html").write_text(
        '<p id="modelcard">c</p><a href="../index.html#here">d</a>', encoding="utf-8"
    )
    (tmp_path / "lost.html").write_text("<p>e</p>", encoding="utf-8")
    monkeypatch.setattr(website, "SITE", tmp_path)
    return website.pages()


def test_faults_are_found(site):
    broken = website.broken_links(site)
    assert broken == [
        "index.html: core/card.html#there: there is no such place in core/card.html",
        "index.html: gone.html leads nowhere",
    ]
    assert website.orphans(site) == ["lost.html: the sidebar does not name it"]
    unshown = website.unshown(site)
    assert "core/card.html: Preprocessing is public and not described there" in unshown
    assert "core/card.html: ModelCard is public and not described there" not in unshown
    assert "reference.html: core.card.ModelCard is public and not listed" in unshown
