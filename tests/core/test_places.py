"""The rules of places against a key that was written from the sources, and the files against their schema."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trashsorting.core.places import RULES, PlaceError, bin_for, find_place, read_places
from trashsorting.core.prediction import Prediction

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("cardboard", "glass", "metal", "paper", "plastic", "trash")


def key() -> list[tuple[str, str, str]]:
    "Place, class, name of the bin; - where the sources say nothing."
    with (Path(__file__).parent / "places_key.csv").open(newline="", encoding="utf-8") as stream:
        return [(row["place"], label, row[label]) for row in csv.DictReader(stream) for label in CLASSES]


def certain(label: str) -> Prediction:
    return Prediction(predicted_class=label, confidence=1, all_probabilities={label: 1.0})


def test_the_key_has_twenty_places():
    assert len({place for place, _, _ in key()}) >= 20


@pytest.mark.parametrize(("place", "label", "name"), key())
def test_rule_is_what_the_source_says(place, label, name):
    answer = bin_for(find_place(place), certain(label), 0.8)
    assert (answer.name, answer.id == "none") == ("no rule" if name == "-" else name, name == "-")


def test_every_rule_has_an_address_and_a_date():
    for place in read_places():
        for label in place.rules:
            answer = bin_for(place, certain(label), 0.8)
            assert answer.source.startswith("http") and answer.read.year >= 2026, (place.id, label)


@pytest.mark.parametrize(
    ("place", "label", "condition", "bin_id"),
    [
        ("dk-copenhagen", "cardboard", "greasy", "residual"),
        ("dk-copenhagen", "plastic", "deposit-bottle", "deposit"),
        ("dk-aarhus", "glass", "broken", "glass-metal"),
        ("dk-odense", "metal", "with-content", "residual"),
        ("es-madrid", "paper", "greasy", "organic"),
        ("us-seattle", "cardboard", "greasy", "food"),
    ],
)
def test_conditions_are_in_the_answer(place, label, condition, bin_id):
    conditions = bin_for(find_place(place), certain(label), 0.8).conditions
    assert {item.condition: item.id for item in conditions}[condition] == bin_id


def test_materials_of_one_bin_are_no_doubt():
    probabilities = {"paper": 0.4, "plastic": 0.35, "glass": 0.2, "trash": 0.05}
    prediction = Prediction(predicted_class="paper", confidence=0.4, all_probabilities=probabilities, unsure=True)
    sure, unsure = bin_for(find_place("gb-plymouth"), prediction, 0.8), bin_for(find_place("Berlin"), prediction, 0.8)
    assert sure.candidates is None and sure.confidence == pytest.approx(0.95)
    assert [item.id for item in unsure.candidates] == ["paper", "recyclables", "glass"]


def test_every_file_fits_the_schema():
    jsonschema_rs = pytest.importorskip("jsonschema_rs")  # comes with schemathesis
    validator = jsonschema_rs.validator_for(json.loads((RULES / "schema.json").read_text(encoding="utf-8")))
    for path in sorted(RULES.glob("*-*.json")):
        place = json.loads(path.read_text(encoding="utf-8"))
        validator.validate(place)
        assert not validator.is_valid({**place, "source": "a leaflet"})


def check_rules(cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "tools/rules.py", "check"], cwd=cwd, capture_output=True, text=True)


def test_lint_checks_the_rules():
    done = check_rules()
    assert done.returncode == 0 and done.stdout == f"{len(read_places())} places\n", done.stderr
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint:")[1].split("\n\n")[0]
    assert "tools/rules.py check" in recipe


def test_what_is_wrong_with_a_rule_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from rules import problems

    (tmp_path / "schema.json").write_text("{}", encoding="utf-8")
    odense = json.loads((RULES / "dk-odense.json").read_text(encoding="utf-8"))
    odense["rules"]["wood"] = odense["rules"]["trash"]
    changed = odense | {"country": "SE", "read": "2999-01-01"}
    (tmp_path / "dk-odense.json").write_text(json.dumps(changed), encoding="utf-8")
    text = "\n".join(problems(tmp_path))
    for words in ("no class wood", "in the future", "does not begin with the country SE", "schema.json is not"):
        assert words in text
    (tmp_path / "dk-odense.json").write_text("{}", encoding="utf-8")
    read_places.cache_clear()
    with pytest.raises(PlaceError, match=r"dk-odense\.json: \S+: Field required; schema\.json"):
        problems(tmp_path)
