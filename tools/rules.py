"""The rules of places: `tools/rules.py check`, `tools/rules.py schema`, `tools/rules.py measure [FOLDER]`.

`check` reads every file in trashsorting/rules and says what is wrong; `make lint` calls it. `schema` writes the schema
for editors from the classes in nbs/core/09_places.ipynb; `make export` calls it. `measure` computes how often the bin
is right in each place, from the predictions in nbs/measured (or FOLDER), and writes bins.json beside them.
"""

import csv
import json
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np

from trashsorting.core.card import read_card
from trashsorting.core.errors import TrashsortingError
from trashsorting.core.places import RULES, Place, find_place, read_places
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.core.system import write_json
from trashsorting.evaluation.bins import evaluate_bins
from trashsorting.evaluation.calibration import fit_temperature
from trashsorting.evaluation.oof import load_predictions
from trashsorting.inference.session import softmax

ROOT = Path(__file__).resolve().parents[1]
SETS = ("out_of_fold", "home", "bin_camera")


def schema() -> dict:
    "The JSON schema of a file of rules."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Place.model_json_schema(by_alias=True)}


def schema_text() -> str:
    "The file schema.json."
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def problems(folder: Path = RULES) -> list[str]:
    "What is wrong with the files of a folder, beyond what reading them finds. Raises `PlaceError`."
    places, classes = read_places(folder), set(read_card(SHIPPED_MODEL).classes)
    names = Counter(word for place in places for word in {place.id, place.name.casefold()})
    faults = [f"{name}: two places have this name" for name, number in names.items() if number > 1]
    for place in places:
        labels = set(place.rules).union(*(rule.classes for rule in place.conditions))
        if labels - classes:
            faults.append(f"{place.id}: the model knows no class {', '.join(sorted(labels - classes))}")
        if place.read > date.today():
            faults.append(f"{place.id}: read on {place.read}, which is in the future")
        if not place.id.startswith(f"{place.country.lower()}-"):
            faults.append(f"{place.id}: the id does not begin with the country {place.country}")
        if find_place(place.id, places) is not place:
            faults.append(f"{place.id}: another place has this name")
    if (folder / "schema.json").read_text(encoding="utf-8") != schema_text():
        faults.append("schema.json is not what the classes say: run `make export`")
    return faults


def read_predictions(
    path: Path,  # CSV of `trashsorting evaluate --predictions`, or of `trashsorting crossval`
    classes: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:  # (n, n_classes) probabilities, (n,) true classes
    "The predictions of a CSV file."
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if "fold" in rows[0]:
        folds = load_predictions(path)
        return softmax(folds.logits, fit_temperature(folds.logits, folds.targets)), folds.targets
    probabilities = [[float(row[f"probability:{label}"]) for label in classes] for row in rows]
    return np.array(probabilities), np.array([classes.index(row["actual"]) for row in rows])


def rounded(evaluation: dict) -> dict:
    "The fields of a `BinEvaluation`, with four decimals."
    return {
        name: round(value, 4)
        if isinstance(value, float)
        else [round(limit, 4) for limit in value]
        if isinstance(value, tuple)
        else value
        for name, value in evaluation.items()
    }


def measure(
    folder: Path,  # With the predictions of each set
) -> dict:  # The threshold, and set -> place -> `BinEvaluation`
    "How often the bin is right, for every set and place."
    card = read_card(SHIPPED_MODEL)
    sets = {}
    for name in SETS:
        if (folder / f"{name}.csv").exists():
            predictions = read_predictions(folder / f"{name}.csv", card.classes)
            sets[name] = {
                place.id: rounded(evaluate_bins(place, *predictions, card.classes, card.unsure_below).model_dump())
                for place in read_places()
            }
    return {"model": card.name, "file_sha256": card.file_sha256, "unsure_below": card.unsure_below, "sets": sets}


def main(words: list[str]) -> int:
    "Run one command. Returns the exit status."
    try:
        match words:
            case ["check"]:
                faults = problems()
                print("\n".join(faults) or f"{len(read_places())} places", file=sys.stderr if faults else sys.stdout)
                return 1 if faults else 0
            case ["schema"]:
                (RULES / "schema.json").write_text(schema_text(), encoding="utf-8")
                return 0
            case ["measure", *rest] if len(rest) < 2:
                folder = Path(rest[0]) if rest else ROOT / "nbs" / "measured"
                write_json(folder / "bins.json", measure(folder))
                return 0
    except (TrashsortingError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
