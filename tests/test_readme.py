"""The README is short, its picture and table come from the tree, and its first figure is one that nobody tuned on."""

import re
from pathlib import Path

import pytest

from trashsorting.core.card import mean_over_sources, read_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.evaluation.oof import load_predictions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def packages(monkeypatch):
    "The tool that draws the picture."
    monkeypatch.syspath_prepend(ROOT / "tools")
    import packages

    return packages


def test_the_readme_is_short_and_has_four_entrances():
    assert len(README.split()) < 800
    assert {"Use it", "Train it", "Deploy it", "Change it"} <= set(re.findall(r"^## (.+)$", README, re.MULTILINE))


def test_the_first_figure_is_of_held_out_sources_or_out_of_fold():
    card, known = read_card(SHIPPED_MODEL), load_predictions(ROOT / "nbs" / "measured" / "out_of_fold.csv")
    mean = mean_over_sources(card.held_out_sources)
    share = mean or (known.logits.argmax(1) == known.targets).mean()
    first = re.search(r"[\d.]+ ?%.*", README)[0]
    assert first.startswith(f"{share:.1%} "), first
    assert ("sources that it was not trained on" in first) == bool(mean) and (mean or "out of fold" in first)


def test_the_picture_is_drawn_from_the_import_rules(packages):
    assert packages.PICTURE.read_text(encoding="utf-8") == packages.picture(), "run `make export`"
    sentences = packages.packages().values()
    assert max(map(len, sentences)) <= 96, "a longer sentence leaves the picture"


def test_the_table_names_every_module():
    for page in sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb")):
        link = f"({page.relative_to(ROOT).as_posix()})"
        assert link in README, f"{link} is missing: run `make outputs`"
    for link in re.findall(r"\((nbs/[^)#]+)", README):
        assert (ROOT / link).is_file(), link


def test_every_guide_is_linked():
    for page in [*(ROOT / "nbs" / "tutorials").glob("*.ipynb"), *(ROOT / "nbs" / "explanations").glob("*.ipynb")]:
        assert f"({page.relative_to(ROOT).as_posix()})" in README, page.name


def test_contributing_names_files_and_targets_that_there_are():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])((?:nbs|tests|tools|bench)/[\w./-]+\w)", text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
